"""A training step of any method hands the device its work and never asks for a value."""

from collections.abc import Callable

import pytest
import torch

import hkd
from hkd.runtime.engine import Engine
from hkd.types import Batch
from tests.holistic.test_device import Watch

N, C, B = 64, 4, 16


def step(name: str, device: str) -> Callable[[], None]:
    """One step as the loop takes it, after three that set things up."""
    engine = Engine(device, seed=0)
    labels = torch.arange(N) % C
    distiller = hkd.Distiller(
        hkd.create_model("resnet8", C), hkd.create_model("resnet14", C), name, num_samples=N, labels=labels,
        kd_weight=1.0, method_weight=None if name == "kd" else 1.0, image_size=16,
    )  # fmt: skip
    distiller.set_epoch(-1 if name in ("ab", "fsp") else 0, 1)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3, momentum=0.9)
    prepared, optimizer = engine.prepare(distiller, optimizer)
    index = torch.randperm(N)[:B].to(engine.device)
    image = torch.randn(B, 3, 16, 16, device=engine.device)
    batch = Batch(image, labels.to(engine.device)[index], index, strong=image / 2)

    def run() -> None:
        with engine.autocast():
            out = prepared(batch)
        engine.backward(out.loss)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        run()
    return run


@pytest.mark.parametrize("name", hkd.list_methods())
def test_no_operation_of_a_step_needs_a_value(name: str) -> None:
    run = step(name, "cpu")
    with Watch(largest=10**9) as watch:
        run()
    assert not watch.faults


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", hkd.list_methods())
def test_no_step_waits_for_a_gpu(name: str) -> None:
    run = step(name, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")

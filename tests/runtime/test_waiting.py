"""A training step of any method hands the device its work and never asks for a value."""

import pytest
import torch

import hkd
from hkd.distiller import Objective
from hkd.methods import methods
from hkd.runtime.engine import Engine
from hkd.types import Batch
from tests.holistic.test_device import Watch

N, C, B = 64, 4, 16


def step(name: str, device: str):
    """One step as the loop takes it, after two that set things up."""
    engine = Engine(device, seed=0)
    student, teacher = hkd.create_model("resnet8", C), hkd.create_model("resnet14", C)
    labels = torch.arange(N) % C
    method = hkd.create_method(name, student=student, teacher=teacher, num_samples=N, labels=labels, image_size=16)
    objective = Objective(student, method, methods[name].weights._replace(kd=1.0, method=1.0))
    teacher.eval().requires_grad_(False).to(engine.device)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(objective.parameters(), lr=1e-3, momentum=0.9)
    prepared, optimizer = engine.prepare(objective, optimizer)
    index = torch.randperm(N)[:B].to(engine.device)
    batch = Batch(torch.randn(B, 3, 16, 16, device=engine.device), labels.to(engine.device)[index], index)

    def run() -> None:
        with engine.autocast():
            with torch.no_grad():
                seen = teacher(batch.image)
            found = prepared(batch, seen, name in ("ab", "fsp"))
        engine.backward(found.total)
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

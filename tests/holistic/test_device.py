"""A step never waits for the device, and nothing in it grows with the number of training images."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hkd.holistic import HolisticLoss

# What makes a host wait for its device: reading a value, or a result whose shape depends on one.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal", "repeat_interleave.Tensor")
# These return the bank itself or a view of it; they write or point, they do not compute a new one.
IN_PLACE = ("index_copy_", "index_fill_", "scatter_reduce_", "detach", "alias")


class Watch(TorchDispatchMode):
    def __init__(self, largest: int) -> None:
        super().__init__()
        self.largest = largest
        self.faults: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::")
        if name.split(".")[0] in WAITING or name in WAITING:
            self.faults.append(f"{name} waits for the device")
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and tensor.numel() > self.largest and name.split(".")[0] not in IN_PLACE:
                self.faults.append(f"{name} makes a tensor of {tuple(tensor.shape)}")
        return out


def step(samples: int, **settings: Any) -> Callable[[], Tensor]:
    labels = torch.arange(samples) % 10 if settings.pop("labelled", True) else None
    loss = HolisticLoss(6, 6, samples, labels, embedding_dim=8, num_negatives=64, **settings)
    inputs = [torch.randn(4, size, requires_grad=True) for size in (6, 10, 6, 10)]
    index = torch.tensor([5, 77, samples - 1, 5])
    return lambda: loss(*inputs, index).backward()


@pytest.mark.parametrize("sampling", ["shared", "per_sample"])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("bank_start", ["random", "first"])
@pytest.mark.parametrize("negatives", ["same", "opposite"])
def test_a_step_neither_waits_nor_grows(sampling: str, labelled: bool, bank_start: str, negatives: str) -> None:
    samples = 100_000
    run = step(samples, sampling=sampling, labelled=labelled, bank_start=bank_start, negatives=negatives)
    with Watch(largest=samples // 2) as watch:
        run()
    assert not watch.faults


def test_a_small_bank_and_all_rows_do_not_wait_either() -> None:
    for sampling in ("shared", "all", "per_sample"):
        run = step(90, sampling=sampling)
        with Watch(largest=100_000) as watch:
            run()
        assert not watch.faults


@pytest.mark.parametrize("count", [16, 64])
def test_an_abundant_class_costs_no_more(count: int) -> None:
    """Its images have 30 negatives, of which all or a part are drawn, and the others 99,970."""
    samples = 100_000
    labels = (torch.arange(samples) >= 30).long()
    loss = HolisticLoss(6, 6, samples, labels, embedding_dim=8, num_negatives=count, sampling="per_sample")
    inputs, index = [torch.randn(4, size) for size in (6, 10, 6, 10)], torch.tensor([5, 77, samples - 1, 5])
    with Watch(largest=1000 * count) as watch:
        loss(*inputs, index)
    assert not watch.faults


@pytest.mark.parametrize("bank_start", ["random", "first"])
def test_taking_a_step_back_neither_waits_nor_grows(bank_start: str) -> None:
    samples = 100_000
    loss = HolisticLoss(6, 6, samples, torch.arange(samples) % 10, embedding_dim=8, bank_start=bank_start)
    loss(*(torch.randn(4, size) for size in (6, 10, 6, 10)), torch.tensor([5, 77, samples - 1, 5]))
    with Watch(largest=100) as watch:
        loss.undo_step()
    assert not watch.faults


def test_the_watch_sees_both_faults() -> None:
    with Watch(largest=10) as watch:
        torch.randn(3).sum().item()
        torch.randn(20)
    assert len(watch.faults) == 2


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cuda
@pytest.mark.parametrize("sampling", ["shared", "all", "per_sample"])
def test_no_synchronisation_on_a_gpu(sampling: str) -> None:
    labels = torch.arange(5000) % 10
    loss = HolisticLoss(6, 6, 5000, labels, embedding_dim=8, num_negatives=64, sampling=sampling).cuda()
    inputs = [torch.randn(4, size, device="cuda", requires_grad=True) for size in (6, 10, 6, 10)]
    index = torch.tensor([5, 77, 99, 5], device="cuda")
    loss(*inputs, index).backward()  # the first step may set things up
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(*inputs, index).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@cuda
def test_a_gpu_agrees_with_the_cpu() -> None:
    labels = torch.arange(200) % 10
    loss = HolisticLoss(6, 6, 200, labels, embedding_dim=8, sampling="all")
    inputs = [torch.randn(12, size) for size in (6, 10, 6, 10)]
    index = torch.randperm(200)[:12]
    expected = loss.terms(*inputs, index)
    actual = loss.cuda().terms(*(x.cuda() for x in inputs), index.cuda())
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)

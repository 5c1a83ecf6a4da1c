"""InfoNCE against its float64 re-statement, whatever the blocks."""

import math

import pytest
import torch

from hkd.numerics import contrast as contrast_module
from hkd.numerics.contrast import info_nce
from tests.reference import holistic as reference


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("block", [1, 7, 10_000])
@pytest.mark.parametrize("masked", [False, True])
def test_info_nce(each: bool, block: int, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contrast_module._SIMILARITIES_AT_ONCE, "cpu", block * 4)
    anchor, positive = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    negatives = torch.randn((4, 23, 6) if each else (23, 6))
    mask = torch.rand(4, 23) < 0.4 if masked else None
    value = info_nce(anchor, positive, negatives, 0.3, mask)
    value.backward()

    a, p = anchor.detach().double().requires_grad_(), positive.detach().double().requires_grad_()
    losses = []
    for b in range(4):
        rows = (negatives[b] if each else negatives).double()
        losses.append(reference.nce(a[b], p[b], [r for j, r in enumerate(rows) if not masked or not mask[b, j]], 0.3))
    expected = torch.stack(losses).mean()
    expected.backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(anchor.grad.double(), a.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(positive.grad.double(), p.grad, rtol=1e-5, atol=1e-5)


def test_info_nce_passes_gradcheck() -> None:
    tensors = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    negatives = torch.randn(9, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, p: info_nce(a, p, negatives, 0.5), tensors)


def test_info_nce_is_stable_at_a_tiny_temperature() -> None:
    anchor = torch.eye(4)[:2].requires_grad_()
    value = info_nce(anchor, torch.eye(4)[:2], torch.eye(4), 1e-4)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(anchor.grad).all()


def test_info_nce_without_negatives_is_zero() -> None:
    assert info_nce(torch.eye(3), torch.eye(3), torch.empty(0, 3), 0.1) == 0


def test_info_nce_refuses_what_it_does_not_compute() -> None:
    tensor = torch.randn(2, 3)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature"):
            info_nce(tensor, tensor, tensor, temperature)
    with pytest.raises(ValueError, match="anchor: expected at least one"):
        info_nce(tensor[:0], tensor[:0], tensor, 0.1)
    with pytest.raises(ValueError, match="negatives"):
        info_nce(tensor, tensor, tensor.clone().requires_grad_(), 0.1)

"""The classical term against its re-statement."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hkd.methods.kd import kd_loss, standardised
from tests.reference.kd import kd
from tests.reference.methods import lskd


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd(temperature: float) -> None:
    student, teacher = torch.randn(5, 7, requires_grad=True), 3 * torch.randn(5, 7)
    value = kd_loss(student, teacher, temperature)
    value.backward()
    exact = student.detach().double().requires_grad_()
    expected = kd(exact, teacher.double(), temperature)
    expected.backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_of_standardised_logits(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7, requires_grad=True), 3 * torch.randn(5, 7)
    value = kd_loss(student, teacher, temperature, standardise=True)
    value.backward()
    exact = student.detach().double().requires_grad_()
    expected = lskd(exact, teacher.double(), temperature)
    expected.backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


@given(st.floats(0.01, 100.0), st.floats(-100.0, 100.0), st.integers(0, 1000))
def test_standardised_logits_do_not_know_their_scale_and_place(scale: float, shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(4, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    moved = scale * student + shift
    torch.testing.assert_close(standardised(moved), standardised(student), rtol=1e-9, atol=1e-9)
    losses = [kd_loss(s, teacher, 2.0, standardise=True) for s in (student, moved)]
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("row", [[0.0] * 4, [7.0] * 4, [100.1, 100.1, 100.1, 100.10001], [1e-30, 0.0, 0.0, 0.0], [3.0]])
def test_constant_logits_have_a_bounded_gradient(row: list[float]) -> None:
    student = torch.tensor([row], requires_grad=True)
    teacher = torch.arange(len(row)).float()[None]
    for s, t in ((student, teacher), (student, student.detach())):
        value = kd_loss(s, t, 2.0, standardise=True)
        (gradient,) = torch.autograd.grad(value, student)
        assert value.isfinite() and gradient.abs().max() < 10

"""The classical term against its re-statement."""

import pytest
import torch

from hkd.methods.kd import kd_loss
from tests.reference.kd import kd


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

"""The memory bank: how rows start, what moves them, and how an update is taken back."""

import math

import pytest
import torch

from hkd.numerics.memory import MemoryBank
from tests.reference import holistic as reference


def test_the_bank_starts_uniform() -> None:
    rows = MemoryBank(4000, 16).rows
    bound = reference.uniform_bound(16)
    assert rows.abs().max() <= bound
    assert rows.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("start", ["random", "first"])
def test_a_broken_embedding_leaves_its_row_alone(start: str) -> None:
    bank = MemoryBank(6, 4, start=start)
    before = bank.rows.clone()
    bank.update(torch.tensor([1, 2], dtype=torch.int32), torch.stack([torch.full((4,), torch.nan), torch.eye(4)[0]]))
    assert torch.equal(bank.rows[1], before[1])
    assert not torch.equal(bank.rows[2], before[2])
    bank.update(torch.tensor([1]), torch.eye(4)[:1])
    assert torch.equal(bank.rows[1], torch.eye(4)[0]) == (start == "first"), "a broken look is not the first"


@pytest.mark.parametrize("start", ["random", "first"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_update_taken_back_leaves_no_trace(start: str, dtype: str) -> None:
    bank = MemoryBank(9, 4, start=start, dtype=dtype)
    keys = set(bank.state_dict())
    bank.update(torch.tensor([0, 1, 2]), torch.eye(4)[:3])
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    bank.update(torch.tensor([1, 5, 5, 8]), torch.randn(4, 4))
    assert not torch.equal(bank.rows, before["rows"])
    bank.undo_update()
    for name, value in bank.state_dict().items():
        assert torch.equal(value, before[name])
    bank.undo_update()  # there is nothing more to take back
    assert torch.equal(bank.rows, before["rows"])
    assert set(bank.state_dict()) == keys


def test_an_update_is_taken_back_after_a_move_to_another_type() -> None:
    bank = MemoryBank(4, 3)
    before = bank.rows.clone()
    bank.update(torch.tensor([1]), torch.eye(3)[:1])
    bank.double().undo_update()
    assert torch.equal(bank.rows, before.double())


def test_only_integers_are_an_index() -> None:
    bank = MemoryBank(4, 3)
    for index in (torch.tensor([1.0]), torch.tensor([True])):
        with pytest.raises(ValueError, match="index: expected integers; got torch"):
            bank.update(index, torch.eye(3)[:1])
    bank.update(torch.tensor([1], dtype=torch.uint8), torch.eye(3)[:1])

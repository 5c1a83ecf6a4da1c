"""What holds for any batch, whatever its size, its numbers and its indices."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hkd.holistic import HolisticLoss, info_nce, knn_graph

N, D_S, D_T, C = 23, 5, 7, 4


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A loss and a batch: one image or many, k and K larger than there is, indices twice, extreme half precision."""
    size = draw(st.integers(1, 12))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0, 6e4]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    loss = HolisticLoss(
        D_S, D_T, N, torch.arange(N) % C if draw(st.booleans()) else None,
        embedding_dim=draw(st.integers(1, 6)), k=draw(st.integers(1, 30)), hops=draw(st.integers(0, 3)),
        layers=draw(st.integers(1, 2)), num_negatives=draw(st.integers(1, 60)),
        negatives=draw(st.sampled_from(["same", "opposite"])),
        sampling=draw(st.sampled_from(["shared", "all", "per_sample"])),
        bank_start=draw(st.sampled_from(["random", "first"])),
        bank_dtype=draw(st.sampled_from(["float32", "bfloat16", "float16"])),
    )  # fmt: skip
    batch = [
        torch.randn(size, D_S, generator=random).to(dtype),
        (scale * torch.randn(size, C, generator=random)).clamp(-6e4, 6e4).to(dtype),
        torch.randn(size, D_T, generator=random).to(dtype),
        (scale * torch.randn(size, C, generator=random)).clamp(-6e4, 6e4).to(dtype),
    ]
    return {"loss": loss, "batch": batch, "index": torch.randint(N, (size,), generator=random), "random": random}


thorough = settings(max_examples=60, deadline=None)


@thorough
@given(cases())
def test_the_loss_is_a_number_from_0_up_and_so_are_its_gradients_and_banks(case: dict[str, Any]) -> None:
    loss, inputs = case["loss"], [x.clone().requires_grad_() for x in case["batch"]]
    value = loss(*inputs, case["index"])
    assert value.isfinite() and value >= 0
    value.backward()
    for parameter in [*loss.parameters(), inputs[0], inputs[2]]:
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    assert loss.student.bank.rows.isfinite().all() and loss.teacher.bank.rows.isfinite().all()


@thorough
@given(cases())
def test_the_order_of_a_batch_does_not_matter(case: dict[str, Any]) -> None:
    loss, batch, index = case["loss"].double(), [x.double() for x in case["batch"]], case["index"]
    order = torch.randperm(len(index), generator=case["random"])
    if loss.sampling == "per_sample" or ties(batch[1], loss.student.k) or ties(batch[3], loss.teacher.k):
        return  # each place has its own draw; equal neighbours are ordered by their place
    before = loss.terms(*batch, index)
    after = loss.terms(*(x[order] for x in batch), index[order])
    torch.testing.assert_close(torch.stack(after), torch.stack(before), rtol=1e-9, atol=1e-9)


def ties(logits: Tensor, k: int) -> bool:
    """Whether the k-th and the next neighbour are alike."""
    direction = torch.nn.functional.normalize(logits.softmax(dim=1), dim=1)
    found = (direction @ direction.T).sort(dim=1, descending=True).values
    return k < len(logits) and bool((found[:, k - 1] - found[:, k]).min() < 1e-9)


@thorough
@given(cases(), st.floats(-50, 50))
def test_a_constant_added_to_all_logits_changes_nothing(case: dict[str, Any], constant: float) -> None:
    loss, (f_s, l_s, f_t, l_t), index = case["loss"].double(), [x.double() for x in case["batch"]], case["index"]
    if ties(l_s, loss.student.k) or ties(l_t, loss.teacher.k):
        return
    before = loss.terms(f_s, l_s, f_t, l_t, index)
    after = loss.terms(f_s, l_s + constant, f_t, l_t + constant, index)
    torch.testing.assert_close(torch.stack(after), torch.stack(before), rtol=1e-7, atol=1e-9)


@thorough
@given(cases())
def test_a_network_s_terms_train_its_own_side_alone(case: dict[str, Any]) -> None:
    """Positives and negatives are constants: the student's terms give the teacher's side nothing, and the reverse."""
    loss = case["loss"]
    for own, other, names in (
        (loss.student, loss.teacher, ("individual_student", "holistic_student")),
        (loss.teacher, loss.student, ("individual_teacher", "holistic_teacher")),
    ):
        inputs = [x.float().clone().requires_grad_() for x in case["batch"]]
        terms = loss.terms(*inputs, case["index"])
        loss.zero_grad()
        sum(getattr(terms, name) for name in names).backward()
        assert any(p.grad is not None for p in own.parameters())
        assert all(p.grad is None or not p.grad.any() for p in other.parameters())
        mine, theirs = (inputs[0], inputs[2]) if own is loss.student else (inputs[2], inputs[0])
        assert mine.grad is not None
        assert theirs.grad is None or not theirs.grad.any()
        assert inputs[1].grad is None and inputs[3].grad is None, "the graph is a constant of the step"


@thorough
@given(st.integers(1, 9), st.integers(1, 20), st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 6e4]))
def test_the_graph_of_any_batch(size: int, k: int, seed: int, scale: float) -> None:
    logits = (scale * torch.randn(size, C, generator=torch.Generator().manual_seed(seed))).clamp(-6e4, 6e4).half()
    found = knn_graph(logits, k)
    assert found.shape == (size, min(k, size))
    assert torch.equal(found[:, 0], torch.arange(size))
    assert all(len(set(row)) == len(row) for row in found.tolist())


@thorough
@given(st.integers(1, 6), st.integers(0, 40), st.floats(0.01, 2), st.integers(0, 10**6))
def test_info_nce_is_a_number_from_0_up(anchors: int, count: int, temperature: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    a, p = (100 * torch.randn(anchors, 3, generator=random) for _ in range(2))
    value = info_nce(a, p, 100 * torch.randn(count, 3, generator=random), temperature)
    assert value.isfinite() and value >= -1e-6

"""HolisticLoss against its float64 re-statement: every term, gradient, update, sampling mode and bank."""

import dataclasses
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

import hkd
from hkd.holistic import HolisticLoss
from hkd.holistic.negatives import drawn_negatives
from hkd.numerics import contrast
from tests.reference import holistic as reference

N, D_S, D_T, D, C = 60, 10, 14, 8, 5
FIELDS = ("individual_student", "individual_teacher", "holistic_student", "holistic_teacher")


def build(**changes: Any) -> tuple[HolisticLoss, Tensor | None]:
    torch.manual_seed(changes.pop("torch_seed", 0))
    labels = torch.randint(0, C, (N,)) if changes.pop("labelled", True) else None
    arguments = {"embedding_dim": D, "k": 4, "num_negatives": 20, "temperature": 0.2} | changes
    return HolisticLoss(D_S, D_T, N, labels, **arguments), labels


def batch(size: int = 9, duplicates: bool = False) -> dict[str, Tensor]:
    index = torch.randperm(N)[:size]
    if duplicates:
        index[1::3] = index[0]
    return {
        "student_embedding": torch.randn(size, D_S), "student_logits": 3 * torch.randn(size, C),
        "teacher_embedding": torch.randn(size, D_T), "teacher_logits": 3 * torch.randn(size, C), "index": index,
    }  # fmt: skip


def negative_rows(
    rows: Tensor | None, index: Tensor, labels: Tensor | None, surplus: Tensor | None = None
) -> list[list[int]]:
    """What METHOD calls the negatives of each anchor, decided one pair at a time."""
    if rows is not None and rows.ndim == 2:
        surplus = torch.zeros_like(rows, dtype=torch.bool) if surplus is None else surplus
        return [row[~skipped].tolist() for row, skipped in zip(rows, surplus, strict=True)]
    candidates = range(N) if rows is None else rows.tolist()
    kind = list(range(N)) if labels is None else labels.tolist()
    return [[j for j in candidates if kind[j] != kind[i]] for i in index.tolist()]


def restate(loss: HolisticLoss, data: dict[str, Tensor], negatives: list[list[int]]) -> tuple[dict, list[Tensor]]:
    """The reference's terms, and the double tensors that its gradients are taken for."""
    inputs = [data["student_embedding"].double().requires_grad_(), data["teacher_embedding"].double().requires_grad_()]
    parameters = [p.detach().double().requires_grad_() for p in loss.parameters()]
    by_name = dict(zip((name for name, _ in loss.named_parameters()), parameters, strict=True))

    def of(side: str, part: str) -> tuple[Tensor, Tensor]:
        return by_name[f"{side}.{part}.weight"], by_name[f"{side}.{part}.bias"]

    depth = len(loss.student.encoder.layers)
    terms = reference.hkd_terms(
        inputs[0], data["student_logits"], inputs[1], data["teacher_logits"], data["index"].tolist(),
        embed_s=of("student", "embed"), embed_t=of("teacher", "embed"),
        layers_s=[of("student", f"encoder.layers.{n}.linear") for n in range(depth)],
        layers_t=[of("teacher", f"encoder.layers.{n}.linear") for n in range(depth)],
        bank_s=loss.student.bank.rows.double(), bank_t=loss.teacher.bank.rows.double(), negative_rows=negatives,
        k=loss.student.k, hops=loss.student.encoder.layers[0].hops, temperature=loss.temperature,
        smoothing=loss.smoothing, opposite=loss.negatives == "opposite",
    )  # fmt: skip
    return terms, [*inputs, *parameters]


def assert_equal_to_reference(loss: HolisticLoss, labels: Tensor | None, data: dict[str, Tensor]) -> None:
    data = {name: value.requires_grad_(value.is_floating_point()) for name, value in data.items()}
    rows, excluded, _ = drawn_negatives(loss.sampler, loss.sampling, data["index"])
    negatives = negative_rows(rows, data["index"], labels, excluded)
    terms = loss.terms(**data)
    expected, leaves = restate(loss, {name: value.detach() for name, value in data.items()}, negatives)

    for name in FIELDS:
        torch.testing.assert_close(getattr(terms, name).double(), expected[name], rtol=1e-5, atol=1e-5)

    wanted = torch.autograd.grad(sum(expected.values()), leaves, allow_unused=True)
    sum(terms).backward()
    actual = [data["student_embedding"], data["teacher_embedding"], *loss.parameters()]
    for tensor, gradient in zip(actual, wanted, strict=True):
        assert gradient is not None
        torch.testing.assert_close(tensor.grad.double(), gradient, rtol=1e-5, atol=1e-5)
    assert data["student_logits"].grad is None, "the graph is a constant of the step"
    assert data["teacher_logits"].grad is None


@pytest.mark.parametrize("negatives", ["same", "opposite"])
@pytest.mark.parametrize("sampling", ["shared", "all", "per_sample"])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("duplicates", [True, False])
def test_terms_and_gradients(negatives: str, sampling: str, labelled: bool, duplicates: bool) -> None:
    loss, labels = build(negatives=negatives, sampling=sampling, labelled=labelled)
    assert_equal_to_reference(loss, labels, batch(duplicates=duplicates))


@pytest.mark.parametrize("similarities", [2**18, 64])
def test_per_sample_negatives_of_an_abundant_class(similarities: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anchors of the abundant class have fewer than K negatives, the others K; in one block and in several."""
    monkeypatch.setitem(contrast._SIMILARITIES_AT_ONCE, "cpu", similarities)
    labels = torch.arange(N).clamp(max=10) % 10  # 51 images of class 0, so 9 negatives of each
    loss = HolisticLoss(D_S, D_T, N, labels, embedding_dim=D, k=4, num_negatives=20, sampling="per_sample")
    data = batch(16)
    anchors = labels[data["index"]]
    assert (anchors == 0).any() and (anchors != 0).any()
    rows, excluded, _ = drawn_negatives(loss.sampler, "per_sample", data["index"])
    assert excluded is not None
    assert {len(row) for row in negative_rows(rows, data["index"], labels, excluded)} == {9, 20}
    assert_equal_to_reference(loss, labels, data)


@pytest.mark.parametrize("hops", [0, 1, 2, 3])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("k", [1, 3, 50])
def test_graph_and_encoder_settings(hops: int, layers: int, k: int) -> None:
    loss, labels = build(hops=hops, layers=layers, k=k)
    assert_equal_to_reference(loss, labels, batch())


@pytest.mark.parametrize("size", [1, 2, 3, 33])
@pytest.mark.parametrize("smoothing", [0.0, 0.75, 1.0])
def test_batch_sizes_and_smoothing(size: int, smoothing: float) -> None:
    loss, labels = build(smoothing=smoothing)
    assert_equal_to_reference(loss, labels, batch(size))


@pytest.mark.parametrize("kind", ["individual", "holistic"])
@pytest.mark.parametrize("negatives", ["same", "opposite"])
@pytest.mark.parametrize("sampling", ["shared", "per_sample", "all"])
def test_two_of_the_terms_alone(kind: str, negatives: str, sampling: str) -> None:
    """They are the same two as among the four, gradients included, and every parameter that is left has a gradient."""
    changes = {"negatives": negatives, "sampling": sampling}
    (whole, labels), (part, _) = build(**changes), build(**changes, terms=kind)
    state = whole.state_dict()
    part.load_state_dict({name: state[name] for name in part.state_dict()})
    data = batch()
    rows, excluded, _ = drawn_negatives(part.sampler, part.sampling, data["index"])
    expected, leaves = restate(whole, data, negative_rows(rows, data["index"], labels, excluded))
    terms = part.terms(**data)
    for name in FIELDS:
        wanted = expected[name] if name.startswith(kind) else torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(getattr(terms, name).double(), wanted, rtol=1e-5, atol=1e-5)
    sum(terms).backward()
    names = [name for name, _ in whole.named_parameters()]
    summed = sum(value for name, value in expected.items() if name.startswith(kind))
    gradients = torch.autograd.grad(summed, leaves[2:], allow_unused=True)
    wanted = {name: gradient for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
    assert wanted.keys() == dict(part.named_parameters()).keys()
    for name, parameter in part.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), wanted[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", ["shared", "per_sample"])
def test_explicit_negatives(shape: str) -> None:
    loss, labels = build()
    data = batch()
    rows = torch.randperm(N)[:17] if shape == "shared" else loss.sampler.per_sample(data["index"])[0]
    terms = loss.terms(**data, negatives=rows)
    expected, _ = restate(loss, data, negative_rows(rows, data["index"], labels))
    for name in FIELDS:
        torch.testing.assert_close(getattr(terms, name).double(), expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("duplicates", [True, False])
@pytest.mark.parametrize("bank_start", ["random", "first"])
def test_banks_are_updated_after_the_loss(duplicates: bool, bank_start: str) -> None:
    loss, _ = build(bank_start=bank_start)
    seen = [3, 5, 8] if bank_start == "first" else None
    if seen is not None:
        loss.update(torch.tensor(seen), *torch.eye(D)[:6].split(3))
    data = batch(33, duplicates=duplicates)
    before = {side: getattr(loss, side).bank.rows.double() for side in ("student", "teacher")}
    terms = loss.terms(**data)
    value = loss(**data)
    torch.testing.assert_close(value, sum(terms))
    for side in ("student", "teacher"):
        branch = getattr(loss, side)
        weight, bias = branch.embed.weight.double(), branch.embed.bias.double()
        embeddings = [reference.normalise(weight @ f + bias) for f in data[f"{side}_embedding"].double()]
        after = reference.bank_after(before[side], data["index"].tolist(), torch.stack(embeddings), 0.9, seen)
        torch.testing.assert_close(branch.bank.rows.double(), after, rtol=1e-5, atol=1e-5)
        assert not branch.bank.rows.requires_grad


def test_looking_changes_nothing() -> None:
    loss, _ = build()
    data = batch()
    before = loss.student.bank.rows.clone()
    seen = loss.terms(**data)
    assert torch.equal(loss.eval()(**data), torch.stack(seen).sum())
    assert torch.equal(loss.student.bank.rows, before)
    assert torch.equal(loss.train()(**data), torch.stack(seen).sum()), "a look does not use up a draw"
    assert not torch.equal(loss.student.bank.rows, before)
    assert loss.sampler.draws == 1


@pytest.mark.parametrize("bank_start", ["random", "first"])
@pytest.mark.parametrize("sampling", ["shared", "per_sample"])
def test_a_step_taken_back_leaves_no_trace(bank_start: str, sampling: str) -> None:
    loss, _ = build(bank_start=bank_start, sampling=sampling)
    loss(**batch(duplicates=True))
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    broken, data = batch(duplicates=True), batch()
    broken["student_embedding"][0] = torch.nan
    again, _ = build(bank_start=bank_start, sampling=sampling)
    again.load_state_dict(before)

    loss(**broken)
    loss.undo_step()
    loss.undo_step()  # once is all
    for name, value in loss.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(loss(**data), again(**data)), "the next step is as if there had been none"


def test_there_is_nothing_to_take_back_without_a_step_in_training() -> None:
    loss, _ = build()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    loss.undo_step()
    loss.eval()(**batch())
    loss.undo_step()
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_update_alone() -> None:
    loss, _ = build(bank_start="random")
    index, e_s, e_t = torch.tensor([3, 5]), torch.eye(D)[:2], torch.eye(D)[2:4]
    expected = reference.bank_after(loss.teacher.bank.rows.double(), [3, 5], e_t.double(), 0.9)
    loss.update(index, e_s, e_t)
    torch.testing.assert_close(loss.teacher.bank.rows.double(), expected, rtol=1e-5, atol=1e-5)


def test_first_embedding_starts_a_row() -> None:
    loss, _ = build(bank_start="first")
    first, second = torch.eye(D)[:2], torch.eye(D)[2:4]
    index = torch.tensor([3, 5])
    loss.update(index, first, first)
    torch.testing.assert_close(loss.student.bank.rows[index], first)
    expected = reference.bank_after(loss.student.bank.rows.double(), [3, 5], second.double(), 0.9)
    loss.update(index, second, second)
    torch.testing.assert_close(loss.student.bank.rows.double(), expected, rtol=1e-5, atol=1e-5)


def test_student_terms_give_the_teacher_side_no_gradient() -> None:
    loss, _ = build()
    terms = loss.terms(**batch())
    (terms.individual_student + terms.holistic_student).backward()
    assert all(p.grad is None or not p.grad.any() for p in loss.teacher.parameters())
    assert all(p.grad is not None and p.grad.any() for p in loss.student.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    loss, _ = build()
    data = batch()
    rounded = {name: v.to(dtype) if v.is_floating_point() else v for name, v in data.items()}
    with torch.autocast("cpu", dtype=torch.float16):  # in bfloat16 the products with the negatives are rounded
        value = loss(**rounded)
    again, _ = build()
    exact = again(**{name: v.float() if v.is_floating_point() else v for name, v in rounded.items()})
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sampling", ["shared", "all", "per_sample"])
@pytest.mark.parametrize("bank_dtype", ["float32", "bfloat16"])
def test_products_are_bfloat16_under_bfloat16_autocast_within_a_hundredth_of_the_gradient(
    sampling: Any, bank_dtype: Any
) -> None:
    torch.manual_seed(0)
    labels = torch.arange(4000) % 20
    options: dict[str, Any] = {"num_negatives": 1024, "sampling": sampling, "bank_dtype": bank_dtype}
    loss = HolisticLoss(24, 40, len(labels), labels, **options)
    centres, f_t = torch.randn(20, 24), torch.randn(32, 40)
    for _ in range(60):  # banks and encoders as in the middle of a training, with neighbours that are alike
        index = torch.randint(len(labels), (32,))
        f_s = centres[labels[index]] + 0.3 * torch.randn(32, 24)
        loss(f_s, f_s[:, :20], f_t, f_t[:, :20], index)

    def gradient(autocast: bool) -> torch.Tensor:
        feature = f_s.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            terms = loss.terms(feature, f_s[:, :20], f_t, f_t[:, :20], index)
        leaves = [feature, *loss.parameters()]
        return torch.cat([g.flatten() for g in torch.autograd.grad(sum(terms), leaves)])

    exact, rounded = gradient(False), gradient(True)
    assert 0 < (rounded - exact).norm() < 1e-2 * exact.norm()


def test_a_tiny_bank_with_no_negative_drawn_is_finite() -> None:
    loss, _ = build(num_negatives=1)
    data = batch()
    same_class = data["index"][:1]  # the only negative offered is the anchor's own class for some anchors
    terms = loss.terms(**data, negatives=same_class)
    assert all(torch.isfinite(term) for term in terms)


def test_state_round_trip_continues_the_same_draws(tmp_path: Any) -> None:
    loss, _ = build()
    loss(**batch())
    torch.save(loss.state_dict(), tmp_path / "loss.pt")
    again, _ = build(torch_seed=0)
    again.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    data = batch()
    torch.testing.assert_close(loss(**data), again(**data), rtol=0, atol=0)
    torch.testing.assert_close(loss.student.bank.rows, again.student.bank.rows, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"k": 0}, "k"), ({"num_negatives": 0}, "num_negatives"), ({"temperature": 0.0}, "temperature"),
        ({"hops": -1}, "hops"), ({"layers": 0}, "layers"), ({"momentum": 1.0}, "momentum"),
        ({"smoothing": 1.5}, "smoothing"), ({"negatives": "both"}, "negatives"), ({"sampling": "some"}, "sampling"),
        ({"bank_start": "zero"}, "bank_start"), ({"embedding_dim": 0}, "embedding_dim"),
        ({"temperature": float("nan")}, "temperature"), ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"smoothing": float("nan")}, "smoothing"), ({"momentum": float("nan")}, "momentum"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        build(**changes)


@pytest.mark.parametrize("labels", [torch.zeros(59, dtype=torch.long), torch.zeros(60, 2, dtype=torch.long)])
def test_labels_of_the_wrong_shape_are_refused(labels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"labels: expected .* 60 "):
        HolisticLoss(D_S, D_T, N, labels)


def test_labels_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="labels: expected classes from 0 up, or -1 for none; got -2"):
        HolisticLoss(D_S, D_T, N, torch.full((N,), -2))


def test_the_defaults_are_those_of_the_method_and_the_released_ones_a_name_away() -> None:
    loss = HolisticLoss(D_S, D_T, N)
    defaults = hkd.methods.methods["hkd"].Config()
    assert (loss.negatives, loss.student.bank.start) == (defaults.negatives, defaults.bank_start)
    assert (loss.negatives, loss.student.bank.start) == ("opposite", "first")
    arguments = inspect.signature(HolisticLoss).parameters
    assert dataclasses.asdict(defaults) == {f.name: arguments[f.name].default for f in dataclasses.fields(defaults)}
    labels = torch.arange(N) % C
    released = HolisticLoss.as_released(D_S, D_T, N, labels, k=3, seed=1)
    assert (released.negatives, released.student.bank.start) == ("same", "random")
    assert (released.student.k, released.sampler.seed) == (3, 1)
    assert released.sampler.classes is not None
    assert HolisticLoss.as_released(student_dim=D_S, teacher_dim=D_T, num_samples=N).sampler.classes is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": torch.arange(9.0)}, "index: expected integers; got torch.float32"),
        ({"index": torch.arange(9)[:, None]}, r"index: expected shape \(B,\), B at least 1; got \(9, 1\)"),
        ({"student_logits": torch.zeros(8, C)}, "student_logits: expected 2 axes and 9 rows"),
        ({"teacher_embedding": torch.zeros(9)}, "teacher_embedding: expected 2 axes and 9 rows"),
    ],
)
def test_a_batch_that_does_not_fit_is_named(changes: dict[str, Tensor], message: str) -> None:
    loss, _ = build()
    with pytest.raises(ValueError, match=message):
        loss(**batch() | changes)


def test_an_empty_batch_and_strange_negatives_are_named() -> None:
    loss, _ = build()
    with pytest.raises(ValueError, match="index: expected shape .* at least 1"):
        loss(**{name: value[:0] for name, value in batch().items()})
    for rows, message in (
        (torch.zeros(3), "expected integers"),
        (torch.zeros(3, 2, dtype=torch.long), "expected shape"),
    ):
        with pytest.raises(ValueError, match=f"negatives: {message}"):
            loss.terms(**batch(), negatives=rows)


def test_labels_of_one_class_are_refused() -> None:
    with pytest.raises(ValueError, match="same class"):
        HolisticLoss(D_S, D_T, N, torch.zeros(N, dtype=torch.long))


NAN = float("nan")


@pytest.mark.parametrize(("name", "value"), [
    ("temperature", NAN), ("temperature", 0), ("temperature", -1), ("temperature", "a"), ("smoothing", NAN),
    ("momentum", NAN), ("momentum", None), ("k", 0), ("k", 2.5), ("k", NAN), ("hops", 1.5), ("layers", "a"),
    ("num_negatives", float("inf")), ("num_negatives", 2.5), ("embedding_dim", 10**12), ("embedding_dim", 2.0),
    ("num_samples", 0), ("num_samples", 2.5), ("num_samples", None), ("seed", "x"), ("labels", "abc"),
])  # fmt: skip
def test_a_wrong_argument_is_named(name: str, value: object) -> None:
    arguments = {"student_dim": 8, "teacher_dim": 8, "num_samples": 20} | {name: value}
    with pytest.raises(ValueError, match=f"^{name}: "):
        HolisticLoss(**arguments)


def test_labels_may_be_any_numbers() -> None:
    HolisticLoss(8, 8, 2, [10**9, 0], k=1000)


@pytest.mark.parametrize(("name", "change"), [
    ("index", torch.tensor([0, 1, 2, 99])), ("index", torch.tensor([0, 1, 2, -1])), ("index", torch.rand(4)),
    ("index", [0, 1, 2, 3]), ("index", torch.zeros(0, dtype=torch.long)), ("student_embedding", torch.randn(4, 7)),
    ("teacher_embedding", torch.randn(3, 8)), ("student_logits", torch.ones(4, 5).long()), ("teacher_logits", None),
])  # fmt: skip
def test_a_wrong_batch_is_named(name: str, change: object) -> None:
    loss = HolisticLoss(8, 8, 20)
    batch = {
        "student_embedding": torch.randn(4, 8), "student_logits": torch.randn(4, 5),
        "teacher_embedding": torch.randn(4, 8), "teacher_logits": torch.randn(4, 5), "index": torch.arange(4),
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"^{name}: "):
        loss(**batch | {name: change})

"""Student, method and teacher as one module: one contract for every method."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import hkd
from hkd.distiller import Distiller
from hkd.methods import Method, Setup, methods
from hkd.methods.base import NoConfig
from hkd.types import Batch, ModelOutput
from tests.models.test_external import Own
from tests.reference.methods import lskd

N, C, B = 64, 4, 16
LABELS = torch.arange(N) % C
METHODS = [*hkd.list_methods(), None]
WITH_STAGE = ["ab", "fsp", "ft", "sskd"]


@pytest.fixture(autouse=True)
def progress_is_not_the_matter() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*set_epoch was not called")
        yield


def build(method: str | None, **options: Any) -> Distiller:
    torch.manual_seed(0)
    student, teacher = hkd.create_model("resnet8", C), hkd.create_model("wrn_16_1", C)
    made = hkd.Distiller(student, teacher, method, **{"num_samples": N, "labels": LABELS, "image_size": 16} | options)
    if made.needs_strong:  # a batch's second view is its mirror image here

        def with_strong(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            return args, {"strong": args[0].flip(3)} | kwargs

        made.register_forward_pre_hook(with_strong, with_kwargs=True)
    return made


def batch_of(index: Tensor | None = None, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    index = torch.arange(B) if index is None else index
    image = torch.randn(len(index), 3, size, size, generator=torch.Generator().manual_seed(int(index.sum())))
    return image, LABELS[index], index


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_is_the_sum_of_the_weighted_terms(method: str | None) -> None:
    distiller = build(method, kd_weight=0.7, ce_weight=0.3, method_weight=None if method in ("kd", None) else 2.0)
    for epoch in range(max(distiller.first_epoch, -1), 2):
        distiller.set_epoch(epoch, 2)
        out = distiller(*batch_of())
        assert all(term.ndim == 0 and term.isfinite() for term in out.terms.values())
        assert out.loss == sum(distiller.weighted(out.terms).values())
        assert out.loss.requires_grad and out.loss.ndim == 0
        if epoch < 0:
            assert out.logits is None
            assert out.loss == sum(out.terms.values()), "an initialisation has its terms alone"
        else:
            assert out.logits is not None and out.logits.shape == (B, C)
            assert set(out.terms) >= {"ce", "kd"}


@pytest.mark.parametrize("method", [name for name in METHODS if name != "kd"])
def test_the_loss_is_that_of_the_equation(method: str | None) -> None:
    gamma, alpha, beta, temperature = 0.3, 0.7, 2.0, 3.0
    weights = {"ce_weight": gamma, "kd_weight": alpha, "kd_temperature": temperature}
    distiller = build(method, **weights, **({} if method is None else {"method_weight": beta})).double()
    other = copy.deepcopy(distiller)
    ramp = 5 / 20 if method in ("dkd", "reviewkd", "rld") else 1.0
    distiller.set_epoch(4, 30)
    image, label, index = batch_of()
    image = image.double()
    out = distiller(image, label, index)

    student, teacher = other.student(image), other.teachers[0](image)
    log_p = student.logits.log_softmax(dim=1)
    expected = -gamma * sum(log_p[row, label[row]] for row in range(B)) / B
    p_s, p_t = ((logits / temperature).softmax(dim=1) for logits in (student.logits, teacher.logits))
    expected += alpha * temperature**2 * (p_t * (p_t / p_s).log()).sum() / B
    if other.method is not None:
        batch = Batch(image, label, index, strong=image.flip(3))
        expected += ramp * beta * sum(other.method(batch, student, teacher).values())
    assert out.loss.dtype == torch.float64
    torch.testing.assert_close(out.loss, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_open_are_the_published_ones(method: str | None) -> None:
    distiller = build(method)
    if method is None:
        assert distiller.weights == (1.0, 0.0, 0.0)
    else:
        assert distiller.weights == methods[method].weights
    assert ("kd" in distiller(*batch_of()).terms) == bool(distiller.weights.kd)


def test_a_term_of_weight_0_is_not_computed() -> None:
    distiller = build("hkd", method_weight=0.0)
    assert distiller.method is not None
    before = state(distiller.method)
    assert not distiller.needs_teacher
    assert set(distiller(*batch_of()).terms) == {"ce"}
    assert same(state(distiller.method), before)
    with_kd = build(None, kd_weight=1.0)
    assert with_kd.needs_teacher and set(with_kd(*batch_of()).terms) == {"ce", "kd"}


def test_a_student_alone() -> None:
    student = hkd.create_model("resnet8", C)
    for distiller in (hkd.Distiller(student), hkd.Distiller(student, None, None, num_samples=N)):
        assert distiller.teacher is None and not distiller.needs_teacher
        image, label, _ = batch_of()
        out = distiller(image, label)
        torch.testing.assert_close(out.loss, F.cross_entropy(student(image).logits, label))


@pytest.mark.parametrize("method", ["kd", "rkd", "hkd", None])
def test_images_without_a_label_have_no_cross_entropy(method: str | None) -> None:
    image, label, index = batch_of()
    unlabelled = label.clone()
    unlabelled[::2] = -1
    distiller, reference = build(method), build(method)
    out, whole = distiller(image, unlabelled, index), reference(image, label, index)
    logits = whole.logits
    assert logits is not None
    torch.testing.assert_close(out.terms["ce"], F.cross_entropy(logits[1::2], label[1::2]))
    assert all(torch.equal(out.terms[name], whole.terms[name]) for name in out.terms if name != "ce")
    assert build(method)(image, torch.full_like(label, -1), index).terms["ce"] == 0


def test_the_teachers_output_may_be_given() -> None:
    image, label, index = batch_of()
    distiller, again = build("hkd", kd_weight=1.0), build("hkd", kd_weight=1.0)
    with torch.no_grad():
        output = again.teachers[0](image)
    again.teachers[0].forward = None  # type: ignore[assignment]
    assert distiller(image, label, index).loss == again(image, label, index, output).loss
    assert build("hkd")(Batch(*batch_of())).loss == build("hkd")(*batch_of()).loss


# -- what is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_parameters_are_what_is_trained(method: str | None) -> None:
    distiller = build(method, kd_weight=1.0)
    teacher = distiller.teachers[0]
    trained = [*distiller.student.parameters(), *([] if distiller.method is None else distiller.method.parameters())]
    assert [id(p) for p in distiller.parameters()] == [id(p) for p in trained]
    assert {name.split(".")[0] for name in distiller.state_dict()} <= {"student", "method"}
    before = state(teacher)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01, weight_decay=0.1)
    reached = set()
    for epoch in range(max(distiller.first_epoch, -1), 1):
        distiller.set_epoch(epoch, 1)
        distiller(*batch_of()).loss.backward()
        reached |= {id(p) for p in distiller.parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    if distiller.weights.method > 0:
        # simkd's student classifies with what it took over from the teacher.
        student = distiller.student
        idle = [*student.network.fc.parameters(), *student.classifier.parameters()] if method == "simkd" else []
        assert reached == {id(p) for p in trained} - {id(p) for p in idle}
    assert same(state(teacher), before)
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


def test_the_teacher_follows_the_module() -> None:
    distiller = build("hkd", kd_weight=1.0)
    assert distiller.double() is distiller
    assert {p.dtype for p in distiller.teachers[0].parameters()} == {torch.float64}
    image, label, index = batch_of()
    assert distiller(image.double(), label, index).loss.dtype == torch.float64

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.distiller = distiller

    Outer().to("meta")
    assert {p.device.type for p in distiller.teachers[0].parameters()} == {"meta"}
    assert {p.device.type for p in distiller.parameters()} == {"meta"}


def test_the_teacher_stays_frozen_and_in_evaluation_mode() -> None:
    distiller = build("kd")
    teacher = distiller.teachers[0]
    distiller.train().requires_grad_(True)
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    before = state(teacher)
    teacher.train()  # as a Lightning module does that holds it, too
    distiller(*batch_of())
    assert same(state(teacher), before), "running statistics of batch norms included"


def test_a_student_in_evaluation_mode_is_trained_nevertheless() -> None:
    student = hkd.create_model("resnet8", C).eval()
    assert hkd.Distiller(student).training
    assert all(module.training for module in student.modules())


@pytest.mark.parametrize("method", ["hkd", "crd", "sskd", "ft"])
def test_copies_share_nothing(method: str) -> None:
    distiller = build(method)
    distiller(*batch_of()).loss.backward()
    for other in (copy.deepcopy(distiller), pickle.loads(pickle.dumps(distiller))):
        mine, theirs = (
            {t.data_ptr() for m in (d, *d.teachers) for t in (*m.parameters(), *m.buffers())}
            for d in (distiller, other)
        )
        assert not mine & theirs
        if method == "sskd":
            assert other.method.networks == (other.student, other.teacher)
        before = state(distiller)
        again = other(*batch_of())
        assert same(state(distiller), before)
        again.loss.backward()
    assert distiller(*batch_of()).loss == again.loss


@pytest.mark.parametrize("method", METHODS)
def test_the_state_survives_a_round_trip(method: str | None, tmp_path: Any) -> None:
    distiller, other = build(method), build(method)
    first, second = batch_of(), batch_of(torch.arange(8, 24))
    distiller(*first).loss.backward()
    torch.save(distiller.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other(*second).loss == distiller(*second).loss


def test_a_skipped_step_leaves_no_trace_in_the_memories() -> None:
    distiller = build("hkd")
    assert distiller.method is not None
    before = state(distiller.method)
    distiller(*batch_of())
    assert not same(state(distiller.method), before)
    distiller.undo_step()
    assert same(state(distiller.method), before)
    build("kd").undo_step()


# -- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_gives_logits_and_the_cross_entropy(method: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    distiller = build(method, kd_weight=1.0)
    distiller(*batch_of())
    distiller.eval()
    before = state(distiller)
    distiller.teachers[0].forward = None  # type: ignore[assignment]  (it is not run)
    monkeypatch.setattr("hkd.distiller.world_size", None)
    image, label, index = batch_of()
    with torch.no_grad():
        out = distiller(image, label, index)
        expected = distiller.student(image).logits
    assert torch.equal(out.logits, expected)
    assert set(out.terms) == {"ce"}
    torch.testing.assert_close(out.loss, F.cross_entropy(expected, label))
    for strange in (None, index + N, index.float()):
        assert torch.equal(distiller(image, label, strange).logits, expected)
    assert same(state(distiller), before)
    distiller.set_epoch(distiller.first_epoch, 1)
    assert distiller(image, label).logits is not None, "in an initialisation, too"


# -- progress ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", WITH_STAGE)
def test_epochs_below_0_are_the_initialisation(method: str) -> None:
    distiller = build(method, init_epochs=3)
    assert distiller.initialisation is not None and distiller.first_epoch == -3
    distiller.set_epoch(-3, 5)
    assert distiller.in_initialisation and distiller.needs_teacher
    assert not distiller.trains_all_parameters
    out = distiller(*batch_of())
    assert out.logits is None and not {"ce", "kd"} & out.terms.keys()
    out.loss.backward()
    trained = any(p.grad is not None for p in distiller.student.parameters())
    assert trained == distiller.initialisation.with_student
    distiller.set_epoch(0, 5)
    assert not distiller.in_initialisation
    assert distiller(*batch_of()).logits is not None
    with pytest.raises(hkd.RequestError, match=r"^epoch: expected -3 or more; got -4$"):
        distiller.set_epoch(-4, 5)
    without = build(method, init_epochs=0)
    assert without.initialisation is None and without.first_epoch == 0
    with pytest.raises(hkd.RequestError, match=r"^epoch: expected 0 or more; got -1$"):
        without.set_epoch(-1, 5)


@pytest.mark.parametrize("method", ["kd", "hkd"])
def test_the_kd_term_of_standardised_logits(method: str) -> None:
    distiller = build(method, kd_weight=0.7, kd_temperature=2.0, kd_standardise=True)
    image, label, index = batch_of()
    teacher = distiller.teachers[0](image)
    out = distiller(image, label, index)
    expected = lskd(out.logits.double(), teacher.logits.double(), 2.0)
    torch.testing.assert_close(out.terms["kd"].double(), expected, rtol=1e-5, atol=1e-6)


def test_a_warm_up_raises_the_methods_weight() -> None:
    distiller = build("dkd", warmup_epochs=4, method_weight=2.0, kd_weight=1.0)
    terms = distiller(*batch_of()).terms
    for epoch, part in ((0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (9, 1.0)):
        distiller.set_epoch(epoch, 10)
        weighted = distiller.weighted(terms)
        assert weighted["ce"] == terms["ce"] and weighted["kd"] == terms["kd"]
        for name in ("target", "nontarget"):
            torch.testing.assert_close(weighted[name], part * 2.0 * terms[name])
    plain = build("hkd")
    plain.set_epoch(0, 10)
    assert plain.weighted({"x": torch.tensor(1.0)})["x"] == 3.0


def test_a_method_is_told_the_progress() -> None:
    distiller = build("ab", init_epochs=2)
    assert distiller.method.progress is None
    for epoch in range(-2, 3):
        distiller.set_epoch(epoch, 3)
        assert distiller.method.progress == (epoch, 3)


def test_the_student_lowers_the_loss_of_ctkd_and_its_temperature_raises_it() -> None:
    distiller = build("ctkd")
    before = distiller(*batch_of())
    before.loss.backward()
    for value, raises in ((distiller.student.fc.bias, False), (distiller.method.theta, True)):
        assert value.grad.any()
        kept = value.detach().clone()
        with torch.no_grad():
            value.sub_(1e-2 * value.grad)
            after = distiller(*batch_of())
            value.copy_(kept)
        assert (after.loss > before.loss) == raises


@pytest.mark.parametrize(
    ("method", "stage"),
    [
        ("ab", "an initialisation of 30 epochs"),
        ("dkd", "a warm-up of 20 epochs"),
        ("ctkd", "terms that change with the epoch"),
    ],
)
def test_a_loop_that_forgets_the_epoch_is_warned_once(method: str, stage: str) -> None:
    distiller = build(method)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        distiller(*batch_of())
        distiller(*batch_of())
    assert [str(w.message) for w in caught] == [
        f"{method.upper()} has {stage}, and set_epoch was not called: "
        "for epoch in range(distiller.first_epoch, epochs): distiller.set_epoch(epoch, epochs)"
    ]
    told = build(method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told.set_epoch(0, 1)
        told(*batch_of())
        build("rkd")(*batch_of())


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        (None, {}, True), ("kd", {}, True), ("rkd", {}, True), ("rkd", {"method_weight": 0.0}, True),
        ("hkd", {}, True), ("hkd", {"method_weight": 0.0}, False), ("reviewkd", {}, True),
        ("ab", {"method_weight": 1.0, "init_epochs": 0}, True), ("ab", {"method_weight": 1.0}, False),
        ("fsp", {"init_epochs": 0}, True), ("fsp", {}, False), ("ft", {"init_epochs": 0}, False),
        ("sskd", {"init_epochs": 0}, False),
    ],
)  # fmt: skip
def test_whether_every_step_trains_all_parameters(method: str | None, options: dict[str, Any], expected: bool) -> None:
    assert build(method, **options).trains_all_parameters == expected


def test_any_parameter_of_a_foreign_student_may_be_idle() -> None:
    assert not hkd.Distiller(Own(C), image_size=32).trains_all_parameters


# -- other people's networks ------------------------------------------------------------------------------------------


def foreign(name: str) -> nn.Module:
    if name == "timm":
        return timm.create_model("resnet10t", num_classes=C)
    return Own(C) if name == "own" else torchvision.models.resnet18(num_classes=C)


@pytest.mark.parametrize(("student", "teacher"), [("own", "torchvision"), ("timm", "own"), ("torchvision", "timm")])
def test_foreign_networks(student: str, teacher: str) -> None:
    torch.manual_seed(0)
    mine, theirs = foreign(student), foreign(teacher)
    distiller = hkd.Distiller(mine, theirs, "hkd", labels=LABELS, kd_weight=1.0, image_size=64)
    before, frozen = state(mine), state(theirs)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    batch = batch_of(size=64)
    distiller(*batch).loss.backward()
    optimizer.step()
    assert not same(state(mine), before), "it is trained in place"
    assert same(state(theirs), frozen)
    other = copy.deepcopy(distiller)
    assert other(*batch).loss == distiller(*batch).loss
    assert other.student.module is not mine


# -- wrong use --------------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"method": "hdk"}, "method: unknown name 'hdk'; did you mean hkd"),
    ({"method": methods}, "method: expected a name or a method that is built; got "),
    ({"kk": 3}, "holistic: unknown name 'kk'"),
    ({"k": 0}, "holistic.k: expected 1 or more; got 0"),
    ({"method": "rkd", "labels": LABELS[:5]}, r"labels: expected shape (64,); got (5,)"),
    ({"num_samples": None, "labels": LABELS[None]}, r"labels: expected shape (N,); got (1, 64)"),
    ({"num_samples": 0, "labels": None}, "num_samples: expected 1 or more; got 0"),
    ({"num_samples": None, "labels": None}, "holistic.num_samples: expected 2 or more"),
    ({"kd_standardise": 1}, "kd_standardise: expected bool; got 1"),
    ({"kd_weight": -1.0}, "kd_weight: expected 0 or more; got -1.0"),
    ({"ce_weight": float("nan")}, "ce_weight: expected 0 or more; got nan"),
    ({"method_weight": "much"}, "method_weight: expected float or nothing; got 'much'"),
    ({"kd_temperature": 0.0}, "kd_temperature: expected a number above 0; got 0.0"),
    ({"ce_weight": 0.0, "kd_weight": 0.0, "method_weight": 0.0}, "method_weight: all weights are 0"),
    ({"method": "kd", "method_weight": 1.0}, "method_weight: is of a method's terms beside CE and KD"),
    ({"method": None, "method_weight": 1.0}, "method_weight: is of a method's terms beside CE and KD"),
    ({"method": "kd", "temperature": 2.0}, "temperature: expected with a method that has settings"),
    ({"method": None, "k": 2}, "k: expected with a method that has settings"),
    ({"teacher": None}, "teacher: expected the network that the method learns from; got none"),
    ({"teacher": None, "method": None, "kd_weight": 1.0}, "teacher: expected the network that the KD term learns"),
    ({"teacher": Own(7), "kd_weight": 1.0, "image_size": 32}, "teacher: has a 7-class head, and the student a 4-class"),
    ({"teacher": Own(7), "method": "dkd", "image_size": 32}, "teacher: has a 7-class head, and the student a 4-class"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_requests_say_what_is_wrong_in_one_line(options: dict[str, Any], message: str) -> None:
    student, teacher = hkd.create_model("resnet8", C), hkd.create_model("resnet8", C)
    arguments = {"teacher": teacher, "num_samples": N, "labels": LABELS, "image_size": 16} | options
    with pytest.raises(hkd.RequestError) as caught:
        hkd.Distiller(student, **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_teacher_with_other_classes_may_teach_what_it_sees() -> None:
    distiller = hkd.Distiller(hkd.create_model("resnet8", C), hkd.create_model("resnet8", 7), "rkd", image_size=16)
    assert distiller(*batch_of()).loss.isfinite()


def test_a_network_does_not_teach_itself() -> None:
    for network in (hkd.create_model("resnet8", C), Own(C)):
        with pytest.raises(hkd.RequestError, match="^student: shares parameters with the teacher"):
            hkd.Distiller(network, network, "kd")
        assert all(p.requires_grad for p in network.parameters()), "it is as it was"


def test_methods_that_are_built() -> None:
    student, teacher = hkd.create_model("resnet8", C), hkd.create_model("resnet8", C)
    rkd = hkd.create_method("rkd", student=student, teacher=teacher, num_samples=N)
    assert hkd.Distiller(student, teacher, rkd).weights == methods["rkd"].weights
    with pytest.raises(hkd.RequestError, match="^k: expected with a method"):
        hkd.Distiller(student, teacher, rkd, k=3)
    with pytest.raises(hkd.RequestError, match="^teacher: expected the network that the method learns from"):
        hkd.Distiller(student, None, rkd)
    kd = hkd.create_method("kd", student=student, teacher=teacher, num_samples=N)
    with pytest.raises(hkd.RequestError, match="^method: expected kd by its name"):
        hkd.Distiller(student, teacher, kd)


class Clash(Method[NoConfig]):
    """Its term has the name of another."""

    def __init__(self, setup: Setup, config: NoConfig) -> None:
        super().__init__(setup, config)

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        return {"ce": student.logits.sum()}


def test_a_term_with_the_name_of_another_is_refused() -> None:
    student, teacher = hkd.create_model("resnet8", C), hkd.create_model("resnet8", C)
    clash = Clash(Setup(student.info, teacher.info, N, None), NoConfig())
    with pytest.raises(hkd.RequestError, match="^method: Clash has a term ce, which is the objective's$"):
        hkd.Distiller(student, teacher, clash)(*batch_of())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, r"^label: expected \(B,\) classes beside the images; got none$"),
        ({"index": None}, r"^index: expected \(B,\) positions of the images in the training set; got none$"),
        ({"image": torch.zeros(B, 3, 16, 16).byte()}, "^image: expected floats, normalised; got torch.uint8$"),
        ({"label": LABELS[:3]}, r"^label: expected 16 integers, one for each image; got torch.int64 of shape \(3,\)$"),
        ({"index": torch.rand(B)}, r"^index: expected 16 integers, .*; got torch.float32 of shape \(16,\)$"),
        ({"label": torch.eye(B)[:, :C]}, r"^label: expected 16 integers, .*; got torch.float32 of shape \(16, 4\)$"),
        ({"label": LABELS[:B] + 1}, "^label: expected -1 to 3; got 4$"),
        ({"label": LABELS[:B] - 2}, "^label: expected -1 to 3; got -2$"),
        ({"index": torch.arange(B) + N - 1}, "^index: expected 0 to 63; got 78$"),
        ({"index": torch.arange(B) - 1}, "^index: expected 0 to 63; got -1$"),
    ],
)  # fmt: skip
def test_wrong_batches_say_what_is_wrong_in_one_line(change: dict[str, Any], message: str) -> None:
    image, label, index = batch_of()
    with pytest.raises(hkd.RequestError, match=message):
        build("hkd")(**{"image": image, "label": label, "index": index} | change)


def test_a_batch_near_the_neighbourhoods_is_warned_of_at_the_first_step() -> None:
    distiller, larger = build("hkd", k=9), build("hkd", k=8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        distiller(*batch_of())
        distiller(*batch_of())
        larger(*batch_of())
        larger(*batch_of(torch.arange(3)))  # the last batch of an epoch may be small
    assert len(caught) == 1
    assert str(caught[0].message).startswith("k: neighbourhoods of 9 images in a graph of 16; use batches of 18 images")


def test_small_types_of_integers_are_taken() -> None:
    image, label, index = batch_of()
    assert build("hkd")(image, label.to(torch.uint8), index.int()).loss == build("hkd")(image, label, index).loss

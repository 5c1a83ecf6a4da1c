"""Several teachers: the KD term of all, and an instance of the method for each."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hkd
from hkd.methods import methods
from hkd.methods.base import Initialisation, Method, NoConfig, Setup
from hkd.methods.kd import kd_loss, kd_loss_of_teachers, mean_logits, standardised
from hkd.methods.of_teachers import READ, OfTeachers, seed_of
from hkd.types import Batch, ModelOutput
from tests.reference import kd as reference

N, C, B = 64, 4, 16
LABELS = torch.arange(N) % C
NAMES = [name for name in hkd.list_methods() if methods[name].needs <= READ and name != "kd"]
OTHERS = [name for name in hkd.list_methods() if not methods[name].needs <= READ]


def teachers(classes: int = C) -> list[nn.Module]:
    torch.manual_seed(1)
    made = [hkd.create_model("wrn_16_1", C), hkd.create_model("vgg8", classes)]
    with torch.no_grad():  # of other confidence, too
        for network, scale in zip(made, (3.0, 0.5), strict=True):
            next(layer for layer in network.modules() if isinstance(layer, nn.Linear)).weight.mul_(scale)
    return made


def build(method: str | Method[Any], *taught: nn.Module, alone: bool = False, **options: Any) -> hkd.Distiller:
    torch.manual_seed(0)
    student = hkd.create_model("resnet8", C)
    given = {"num_samples": N, "labels": LABELS, "image_size": 16} | options
    made = hkd.Distiller(student, taught[0] if alone else list(taught), method, **given)
    made.set_epoch(1, 4)
    return made


def batch() -> Batch:
    index = torch.arange(B)
    return Batch(torch.randn(B, 3, 16, 16, generator=torch.Generator().manual_seed(0)), LABELS[index], index)


# -- the KD term ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("standardise", [False, True])
def test_the_kd_term_of_several_teachers(temperature: float, standardise: bool) -> None:
    torch.manual_seed(0)
    taught = [scale * torch.randn(5, 7) + shift for scale, shift in ((1.0, 0.0), (4.0, 3.0), (0.2, -9.0))]
    student = torch.randn(5, 7, requires_grad=True)
    value = kd_loss_of_teachers(student, taught, temperature, standardise=standardise)
    (gradient,) = torch.autograd.grad(value, student)
    exact = student.detach().double().requires_grad_()
    mean = reference.mean_logits([logits.double() for logits in taught], standardise)
    prepared = exact
    if standardise:
        prepared = (exact - exact.mean(dim=1, keepdim=True)) / exact.std(dim=1, keepdim=True)
    expected = reference.kd(prepared, mean, temperature)
    (exact_gradient,) = torch.autograd.grad(expected, exact)
    torch.testing.assert_close(mean_logits(taught, standardise=standardise).double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=1e-6)


def test_a_teacher_of_large_logits_counts_no_more_than_another() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(6, 9), torch.randn(6, 9)
    directions = [standardised(mean_logits([a, scale * b])) for scale in (1.0, 100.0)]
    torch.testing.assert_close(*directions, rtol=1e-4, atol=1e-4)
    same = mean_logits([a, a])
    torch.testing.assert_close(same, a - a.mean(dim=1, keepdim=True), rtol=1e-5, atol=1e-5)
    flat = mean_logits([torch.full((6, 9), 7.0), b])
    assert flat.isfinite().all() and (flat.argmax(dim=1) == b.argmax(dim=1)).all()


def test_one_teacher_s_logits_are_taken_as_they_are() -> None:
    student, teacher = torch.randn(5, 7), 9 * torch.randn(5, 7)
    for standardise in (False, True):
        alone = kd_loss(student, teacher, 4.0, standardise=standardise)
        assert torch.equal(kd_loss_of_teachers(student, [teacher], 4.0, standardise=standardise), alone)


# -- the method -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", NAMES)
def test_one_teacher_in_a_list_is_one_teacher(method: str) -> None:
    outs = [build(method, teachers()[0], alone=alone, kd_weight=0.5)(batch()) for alone in (True, False)]
    assert torch.equal(outs[0].loss, outs[1].loss)


@pytest.mark.parametrize("method", NAMES)
def test_terms_are_means_over_teachers_of_the_method_s_own(method: str) -> None:
    distiller = build(method, *teachers(), kd_weight=0.5)
    assert isinstance(distiller.method, OfTeachers)
    instances = copy.deepcopy(distiller.method.instances)
    taught = batch()
    state = torch.random.get_rng_state()
    out = distiller(taught)
    torch.random.set_rng_state(state)
    student = build(method, *teachers()).student(taught.image)
    outputs = [teacher(taught.image) for teacher in distiller.teachers]
    each = [instance(taught, student, output) for instance, output in zip(instances, outputs, strict=True)]
    for name in each[0]:
        expected = (each[0][name].double() + each[1][name].double()) / 2
        torch.testing.assert_close(out.terms[name].double(), expected, rtol=1e-5, atol=1e-6)
    mean = mean_logits([output.logits for output in outputs])
    torch.testing.assert_close(out.terms["kd"], kd_loss(student.logits, mean, 4.0))
    out.loss.backward()
    assert distiller.trains_all_parameters
    assert all(parameter.grad is not None for parameter in distiller.parameters())
    assert not any(parameter.requires_grad for teacher in distiller.teachers for parameter in teacher.parameters())


@pytest.mark.parametrize("method", NAMES)
def test_what_a_method_is_is_kept(method: str) -> None:
    several, one = build(method, *teachers()), build(method, teachers()[0], alone=True)
    assert several.method is not None and one.method is not None
    for name in ("config", "needs", "weights", "warmup_epochs", "ramp", "progress", "always_trains_all", "revision"):
        assert getattr(several.method, name) == getattr(one.method, name), name
    assert several.weights == one.weights


@pytest.mark.parametrize("method", ["hkd", "crd"])
def test_memories_and_draws_are_each_teacher_s_own(method: str) -> None:
    distiller = build(method, *teachers(), num_negatives=8)
    assert isinstance(distiller.method, OfTeachers)
    first, second = distiller.method.instances
    samplers = [next(m for m in part.modules() if hasattr(m, "draws")) for part in (first, second)]
    assert [sampler.seed for sampler in samplers] == [0, 2**32]
    distiller(batch())
    before = {name: value.clone() for name, value in distiller.state_dict().items() if "method" in name}
    distiller(batch())
    now = distiller.state_dict()
    changed = {name.split(".")[2] for name in before if not torch.equal(before[name], now[name])}
    assert changed == {"0", "1"}
    distiller.undo_step()
    assert all(torch.equal(before[name], distiller.state_dict()[name]) for name in before)


def test_seeds_of_teachers_are_no_other_run_s() -> None:
    assert seed_of(7, 0) == 7 and len({seed_of(seed, n) for seed in (0, 1, 2**32 - 1) for n in range(3)}) == 9
    assert 0 <= seed_of(2**64 - 1, 2) < 2**64


def test_copies_and_pickles() -> None:
    distiller = build("hkd", *teachers())
    copies = [copy.deepcopy(distiller), pickle.loads(pickle.dumps(distiller))]
    losses = [one(batch()).loss for one in (distiller, *copies)]
    assert losses[0] == losses[1] == losses[2]


def test_outputs_may_be_given() -> None:
    taught = teachers()
    live, given = build("hkd", *taught, kd_weight=1.0), build("hkd", *taught, kd_weight=1.0)
    with torch.no_grad():
        outputs = [teacher(batch().image) for teacher in given.teachers]
    given.release_teachers()
    assert torch.equal(live(batch()).loss, given(batch(), teacher=outputs).loss)
    with pytest.raises(hkd.RequestError, match="^teacher: expected the outputs of 2 teachers; got 1$"):
        given(batch(), teacher=outputs[0])


def test_methods_that_are_built() -> None:
    student, taught = hkd.create_model("resnet8", C), teachers()
    built = hkd.create_method("rkd", student=student, teacher=taught, num_samples=N, image_size=16)
    out = hkd.Distiller(student, taught, built, image_size=16, num_samples=N)(batch())
    assert out.terms.keys() > {"ce"}
    with pytest.raises(hkd.RequestError, match="^method: expected one for as many teachers, 1; got one for 2$"):
        hkd.Distiller(student, taught[0], built, image_size=16)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", OTHERS)
def test_methods_that_read_more_are_refused_in_one_line(method: str) -> None:
    with pytest.raises(hkd.RequestError, match=rf"^method: {methods[method].__name__} needs [a-z ]+; several") as error:
        build(method, *teachers())
    assert "\n" not in str(error.value)


class Staged(Method[NoConfig]):
    needs = READ

    def __init__(self, setup: Setup, config: NoConfig) -> None:
        super().__init__(setup, config)
        self.initialisation = Initialisation(1, lambda *_: {})

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        return {"staged": student.logits.sum()}


def test_a_stage_before_the_training_is_refused() -> None:
    student, taught = hkd.create_model("resnet8", C), teachers()
    setup = Setup(student.info_at(16), taught[0].info_at(16), N, LABELS)
    with pytest.raises(hkd.RequestError, match="^method: Staged has a stage before the training; several"):
        OfTeachers(setup, [Staged(setup, NoConfig()), Staged(setup, NoConfig())])


def test_wrong_teachers_are_refused() -> None:
    first = teachers()[0]
    with pytest.raises(hkd.RequestError, match="^teacher: the same network is passed twice$"):
        build("hkd", first, first)
    with pytest.raises(hkd.RequestError, match="^teacher: has a 7-class head, and the student a 4-class head$"):
        build("hkd", *teachers(7), kd_weight=1.0)
    with pytest.raises(hkd.RequestError, match=r"^teacher: expected a network or a list of them; got 'vgg8'$"):
        build("hkd", first, "vgg8")
    with pytest.raises(hkd.RequestError, match="^teacher: expected the network that the method learns from; got none$"):
        build("hkd")

"""One contract for every method in the registry."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

import hkd
from hkd.distiller import Distiller
from hkd.errors import IncompatibleError
from hkd.methods import Method, Setup, methods
from hkd.methods.base import NEEDS, SHOWS, NoConfig
from hkd.options import check_fields
from hkd.runtime.teacher_cache import cacheable
from hkd.types import Batch, ModelOutput

N, C = 40, 4


@pytest.fixture
def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return hkd.create_model("resnet8", C), hkd.create_model("wrn_16_1", C).eval().requires_grad_(False)


def build(name: str, networks: tuple[nn.Module, nn.Module], **config: object) -> Method:
    labels = torch.arange(N) % C
    return hkd.create_method(
        name, student=networks[0], teacher=networks[1], num_samples=N, labels=labels, image_size=16, **config
    )


def learner(method: Method, student: nn.Module) -> nn.Module:
    """What sees the images in the student's place."""
    return student if method.predictor is None else method.predictor


def batches() -> Iterator[Batch]:
    """Two full batches and an odd last one."""
    for index in (torch.arange(16), torch.arange(16, 32), torch.arange(32, 35)):
        image = torch.randn(len(index), 3, 16, 16)
        yield Batch(image, index % C, index, strong=image.roll(3, dims=3) / 2)


@pytest.mark.parametrize("name", hkd.list_methods())
def test_terms_are_finite_scalars_that_reach_the_student_alone(name: str, networks: tuple) -> None:
    student, teacher = networks
    method = build(name, networks)
    teacher.requires_grad_(True)  # even a teacher that could learn gets no gradient
    for batch in batches():
        terms = method(batch, learner(method, student)(batch.image), teacher(batch.image))
        assert terms
        assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())
        sum(terms.values()).backward()
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    reached = {n for n, p in method.named_parameters() if p.grad is not None}
    if method.initialisation is not None:
        reached |= trained_by_initialisation(method, networks)
    assert reached == {n for n, _ in method.named_parameters()}


def trained_by_initialisation(method: Method, networks: tuple[nn.Module, nn.Module]) -> set[str]:
    """Runs a step of the stage. Returns which of the method's parameters it reaches."""
    student, teacher = networks
    for module in (student, method):
        module.zero_grad()
    for batch in batches():
        stage = method.initialisation
        terms = stage(
            batch, learner(method, student)(batch.image) if stage.with_student else None, teacher(batch.image)
        )
        assert terms and all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())
        sum(terms.values()).backward()
    assert any(p.grad is not None for p in student.parameters()) == stage.with_student
    assert all(p.grad is None for p in teacher.parameters())
    return {n for n, p in method.named_parameters() if p.grad is not None}


PAIRS = {
    "wider and deeper": ("resnet8", "ResNet50", 32),
    "another family": ("ShuffleV2", "vgg8", 32),
    "other resolutions": ("vgg8", "resnet8x4", 32),
    "wrapped": ("torchvision:resnet18", "timm:resnet26", 64),
}
NEED_STAGES = ("fitnet", "at", "sp", "vid", "nst", "ab", "ft", "fsp", "reviewkd")


@pytest.fixture(scope="module")
def wired() -> dict[str, tuple[nn.Module, nn.Module, Batch, ModelOutput]]:
    """Two networks, a batch and what the teacher sees in it, for each kind of pair."""
    torch.manual_seed(0)
    found = {}
    for title, (student, teacher, size) in PAIRS.items():
        s, t = hkd.create_model(student, C), hkd.create_model(teacher, C).eval()
        image, index = torch.randn(4, 3, size, size), torch.arange(4)
        batch = Batch(image, index % C, index, strong=image.roll(3, dims=3) / 2)
        with torch.no_grad():
            found[title] = (s, t, batch, t(batch.image))
    return found


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", hkd.list_methods())
def test_methods_work_between_any_two_networks(name: str, pair: str, wired: dict) -> None:
    student, teacher, batch, seen = wired[pair]
    asked = {"num_samples": N, "labels": torch.arange(N) % C, "image_size": batch.image.shape[2]}
    if name == "fsp":
        with pytest.raises(IncompatibleError, match="fsp compares Gram matrices, so stage maps need equal numbers"):
            hkd.create_method(name, student=student, teacher=teacher, **asked)
        return
    method = hkd.create_method(name, student=student, teacher=teacher, **asked)
    student.zero_grad()
    terms = method(batch, learner(method, student)(batch.image), seen)
    total = sum(terms.values())
    total.backward()
    assert torch.isfinite(total)
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())


@pytest.mark.parametrize("name", hkd.list_methods())
def test_networks_without_stage_maps_are_told_before_training(name: str) -> None:
    student, teacher = hkd.create_model("resnet8", C), Flat()
    asked = {"student": student, "teacher": hkd.wrap_model(teacher, image_size=16), "num_samples": N, "image_size": 16}
    if name in ("sdd", "catkd", "simkd"):
        with pytest.raises(IncompatibleError, match=rf"method: {name} applies each network's classifier .* got Flat"):
            hkd.create_method(name, **asked)
        return
    if name not in NEED_STAGES:
        hkd.create_method(name, labels=torch.arange(N) % C, **asked)
        return
    with pytest.raises(IncompatibleError, match=rf"method: {name} compares \d or more stage maps.* and Flat has 0"):
        hkd.create_method(name, labels=torch.arange(N) % C, **asked)


class Flat(nn.Module):
    """A classifier without a single map."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.ReLU())
        self.head = nn.Linear(8, C)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image))


@pytest.mark.parametrize("name", hkd.list_methods())
def test_state_survives_a_round_trip(name: str, networks: tuple, tmp_path: object) -> None:
    student, teacher = networks
    method, again = build(name, networks), build(name, networks)
    for batch in batches():
        method(batch, learner(method, student)(batch.image), teacher(batch.image))
    torch.save(method.state_dict(), f"{tmp_path}/m.pt")
    again.load_state_dict(torch.load(f"{tmp_path}/m.pt", weights_only=True))
    learner(again, student).load_state_dict(learner(method, student).state_dict())
    batch = next(batches())
    outputs = learner(method, student).eval()(batch.image), teacher(batch.image)
    for (key, value), (other, restored) in zip(
        method(batch, *outputs).items(), again(batch, *outputs).items(), strict=True
    ):
        assert key == other
        torch.testing.assert_close(value, restored, rtol=0, atol=0)


@pytest.mark.parametrize("name", hkd.list_methods())
def test_bf16_autocast_is_finite(name: str, networks: tuple) -> None:
    student, teacher = networks
    method, batch = build(name, networks), next(batches())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = method(batch, learner(method, student)(batch.image), teacher(batch.image))
        if (stage := method.initialisation) is not None:
            seen = learner(method, student)(batch.image) if stage.with_student else None
            terms |= stage(batch, seen, teacher(batch.image))
    total = sum(terms.values())
    total.backward()
    assert torch.isfinite(total)
    parameters = [*learner(method, student).parameters(), *method.parameters()]
    assert all(torch.isfinite(p.grad).all() for p in parameters if p.grad is not None)


@pytest.mark.parametrize("name", hkd.list_methods())
def test_all_parameters_are_trained(name: str, networks: tuple) -> None:
    method = build(name, networks)
    trained = {id(p) for p in Distiller(*networks, "kd" if name == "kd" else method).parameters()}
    assert all(id(p) in trained for p in [*method.parameters(), *networks[0].parameters()])


@pytest.mark.parametrize("name", hkd.list_methods())
def test_a_method_says_what_it_is(name: str) -> None:
    kind = methods[name]
    assert kind.__doc__ and "et al." in kind.__doc__
    assert bool(kind.Config.__dataclass_fields__) == bool(kind.settings) or name == "kd", "kd's is --kd-temperature"
    assert kind.needs <= NEEDS
    assert kind.revision >= 1
    check_fields(kind.Config())
    for field in fields(kind.Config):
        assert "help" in field.metadata
        numeric = is_number(field.default) or field.default is None  # None stands for another number
        assert bool(field.metadata["range"]) == numeric, f"{field.name} has a range"


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize("name", hkd.list_methods())
def test_settings_out_of_their_ranges_and_types_are_refused_by_name(name: str, networks: tuple) -> None:
    kind = methods[name]
    for field in fields(kind.Config):
        outside = {"ge": -1, "gt": 0, "le": 1, "lt": 0}
        wrong = [bound + outside[end] for end, bound in field.metadata["range"].items()]
        if field.metadata["range"]:
            wrong += [float("nan"), float("inf"), True]
        if field.default is not None:
            wrong.append(None)
        for value in [*wrong, "many"]:
            with pytest.raises(hkd.RequestError, match=rf"{kind.settings or name}\.{field.name}: expected .*; got"):
                build(name, networks, **{field.name: value})


def only(output: ModelOutput, needs: frozenset[str]) -> ModelOutput:
    """A network's output in which the rest is missing, or NaN where something must be."""

    def value(name: str) -> Tensor:
        tensor = getattr(output, name)
        return tensor if name in needs else torch.full_like(tensor, torch.nan)

    def maps(name: str) -> tuple[Tensor, ...]:
        return getattr(output, name) if name in needs else ()

    pooled = output.pooled if "features" in needs else torch.full_like(output.pooled, torch.nan)
    return ModelOutput(value("logits"), value("embedding"), maps("features"), maps("preactivations"), pooled)


NETWORKS = SHOWS | {"classifier"}
"""What is read of the networks themselves."""


READS_ALL = {"hkd2": {"terms": "all"}}
"""Settings under which a method reads everything that it names, where its defaults do not."""


def all_terms(name: str, networks: tuple, seen: Callable[[ModelOutput], ModelOutput], run: bool) -> dict[str, Tensor]:
    """The terms of a method's initialisation and training, with what it is shown of the teacher.

    Args:
        seen: what remains of the teacher's output.
        run: whether the method has the networks.
    """
    torch.manual_seed(3)
    student, teacher = networks
    kind = methods[name]
    setup = Setup(student.info_at(16), teacher.info_at(16), N, torch.arange(N) % C, 0, networks if run else None)
    method, batch = kind(setup, kind.Config(**READS_ALL.get(name, {}))), next(batches())
    outputs = learner(method, student)(batch.image), seen(teacher(batch.image))
    terms = dict(method(batch, *outputs))
    if (stage := method.initialisation) is not None:
        terms |= {f"initialisation {key}": value for key, value in stage(batch, *outputs).items()}
    return terms


@pytest.mark.parametrize("name", hkd.list_methods())
def test_a_method_reads_what_it_needs_of_the_teacher_and_nothing_else(name: str, networks: tuple) -> None:
    networks[0].eval()
    needs = methods[name].needs
    expected = all_terms(name, networks, lambda output: output, True)
    needed = all_terms(name, networks, lambda output: only(output, needs), bool(needs & NETWORKS))
    assert expected.keys() == needed.keys()
    for key, value in expected.items():
        assert torch.equal(value, needed[key]), f"{key} depends on what is not among {sorted(needs)}"

    for part in ({"logits"}, {"embedding"}, {"features", "preactivations"}):  # maps before their ReLU or those behind
        if part & needs:
            with suppress(IndexError):
                terms = all_terms(name, networks, lambda output, left=needs - part: only(output, left), True)
                assert any(not torch.equal(terms[key], expected[key]) for key in terms), f"no {part} is read"
    if needs & NETWORKS:
        with pytest.raises(ValueError, match="networks"):
            all_terms(name, networks, lambda output: output, False)


@pytest.mark.parametrize("name", hkd.list_methods())
def test_a_method_says_whether_all_of_it_is_trained_in_every_step(name: str, networks: tuple) -> None:
    method, batch = build(name, networks), next(batches())
    sum(method(batch, learner(method, networks[0])(batch.image), networks[1](batch.image)).values()).backward()
    assert all(p.grad is not None for p in method.parameters()) == method.always_trains_all


@pytest.mark.parametrize("name", hkd.list_methods())
def test_a_step_taken_back_leaves_no_trace_but_in_batch_norms(name: str, networks: tuple) -> None:
    method, batch = build(name, networks).train(), next(batches())
    norms = {n for n, module in method.named_modules() if isinstance(module, nn.BatchNorm2d)}
    before = {key: deepcopy(value) for key, value in method.state_dict().items()}
    method(batch, learner(method, networks[0])(batch.image), networks[1](batch.image))
    method.undo_step()
    after = method.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        if key.rpartition(".")[0] not in norms:
            torch.testing.assert_close(after[key], value, rtol=0, atol=0, equal_nan=True, msg=key)
    method.undo_step()


def test_a_method_that_needs_what_there_is_not_is_refused() -> None:
    with pytest.raises(TypeError, match="Wrong.needs: expected some of classifier, .*; got 'logit'"):

        class Wrong(Method[NoConfig]):
            needs = frozenset({"logit"})


def test_a_method_can_be_added_from_outside(networks: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_entries", {name: methods[name] for name in methods})

    @methods.register("difference")
    class Difference(Method[NoConfig]):
        """A test's own."""

        def __init__(self, setup: Setup, config: NoConfig) -> None:
            super().__init__(setup, config)
            self.project = nn.Linear(setup.student.embedding_dim, setup.teacher.embedding_dim)

        def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
            return {"difference": (self.project(student.embedding) - teacher.embedding).pow(2).mean()}

    assert "difference" in hkd.list_methods()
    method, batch = build("difference", networks), next(batches())
    assert method(batch, learner(method, networks[0])(batch.image), networks[1](batch.image))["difference"] > 0


def test_unknown_methods_and_settings_come_with_near_misses(networks: tuple) -> None:
    with pytest.raises(hkd.RequestError, match="did you mean hkd"):
        build("hdk", networks)
    student, teacher = networks
    for config, message in (({"hop": 2}, "did you mean hops"), ({"k": 0}, r"holistic\.k: expected 1 or more")):
        with pytest.raises(hkd.RequestError, match=message):
            hkd.create_method("hkd", student=student, teacher=teacher, num_samples=N, **config)
    with pytest.raises(hkd.RequestError, match="at has no settings"):
        hkd.create_method("at", student=student, teacher=teacher, num_samples=N, temperature=2)


@pytest.mark.parametrize("name", hkd.list_methods())
def test_an_image_without_a_label_is_no_error(name: str) -> None:
    torch.manual_seed(0)
    student, teacher = hkd.create_model("resnet8", 10), hkd.create_model("resnet14", 10)
    distiller = hkd.Distiller(student, teacher, name, labels=torch.arange(40) % 10, image_size=16)
    label = torch.tensor([-1, 1, -1, 3, 4, 5, 6, 7])
    image = torch.randn(8, 3, 16, 16)
    assert distiller(image, label, torch.arange(8), strong=image.flip(3)).loss.isfinite()


@pytest.mark.parametrize("name", [name for name in hkd.list_methods() if "strong" in methods[name].needs])
def test_a_method_with_a_strong_view_shows_it_to_both_after_the_first(name: str, networks: tuple) -> None:
    student, teacher = networks
    shown: list[tuple[nn.Module, Tensor]] = []
    distiller = Distiller(student, teacher, name, num_samples=N, labels=torch.arange(N) % C, image_size=16)
    for network in networks:
        network.register_forward_pre_hook(lambda module, given: shown.append((module, given[0])))
    batch = next(batches())
    assert distiller.needs_strong
    distiller(batch.image, batch.label, batch.index, strong=batch.strong).loss.backward()
    for network in networks:
        first, second = (image for module, image in shown if module is network)
        assert first is batch.image and second is batch.strong
    with pytest.raises(
        hkd.RequestError, match=r"^strong: expected a second view of the images, \(16, 3, 16, 16\); got"
    ):
        distiller(batch.image, batch.label, batch.index)
    off = Distiller(student, teacher, name, num_samples=N, method_weight=0, image_size=16)
    assert not off.needs_strong
    assert "strong view" in cacheable(distiller) and not cacheable(off)

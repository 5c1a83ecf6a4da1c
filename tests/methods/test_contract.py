"""One contract for every method in the registry."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import hkd
from hkd.distiller import Objective
from hkd.errors import IncompatibleError
from hkd.methods import Method, Setup, Weights, methods
from hkd.methods.base import NoConfig
from hkd.types import Batch, ModelOutput

N, C = 40, 4


@pytest.fixture
def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return hkd.create_model("resnet8", C), hkd.create_model("wrn_16_1", C).eval().requires_grad_(False)


def build(name: str, networks: tuple[nn.Module, nn.Module]) -> Method:
    labels = torch.arange(N) % C
    return hkd.create_method(
        name, student=networks[0], teacher=networks[1], num_samples=N, labels=labels, image_size=16
    )


def batches() -> Iterator[Batch]:
    """Two full batches and an odd last one."""
    for index in (torch.arange(16), torch.arange(16, 32), torch.arange(32, 35)):
        yield Batch(torch.randn(len(index), 3, 16, 16), index % C, index)


@pytest.mark.parametrize("name", hkd.list_methods())
def test_terms_are_finite_scalars_that_reach_the_student_alone(name: str, networks: tuple) -> None:
    student, teacher = networks
    method = build(name, networks)
    teacher.requires_grad_(True)  # even a teacher that could learn gets no gradient
    for batch in batches():
        terms = method(batch, student(batch.image), teacher(batch.image))
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
        terms = stage(batch, student(batch.image) if stage.with_student else None, teacher(batch.image))
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
        batch = Batch(torch.randn(4, 3, size, size), torch.arange(4) % C, torch.arange(4))
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
    terms = method(batch, student(batch.image), seen)
    total = sum(terms.values())
    total.backward()
    assert torch.isfinite(total)
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())


@pytest.mark.parametrize("name", hkd.list_methods())
def test_networks_without_stage_maps_are_told_before_training(name: str) -> None:
    student, teacher = hkd.create_model("resnet8", C), Flat()
    asked = {"student": student, "teacher": hkd.wrap_model(teacher, image_size=16), "num_samples": N, "image_size": 16}
    if name not in NEED_STAGES:
        hkd.create_method(name, labels=torch.arange(N) % C, **asked)
        return
    with pytest.raises(IncompatibleError, match=rf"method: {name} compares \d or more stage maps.* and Flat shows 0"):
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
        method(batch, student(batch.image), teacher(batch.image))
    torch.save(method.state_dict(), f"{tmp_path}/m.pt")
    again.load_state_dict(torch.load(f"{tmp_path}/m.pt", weights_only=True))
    batch = next(batches())
    outputs = student.eval()(batch.image), teacher(batch.image)
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
        terms = method(batch, student(batch.image), teacher(batch.image))
        if (stage := method.initialisation) is not None:
            seen = student(batch.image) if stage.with_student else None
            terms |= stage(batch, seen, teacher(batch.image))
    total = sum(terms.values())
    total.backward()
    assert torch.isfinite(total)
    parameters = [*student.parameters(), *method.parameters()]
    assert all(torch.isfinite(p.grad).all() for p in parameters if p.grad is not None)


@pytest.mark.parametrize("name", hkd.list_methods())
def test_all_parameters_are_trained(name: str, networks: tuple) -> None:
    method = build(name, networks)
    trained = {id(p) for p in Objective(networks[0], method, Weights()).parameters()}
    assert all(id(p) in trained for p in [*method.parameters(), *networks[0].parameters()])


@pytest.mark.parametrize("name", hkd.list_methods())
def test_a_method_says_what_it_is(name: str) -> None:
    kind = methods[name]
    assert kind.__doc__ and "et al." in kind.__doc__
    assert all("help" in field.metadata for field in kind.Config.__dataclass_fields__.values())
    assert bool(kind.Config.__dataclass_fields__) == bool(kind.settings)


def test_a_method_can_be_added_from_outside(networks: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_entries", dict(methods._entries))

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
    assert method(batch, networks[0](batch.image), networks[1](batch.image))["difference"] > 0


def test_unknown_methods_and_settings_come_with_near_misses(networks: tuple) -> None:
    with pytest.raises(hkd.RequestError, match="did you mean hkd"):
        build("hdk", networks)
    student, teacher = networks
    for config, message in (({"hop": 2}, "did you mean hops"), ({"k": 0}, r"holistic\.k: expected 1 or more")):
        with pytest.raises(hkd.RequestError, match=message):
            hkd.create_method("hkd", student=student, teacher=teacher, num_samples=N, **config)
    with pytest.raises(hkd.RequestError, match="kd has no settings"):
        hkd.create_method("kd", student=student, teacher=teacher, num_samples=N, temperature=2)

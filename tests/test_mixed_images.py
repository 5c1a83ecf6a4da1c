"""Mixed images in the training: the objective, which methods take them, and whole runs with every augmentation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import hkd
from hkd import trainer
from hkd.cli import main
from hkd.distiller import Distiller
from hkd.methods import methods
from hkd.methods.base import mixing_refused
from hkd.methods.kd import batch_cross_entropy, kd_loss
from hkd.spec import RunSpec
from hkd.types import Batch, Mixture
from tests.data.test_datasets import encoded, picture, write_files
from tests.reference.augmentation import mixed_cross_entropy

N, C, B = 24, 4, 6
TAKEN = [name for name in hkd.list_methods() if methods[name].takes_mixed]
REFUSED = [name for name in hkd.list_methods() if not methods[name].takes_mixed]
SMALL: dict[str, Any] = {
    "limit_train": 20, "batch_size": 50, "teacher": "resnet8", "tensorboard": False, "device": "cpu", "epochs": 2,
}  # fmt: skip


def mixed_batch(weight: float = 0.3) -> Batch:
    draw = torch.Generator().manual_seed(1)
    image, index = torch.randn(B, 3, 16, 16, generator=draw), torch.arange(B)
    return Batch(image, index % C, index, mixture=Mixture((index % C).flip(0), torch.tensor(weight)))


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5])
def test_the_cross_entropy_is_with_both_classes(weight: float) -> None:
    logits = torch.randn(B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for labels in ([0, 1, 2, 3, 0, 1], [0, -1, 2, 3, -1, 1], [-1] * 6):
        label = torch.tensor(labels)
        batch = replace(mixed_batch(weight), label=label, mixture=Mixture(label.flip(0), torch.tensor(weight)))
        found = batch_cross_entropy(logits, batch)
        assert float(found.detach()) == pytest.approx(
            mixed_cross_entropy(logits.detach(), label, label.flip(0), weight), abs=1e-6
        )
    plain = replace(mixed_batch(), mixture=None)
    assert float(batch_cross_entropy(logits, plain).detach()) == pytest.approx(
        mixed_cross_entropy(logits.detach(), plain.label, plain.label, 0.0), abs=1e-6
    )


def distiller(method: str | None, **options: Any) -> Distiller:
    torch.manual_seed(0)
    networks = hkd.create_model("resnet8", C), hkd.create_model("wrn_16_1", C)
    return Distiller(*networks, method, num_samples=N, labels=torch.arange(N) % C, image_size=16, **options)


def test_both_classes_are_smoothed() -> None:
    logits = torch.randn(B, C, generator=torch.Generator().manual_seed(0))
    batch = mixed_batch(0.3)
    target = 0.7 * torch.eye(C)[batch.label] + 0.3 * torch.eye(C)[batch.label.flip(0)]
    expected = -((0.9 * target + 0.1 / C) * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(batch_cross_entropy(logits, batch, smoothing=0.1), expected)


def test_both_classes_have_their_weights() -> None:
    logits = torch.randn(B, C, generator=torch.Generator().manual_seed(0))
    batch, weight = mixed_batch(0.3), torch.tensor([0.5, 1.0, 2.0, 4.0])
    target = 0.7 * torch.eye(C)[batch.label] + 0.3 * torch.eye(C)[batch.label.flip(0)]
    expected = -(weight * target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(batch_cross_entropy(logits, batch, weight), expected)


@pytest.mark.parametrize("method", [*TAKEN, None])
def test_methods_of_logits_learn_from_what_both_networks_see(method: str | None) -> None:
    made = distiller(method, kd_weight=1.0)
    made.set_epoch(0, 2)
    batch, seen = mixed_batch(), []
    for network in (made.student, *made.teachers):
        network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    out = made(batch)
    assert len(seen) == 2 and all(image is batch.image for image in seen)
    assert out.logits is not None
    assert not torch.equal(out.terms["ce"], made(replace(batch, mixture=None)).terms["ce"])
    expected = mixed_cross_entropy(out.logits.detach(), batch.label, batch.label.flip(0), 0.3)
    assert float(out.terms["ce"].detach()) == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        teacher = made.teachers[0](batch.image).logits
    torch.testing.assert_close(
        out.terms["kd"].detach(), kd_loss(out.logits.detach(), teacher, 4.0), rtol=1e-4, atol=1e-5
    )
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.student.parameters())


@pytest.mark.parametrize("method", ["dist", "dkd", "crd", None])
def test_several_teachers_are_as_one(method: str | None) -> None:
    torch.manual_seed(0)
    student, *teachers = (hkd.create_model(name, C) for name in ("resnet8", "wrn_16_1", "resnet14"))
    made = Distiller(student, teachers, method, labels=torch.arange(N) % C, image_size=16, kd_weight=1.0)
    made.set_epoch(0, 2)
    if method in ("dkd", "crd"):
        with pytest.raises(hkd.RequestError, match="^method: .* mixed images"):
            made(mixed_batch())
        return
    terms = made(mixed_batch()).terms
    assert {"ce", "kd"} <= terms.keys() and all(term.isfinite() for term in terms.values())


@pytest.mark.parametrize("name", hkd.list_methods())
def test_what_takes_mixed_images_reads_nothing_of_them_but_logits(name: str) -> None:
    class Blind(Batch):
        """A batch whose classes and indices nobody may ask for."""

        def __getattribute__(self, attribute: str) -> Any:
            if attribute in ("label", "index"):
                raise KeyError(attribute)
            return super().__getattribute__(attribute)

    kind = methods[name]
    if kind.needs != {"logits"}:
        assert not kind.takes_mixed
        return
    made = distiller(name, method_weight=1.0) if name != "kd" else None
    method = methods["kd"](None, methods["kd"].Config()) if made is None else made.method  # type: ignore[arg-type]
    batch = mixed_batch()
    student, teacher = (hkd.create_model(network, C)(batch.image) for network in ("resnet8", "wrn_16_1"))
    blind = Blind(batch.image, batch.label, batch.index, mixture=batch.mixture)
    if kind.takes_mixed:
        assert method(blind, student, teacher)
    else:
        with pytest.raises(KeyError):
            method(blind, student, teacher)


@pytest.mark.parametrize("option", ["mixup", "cutmix"])
@pytest.mark.parametrize("name", REFUSED)
def test_other_methods_are_refused_in_a_line(name: str, option: str) -> None:
    with pytest.raises(hkd.RequestError) as error:
        RunSpec.from_flat({"method": name, option: 0.2})
    text = str(error.value)
    assert text.startswith(f"{option}: {name} ") and "\n" not in text and text.endswith(f": {', '.join(TAKEN)}")
    with pytest.raises(hkd.RequestError, match="^method: "):
        distiller(name)(mixed_batch())


def test_reasons_are_the_methods() -> None:
    assert mixing_refused(methods["crd"], "crd") == "crd has a memory of images, which mixed images have no place in"
    assert mixing_refused(methods["hkd"], "hkd").startswith("hkd has a memory")
    assert "reads the teacher's features" in mixing_refused(methods["at"], "at")
    assert "two classes" in mixing_refused(methods["dkd"], "dkd")
    assert not mixing_refused(methods["kd"], "kd")
    remember = {name for name in hkd.list_methods() if methods[name].remembers_classes}
    assert remember == {"crd", "hkd"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "crop", "min_crop": 0.5}, "min_crop: is of resized crops, and --augment crop has none"),
        ({"augment": "autoaugment"}, "augment: expected one of crop, resized-crop, trivial, randaugment"),
        ({"min_crop": 0}, r"min_crop: expected a number in \(0, 1\]; got 0"),
        ({"mixup": -0.1}, r"mixup: expected a number in \[0, 100\]"),
        ({"cutmix": 101}, r"cutmix: expected a number in \[0, 100\]"),
    ],
)
def test_wrong_requests_say_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(hkd.RequestError, match=f"^{message}"):
        RunSpec.from_flat(options)


def test_an_augmentation_is_in_the_key_and_its_absence_is_not() -> None:
    flat = {"data_digest": "d" * 16, "student": "resnet8", "method": "kd"}
    keys = [RunSpec.from_flat(flat | change).key() for change in (
        {}, {"augment": "crop"}, {"augment": "trivial"}, {"min_crop": 0.5}, {"mixup": 0.2}, {"cutmix": 0.2},
    )]  # fmt: skip
    assert len(set(keys)) == len(keys)
    neutral = {"augment": None, "min_crop": None, "mixup": 0.0, "cutmix": 0}
    assert RunSpec.from_flat(flat | neutral).key() == keys[0]


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = tmp_path_factory.mktemp("teacher") / "t"
    hkd.train(hkd.TrainConfig(**SMALL | {"run": str(run), "role": "teacher"}))
    return str(run)


def killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C after so many steps, which saves and stops."""
    seen = []

    def action(self: Any, _: int) -> Any:
        seen.append(None)
        return trainer.StopAction.STOP if len(seen) == step else trainer.StopAction.CONTINUE

    monkeypatch.setattr(trainer.Stopping, "action", action)


ASKED = [
    {"augment": "resized-crop"}, {"augment": "randaugment", "min_crop": 0.5}, {"augment": "trivial", "mixup": 0.5},
    {"cutmix": 1.0, "mixup": 0.2},
]  # fmt: skip


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_a_run_that_is_stopped_within_an_epoch_ends_like_a_whole_one(
    tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    def distilled(name: str) -> hkd.Result:
        config = SMALL | {"run": str(tmp_path / name), "teacher_checkpoint": teacher, "method": "kd"} | asked
        return hkd.distill(hkd.DistillConfig(**config))

    whole = distilled("whole")
    with monkeypatch.context() as patch:
        killed_at(patch, 6)  # of 4 steps an epoch
        with pytest.raises(trainer.Stopped):
            distilled("parts")
    parts = distilled("parts")
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), parts.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    first = json.loads((whole.run / "metrics.jsonl").read_text().splitlines()[0])
    assert {"ce", "kd", "train_top1"} <= first.keys()


@pytest.mark.parametrize("asked", [{"augment": "trivial"}, {"mixup": 0.2, "augment": "resized-crop"}], ids=str)
def test_photographs_in_files_are_augmented_by_workers(tmp_path: Path, asked: dict[str, Any]) -> None:
    files = {
        f"{split}/{name}/{n}.jpg": encoded(picture((130, 110), 10 * k + n), "JPEG")
        for split in ("train", "val") for k, name in enumerate(("cat", "dog")) for n in range(4)
    }  # fmt: skip
    photos, results = write_files(tmp_path / "photos", files), []
    for workers in (0, 2):
        config = {
            "run": str(tmp_path / f"w{workers}"), "dataset": f"folder:{photos}", "image_size": 100, "epochs": 2,
            "batch_size": 4, "workers": workers, "device": "cpu", "tensorboard": False, "student": "resnet8",
        }  # fmt: skip
        results.append(hkd.train(hkd.TrainConfig(**config | asked)))
    states = [result.model.state_dict() for result in results]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_table_serves_what_has_numbered_views_and_no_mixed_images(
    tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cached = {"teacher_cache": str(tmp_path / "tables"), "teacher_cache_dtype": "float32", "method": "kd"}

    def distilled(name: str, **asked: Any) -> hkd.Result:
        config = SMALL | {"run": str(tmp_path / name), "teacher_checkpoint": teacher, "tensorboard": False} | asked
        return hkd.distill(hkd.DistillConfig(**config))

    for number, asked in enumerate(({"augment": "trivial"}, {"min_crop": 0.5})):
        live = distilled(f"live{number}", method="kd", **asked)
        filling, filled = (distilled(f"{name}{number}", **cached, **asked) for name in ("filling", "filled"))
        assert [run.summary["teacher_cache"]["hits"] for run in (filling, filled)] == [0, 400]
        for run in (filling, filled):
            states = live.model.state_dict(), run.model.state_dict()
            assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    capsys.readouterr()
    mixed = distilled("mixed", mixup=0.2, **cached)
    assert "teacher_cache" not in mixed.summary
    said = [line for line in capsys.readouterr().err.splitlines() if "teacher cache" in line]
    assert said == ["teacher cache: not used, --mixup and --cutmix mix other images in every epoch"]


def test_a_table_can_be_filled_beforehand_for_an_augmentation(
    tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = ["--teacher-cache", str(tmp_path / "tables"), "--limit-train", "20", "--device", "cpu"]
    asked = ["--augment", "randaugment", "--views", "2"]
    assert main(["cache", teacher, *tables, *asked]) == 0
    run = ["--run", str(tmp_path / "d"), "--method", "kd", "--epochs", "2", "--teacher-checkpoint", teacher]
    assert main(["distill", *run, *tables, *asked]) == 0
    summary = json.loads((tmp_path / "d" / "summary.json").read_text())
    assert (summary["teacher_cache"]["hits"], summary["teacher_cache"]["misses"]) == (400, 0)


def test_a_comparison_refuses_before_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--run", str(tmp_path / "c"), "--methods", "ce,kd,crd", "--mixup", "0.2", "--device", "cpu"]
    assert main([*words, "--limit-train", "20", "--epochs", "1"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "mixup: crd has a memory of images, which mixed images have no place in" in said[0]
    assert not list((tmp_path / "c").glob("**/metrics.jsonl"))

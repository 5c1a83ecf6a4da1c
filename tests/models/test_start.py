"""Networks that start from the weights in a file."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import hkd
from hkd.cli import main
from hkd.models import Model
from hkd.models.start import head_of, start_from
from hkd.spec import RunSpec

TEN = [str(n) for n in range(10)]


def config(run: Path, **changes: Any) -> hkd.DistillConfig:
    fields = {"epochs": 1, "limit_train": 4, "method": "kd", "teacher": "resnet8", "tensorboard": False}
    return hkd.DistillConfig(run=str(run), device="cpu", **fields | changes)


def saved(path: Path, name: str, classes: int) -> Model:
    model = hkd.create_model(name, classes)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.rand(value.shape).to(value.dtype))
    if path.suffix == ".pth":
        torch.save(getattr(model, "module", model).state_dict(), path)
    else:
        hkd.save_model(model, path)
    return model


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "MobileNetV2", "ShuffleV2", "wrn_16_1", "timm:resnet10t"])
def test_the_head_is_found(name: str) -> None:
    model = hkd.create_model(name, 7)
    layer: Any = getattr(model, "module", model).get_submodule(head_of(model))
    image = torch.rand(2, 3, 32, 32)
    out = model.eval()(image)
    torch.testing.assert_close(layer(out.embedding), out.logits)


@pytest.mark.parametrize(("kind", "name"), [(".pth", "torchvision:resnet18"), (".safetensors", "resnet8")])
def test_a_head_of_another_width_is_replaced(tmp_path: Path, kind: str, name: str) -> None:
    file = tmp_path / f"w{kind}"
    source, model = saved(file, name, 1000), hkd.create_model(name, 10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    start = start_from(model, file, TEN)
    assert start.reason == "a 1,000-class head" and not start.head_fits
    for key, value in model.state_dict().items():
        wanted = before if value.shape != source.state_dict()[key].shape else source.state_dict()
        torch.testing.assert_close(value, wanted[key], msg=key)


def test_a_head_of_the_same_classes_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    source, model = saved(file, "resnet8", 10), hkd.create_model("resnet8", 10)
    assert start_from(model, file, TEN).head_fits
    assert all(value.equal(source.state_dict()[key]) for key, value in model.state_dict().items())
    hkd.save_model(source, file, classes=list("abcdefghij"), mean=[0.1] * 3, std=[0.2] * 3)
    start = start_from(model, file, TEN)
    assert start.reason == "the head of other classes"
    assert model.normalisation == ((0.1,) * 3, (0.2,) * 3)


def test_a_file_without_a_head_is_taken(tmp_path: Path) -> None:
    model = hkd.create_model("timm:resnet10t", 10)
    state = {name: value for name, value in model.module.state_dict().items() if not name.startswith("fc.")}
    torch.save(state, tmp_path / "w.pth")
    assert start_from(model, tmp_path / "w.pth", TEN).reason == "no head"
    assert model.normalisation == model.library_normalisation is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("conv1.weight"), "1 of .* tensors are missing, first conv1.weight"),
        (lambda state: state.update({"conv1.weight": torch.zeros(1)}), "conv1.weight is .* in the file"),
        (lambda state: state.update(more=torch.zeros(1)), "1 of the file's have no place, first 'more'"),
        (lambda state: state.update({"conv1.weight": torch.full((16, 3, 3, 3), torch.nan)}), "expected finite"),
        (lambda state: state.pop("fc.bias"), "1 of .* tensors are missing, first fc.bias"),
    ],
)
@pytest.mark.parametrize("classes", [10, 20])
def test_what_else_does_not_fit_is_refused(tmp_path: Path, change: Any, message: str, classes: int) -> None:
    state = hkd.create_model("resnet8", classes).state_dict()
    change(state)
    torch.save(state, tmp_path / "w.pth")
    model = hkd.create_model("resnet8", 10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(hkd.RequestError, match=f"^checkpoint: .*w.pth.*{message}"):
        start_from(model, tmp_path / "w.pth", TEN)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


def test_a_run_says_which_head_it_replaced_and_trains_such_a_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "w.pth"
    saved(file, "resnet8", 20)
    result = hkd.distill(config(tmp_path / "d", teacher_weights=str(file)))
    told = capsys.readouterr().err
    assert told.count(f"{file} has a 20-class head; resnet8 gets a fresh one of 10 classes\n") == 1
    trained = RunSpec.load(result.run / "teacher" / "config.yaml")
    assert trained.student.weights == str(file) and trained.student.weights_digest.startswith("weights ")
    spec = RunSpec.load(result.run / "config.yaml")
    assert spec.teacher is not None and spec.teacher.weights_digest == trained.student.weights_digest


def test_a_teacher_whose_head_fits_is_trained(tmp_path: Path) -> None:
    source = saved(tmp_path / "w.safetensors", "resnet8", 10)
    asked = config(tmp_path / "d", teacher=None, teacher_weights=str(tmp_path / "w.safetensors"), student="resnet8")
    result = hkd.distill(asked)
    assert not (result.run / "teacher").exists()
    data = hkd.EvaluateConfig(checkpoint=str(tmp_path / "w.safetensors"), dataset="digits", device="cpu")
    assert result.summary["teacher_top1"] == pytest.approx(hkd.evaluate(data).top1)
    assert source.info.parameters == result.summary["parameters"]


def test_a_student_starts_from_its_file(tmp_path: Path) -> None:
    source = saved(tmp_path / "w.safetensors", "resnet8", 10)
    values = {"run": str(tmp_path / "t"), "student_weights": str(tmp_path / "w.safetensors"), "lr": 1e-9, "epochs": 1}
    result = hkd.train(hkd.TrainConfig(limit_train=4, weight_decay=0.0, device="cpu", tensorboard=False, **values))
    for key, value in source.named_parameters():
        torch.testing.assert_close(dict(result.model.named_parameters())[key], value, msg=key)
    again = hkd.train(hkd.TrainConfig(limit_train=4, weight_decay=0.0, device="cpu", tensorboard=False, **values))
    assert again.skipped
    saved(tmp_path / "w.safetensors", "resnet8", 10)  # others under the same name
    with pytest.raises(hkd.RequestError, match="student_weights"):
        hkd.train(hkd.TrainConfig(limit_train=4, weight_decay=0.0, device="cpu", tensorboard=False, **values))


def test_the_files_content_is_in_the_key_and_not_its_place(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        saved(tmp_path / name / "w.safetensors", "resnet8", 10)
    (tmp_path / "c.safetensors").write_bytes((tmp_path / "a" / "w.safetensors").read_bytes())
    files = [None, "a/w.safetensors", "b/w.safetensors", "c.safetensors"]
    for role in ("student", "teacher"):
        asked = [config(tmp_path, **{f"{role}_weights": file and str(tmp_path / file)}).spec() for file in files]
        keys = [spec.key() for spec in asked]
        assert keys[1] == keys[3] and len(set(keys)) == 3
        assert keys[0] == dataclasses.replace(asked[0]).key()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("distill --teacher-weights nowhere.pth --teacher resnet8", "teacher_weights: no file nowhere.pth"),
        ("distill --student-weights nowhere.pth --student resnet8", "student_weights: no file nowhere.pth"),
        ("distill --teacher-weights {file}", "teacher: .* does not say which network it holds; name it with --teacher"),
        ("train --teacher-weights {file}", "student: .* does not say which network it holds"),
        ("distill --teacher-weights {file} --teacher resnet14", "does not fit resnet14: .*missing"),
        ("distill --teacher-weights {file} --teacher-pretrained", "teacher_weights: expected one origin.*pretrained"),
        ("distill --teacher-weights {file} --teacher-checkpoint {file}", "teacher_weights: .*teacher_checkpoint, too"),
        ("train --student-weights {file} --student-pretrained", "student_weights: .*student_pretrained, too"),
        ("compare --student-weights {file} --students resnet8,resnet14", "student_weights: are those of one network"),
        ("compare --teacher-weights {file} --teachers resnet14", "does not fit resnet14"),
    ],
)
def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    saved(tmp_path / "w.pth", "resnet8", 10)
    argv = [word.format(file=tmp_path / "w.pth") for word in words.split()]
    assert main([*argv, "--run", str(tmp_path / "run"), "--limit-train", "4", "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("classes", "teachers"), [(10, 0), (20, 1)])
def test_a_study_trains_a_teacher_only_where_its_head_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], classes: int, teachers: int
) -> None:
    saved(tmp_path / "w.pth", "resnet14", classes)
    words = f"compare --dry-run --methods kd --trials 2 --limit-train 4 --teachers resnet14 --run {tmp_path}/c"
    assert main([*words.split(), "--teacher-weights", str(tmp_path / "w.pth")]) == 0
    out = capsys.readouterr().out
    assert out.count(f"hkd train --run {tmp_path}/c/teachers/resnet14") == teachers
    assert f"{'--student-weights' if teachers else '--teacher-weights'} {tmp_path}/w.pth" in out

"""Whole runs on a few digits: what they leave, how they continue, what they refuse."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hkd.jobs import running
from torch import nn

import hkd
from hkd import trainer as loop
from hkd.holistic import HolisticLoss
from hkd.runtime.run_folder import RunFolder
from tests.data.test_datasets import class_folders, encoded, picture, write_files
from tests.models.test_external import Own


class Killed(BaseException):
    pass


HOLISTIC = ("individual_student", "individual_teacher", "holistic_student", "holistic_teacher")


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def config(run: Path, **changes: Any) -> hkd.DistillConfig:
    fields = {"epochs": 3, "limit_train": 20, "teacher": "resnet8", "tensorboard": False}
    return hkd.DistillConfig(run=str(run), device="cpu", **fields | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> hkd.Result:
    return hkd.distill(config(tmp_path_factory.mktemp("runs") / "first", tensorboard=True))


def test_what_a_run_leaves(finished: hkd.Result) -> None:
    run = finished.run
    rows = rows_of(run)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert {"ce", "kd", "individual_student", "individual_teacher", "holistic_student", "holistic_teacher"} <= rows[
        0
    ].keys()
    summary = json.loads((run / "summary.json").read_text())
    assert {"top1_last", "top1_best", "top5_last", "seconds", "images_per_second"} <= summary.keys()
    assert summary["top1_last"] == rows[-1]["test_top1"]
    assert summary["top1_best"] == max(row["test_top1"] for row in rows)
    assert (run / "checkpoints" / "last.pt").is_file()
    assert list((run / "tensorboard").iterdir())
    asked = yaml.safe_load((run / "config.yaml").read_text())
    assert (asked["method_weight"], asked["kd_weight"], asked["ce_weight"]) == (3.0, 1.0, 1.0)
    assert asked["holistic"]["num_negatives"] == 16384
    assert (run / "teacher" / "model.safetensors").is_file()


def test_the_student_file_is_complete(finished: hkd.Result) -> None:
    model, about = hkd.load_model(finished.run / "student.safetensors")
    assert about["classes"] == list("0123456789")
    assert len(about["mean"]) == len(about["std"]) == 3
    assert (about["model"], about["image_size"], about["epoch"]) == ("resnet8", 8, 3)
    found = hkd.evaluate(hkd.EvaluateConfig(checkpoint=str(finished.run), device="cpu"))
    assert found.top1 == pytest.approx(finished.summary["top1_last"])
    image = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model.eval()(image).logits, finished.model(image).logits, rtol=1e-4, atol=1e-5)


def test_a_finished_run_is_left_alone(finished: hkd.Result) -> None:
    before = (finished.run / "metrics.jsonl").read_bytes()
    again = hkd.distill(config(finished.run, tensorboard=True))
    assert again.skipped and again.summary == finished.summary
    assert (finished.run / "metrics.jsonl").read_bytes() == before
    asked = (finished.run / "config.yaml").read_bytes()
    assert hkd.distill(config(finished.run, tensorboard=True, workers=1)).skipped
    assert (finished.run / "config.yaml").read_bytes() == asked


def test_another_request_for_the_same_folder_is_refused(finished: hkd.Result) -> None:
    with pytest.raises(hkd.RequestError, match=r"run: .* holds a run with lr = 0.05, not 0.1; .* --fresh"):
        hkd.distill(config(finished.run, lr=0.1))


def test_fresh_starts_over_and_keeps_what_was_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    hkd.distill(config(run, epochs=1))
    result = hkd.distill(config(run, epochs=2), fresh=True)
    assert not result.skipped
    assert (tmp_path / "run.1" / "summary.json").is_file()
    assert result.summary["epochs"] == 2


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for fresh in (False, True):
        with pytest.raises(hkd.RequestError, match="is no run folder"):
            hkd.distill(config(tmp_path), fresh=fresh)
    with pytest.raises(hkd.RequestError, match=r"run: cannot write|is no run folder"):
        hkd.distill(config(tmp_path / "thesis.tex" / "run"))
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("bank_start", ["random", "first"])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: hkd.Result, bank_start: str
) -> None:
    teacher = finished.run / "teacher" / "model.safetensors"
    settings = {"bank_start": bank_start, "num_negatives": 50}
    whole = hkd.distill(config(tmp_path / "whole", teacher_checkpoint=str(teacher), settings=settings))

    evaluate = loop.evaluate_model
    calls = []

    def die_in_the_second_epoch(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise Killed
        return evaluate(*arguments)

    asked = config(tmp_path / "parts", teacher_checkpoint=str(teacher), settings=settings)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_model", die_in_the_second_epoch)
        with pytest.raises(Killed):
            hkd.distill(asked)
    parts = hkd.distill(asked)
    assert not parts.skipped
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), parts.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    rows = [[{k: v for k, v in row.items() if "second" not in k} for row in rows_of(r.run)] for r in (whole, parts)]
    assert rows[0] == rows[1]


def test_runs_repeat_and_seeds_differ(tmp_path: Path, finished: hkd.Result) -> None:
    teacher = str(finished.run / "teacher" / "model.safetensors")
    a, b, c = (
        hkd.distill(config(tmp_path / name, epochs=1, teacher_checkpoint=teacher, seed=seed)).model.state_dict()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["conv1.weight"], c["conv1.weight"])


def test_weights_change_what_is_learnt(tmp_path: Path, finished: hkd.Result) -> None:
    teacher = str(finished.run / "teacher" / "model.safetensors")
    for name, changes, terms in (
        ("kd", {"method": "kd"}, {"ce", "kd"}),
        ("hkd", {"method": "hkd"}, {"ce", "individual_student"}),
        ("plain", {"kd_weight": 0.0, "method_weight": 0.0}, {"ce"}),
    ):
        run = tmp_path / name
        hkd.distill(config(run, epochs=1, teacher_checkpoint=teacher, **changes))
        row = json.loads((run / "metrics.jsonl").read_text())
        assert terms <= row.keys()
        assert ("kd" in row) == ("kd" in terms)
        assert ("holistic_student" in row) == (name == "hkd")
        asked = yaml.safe_load((run / "config.yaml").read_text())
        own = sum(row.get(term, 0.0) for term in HOLISTIC)
        parts = (asked["ce_weight"] * row["ce"], asked["kd_weight"] * row.get("kd", 0.0), asked["method_weight"] * own)
        expected = sum(parts)
        assert row["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", ["hkd", "hkd+kd"])
def test_plus_kd_is_the_classical_term_with_weight_1(tmp_path: Path, finished: hkd.Result, method: str) -> None:
    teacher = str(finished.run / "teacher" / "model.safetensors")
    hkd.distill(config(tmp_path / "d", epochs=1, teacher_checkpoint=teacher, method=method))
    asked = yaml.safe_load((tmp_path / "d" / "config.yaml").read_text())
    assert (asked["method"], asked["kd_weight"]) == ("hkd", float(method == "hkd+kd"))
    again = {"method": "hkd", "kd_weight": asked["kd_weight"]}
    assert hkd.distill(config(tmp_path / "d", epochs=1, teacher_checkpoint=teacher, **again)).skipped


def staged(run: Path, method: str, finished: hkd.Result, **changes: Any) -> hkd.DistillConfig:
    """A run of a method with two epochs of initialisation and two of training."""
    teacher = str(finished.run / "teacher" / "model.safetensors")
    fields = {"settings": {"init_epochs": 2}, "epochs": 2, "teacher_checkpoint": teacher}
    return config(run, method=method, **fields | changes)


STAGES = {"ab": "boundary", "fsp": "flow", "ft": "reconstruction", "sskd": "upright"}


@pytest.mark.parametrize("method", STAGES)
def test_an_initialisation_comes_first_and_an_interrupted_one_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: hkd.Result, method: str
) -> None:
    whole = hkd.distill(staged(tmp_path / "whole", method, finished))
    rows = rows_of(whole.run)
    assert [row["epoch"] for row in rows] == [-1, 0, 1, 2]
    assert [STAGES[method] in row and "test_top1" not in row and "ce" not in row for row in rows[:2]] == [True] * 2
    assert ["test_top1" in row and "ce" in row for row in rows[2:]] == [True] * 2
    assert (whole.summary["epochs"], whole.summary["best_epoch"] in (1, 2)) == (2, True)

    train_epoch = loop.train_epoch
    for stop_at in (1, 2, 3):  # in the initialisation, between the stages, in the training
        calls = []

        def die(*arguments: Any, stop_at: int = stop_at, calls: list = calls) -> Any:
            if len(calls) == stop_at:
                raise Killed
            calls.append(arguments)
            return train_epoch(*arguments)

        asked = staged(tmp_path / f"parts-{stop_at}", method, finished)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "train_epoch", die)
            with pytest.raises(Killed):
                hkd.distill(asked)
        parts = hkd.distill(asked)
        for (name, a), (_, b) in zip(whole.model.state_dict().items(), parts.model.state_dict().items(), strict=True):
            assert torch.equal(a, b), (stop_at, name)
        assert [row["epoch"] for row in rows_of(parts.run)] == [-1, 0, 1, 2]


def test_the_training_inherits_no_momentum_and_keeps_what_the_stage_fixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: hkd.Result
) -> None:
    train_epoch, seen = loop.train_epoch, []

    def watch(objective: Any, teacher: Any, batches: Any, optimizer: Any, *rest: Any) -> Any:
        paraphraser = [p.detach().clone() for p in objective.method.paraphraser.parameters()]
        student = objective.student.conv1.weight.detach().clone()
        seen.append((len(optimizer.state), optimizer.param_groups[0]["lr"], paraphraser, student))
        return train_epoch(objective, teacher, batches, optimizer, *rest)

    monkeypatch.setattr(loop, "train_epoch", watch)
    hkd.distill(staged(tmp_path / "d", "ft", finished, lr=0.02))
    states, rates, paraphrasers, students = zip(*seen, strict=True)
    assert [count > 0 for count in states] == [False, True, False, True]
    assert rates[:3] == (0.01, 0.01, 0.02)
    assert torch.equal(students[0], students[2]) and not torch.equal(students[2], students[3])
    pairs = [list(zip(paraphrasers[n], paraphrasers[n + 1], strict=True)) for n in (1, 2)]
    assert [all(torch.equal(a, b) for a, b in pair) for pair in pairs] == [False, True]


def test_a_method_knows_the_teacher_that_is_trained_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, seen = running.Training, []

    def watch(objective: Any, teacher: Any, *rest: Any) -> Any:
        seen.append((objective, teacher))
        return fit(objective, teacher, *rest)

    monkeypatch.setattr(running, "Training", watch)
    result = hkd.distill(config(tmp_path / "d", method="sskd", epochs=1, settings={"init_epochs": 1}))
    objective, teacher = seen[-1]
    assert objective.method.networks == (objective.student, teacher)
    trained, _ = hkd.load_model(result.run / "teacher" / "model.safetensors")
    image = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(teacher(image).logits, trained.eval()(image).logits, rtol=1e-4, atol=1e-4)
    assert not teacher.training


def test_no_initialisation_epochs_is_no_initialisation(tmp_path: Path, finished: hkd.Result) -> None:
    result = hkd.distill(staged(tmp_path / "d", "ab", finished, settings={"init_epochs": 0}))
    assert [row["epoch"] for row in rows_of(result.run)] == [1, 2]
    assert "boundary" not in rows_of(result.run)[0]
    always = hkd.distill(staged(tmp_path / "e", "ab", finished, settings={"init_epochs": 0}, method_weight=1.0))
    assert "boundary" in rows_of(always.run)[0]


def test_the_weight_of_a_method_with_a_warm_up_rises(tmp_path: Path, finished: hkd.Result) -> None:
    result = hkd.distill(staged(tmp_path / "d", "dkd", finished, settings={"warmup_epochs": 3}, epochs=4))
    for row, warmth in zip(rows_of(result.run), (1 / 3, 2 / 3, 1, 1), strict=True):
        assert row["loss"] == pytest.approx(row["ce"] + warmth * (row["target"] + row["nontarget"]), rel=1e-4)


def test_a_teacher_alone_and_a_distillation_with_own_modules(tmp_path: Path) -> None:
    trained = hkd.train(
        hkd.TrainConfig(run=str(tmp_path / "t"), teacher="resnet8", epochs=1, limit_train=20, device="cpu")
    )
    assert (trained.run / "model.safetensors").is_file()
    student = Own(10)
    result = hkd.distill(config(tmp_path / "d", epochs=1, teacher=None), student=student, teacher=trained.model)
    assert result.model.module is student
    assert result.summary["student"] == "Own"
    with pytest.raises(hkd.RequestError, match="holds an own network, Own; name its factory with --model"):
        hkd.evaluate(hkd.EvaluateConfig(checkpoint=str(result.run), device="cpu"))
    found = hkd.EvaluateConfig(checkpoint=str(result.run), model="tests.models.test_external:factory", device="cpu")
    assert hkd.evaluate(found).top1 == pytest.approx(result.summary["top1_last"])


def test_own_data_sets(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8)
    data = [(image, n % 3) for n, image in enumerate(images)]
    teacher = hkd.create_model("resnet8", 3)
    result = hkd.distill(
        config(tmp_path / "d", epochs=1, limit_train=None, teacher=None),
        teacher=teacher,
        train_data=data,
        test_data=data,
    )
    assert result.summary["train_images"] == 30


def test_an_own_teacher_gets_the_weights_of_its_checkpoint(tmp_path: Path, finished: hkd.Result) -> None:
    own = hkd.create_model("resnet8", 10)
    for given in (finished.run / "teacher" / "model.safetensors", finished.run / "teacher"):
        run = tmp_path / given.name
        result = hkd.distill(config(run, epochs=1, teacher=None, teacher_checkpoint=str(given)), teacher=own)
        teacher_summary = json.loads((finished.run / "teacher" / "summary.json").read_text())
        assert result.summary["teacher_top1"] == pytest.approx(teacher_summary["top1_last"])
    with pytest.raises(hkd.RequestError, match="passed or named"):
        hkd.distill(config(tmp_path / "x"), teacher=own)


def test_a_teacher_of_other_classes_is_refused_and_its_normalisation_taken(tmp_path: Path) -> None:
    teacher = hkd.create_model("resnet8", 10)
    hkd.save_model(teacher, tmp_path / "t.safetensors", classes=list("abcdefghij"))
    asked = config(tmp_path / "d", epochs=1, teacher=None, teacher_checkpoint=str(tmp_path / "t.safetensors"))
    with pytest.raises(hkd.RequestError, match="learnt other classes: 'a' where digits has '0'"):
        hkd.distill(asked)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    hkd.save_model(teacher, tmp_path / "t.safetensors", classes=list("0123456789"), mean=mean, std=std)
    about = hkd.load_model(hkd.distill(asked).weights)[1]
    assert (about["mean"], about["std"]) == (mean, std)


def test_testing_uses_the_image_size_of_training(tmp_path: Path) -> None:
    odd = encoded(picture((20, 18), 3))
    files = class_folders((16, 16)) | {f"val/{c}/{n}.jpg": odd for c in ("cat", "dog", "eel") for n in (0, 1)}
    photos = write_files(tmp_path / "photos", files)
    for size in (None, 8):
        run = tmp_path / f"run-{size}"
        asked = config(run, dataset=f"folder:{photos}", epochs=1, limit_train=None, image_size=size)
        result = hkd.distill(asked)
        about = hkd.load_model(result.weights)[1]
        assert about["image_size"] == (size or 16)
        for checkpoint in (run, result.weights, run / "checkpoints" / "best.safetensors"):
            found = hkd.evaluate(hkd.EvaluateConfig(checkpoint=str(checkpoint), device="cpu"))
            assert found.images == 6
            assert found.top1 == pytest.approx(result.summary["top1_last"])


def test_a_run_cut_short_while_writing_continues(tmp_path: Path, finished: hkd.Result) -> None:
    teacher = str(finished.run / "teacher")
    hkd.distill(config(tmp_path / "d", teacher_checkpoint=teacher))
    (tmp_path / "d" / "summary.json").unlink()
    metrics = tmp_path / "d" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"epoch": 4, "lo')
    assert hkd.distill(config(tmp_path / "d", teacher_checkpoint=teacher)).summary["epochs"] == 3
    assert [row["epoch"] for row in rows_of(tmp_path / "d")] == [1, 2, 3]


def test_testing_on_other_classes_is_refused(tmp_path: Path) -> None:
    photos = write_files(tmp_path / "photos", class_folders())
    run = tmp_path / "d"
    hkd.train(hkd.TrainConfig(run=str(run), dataset=f"folder:{photos}", limit_classes=2, epochs=1, device="cpu"))
    best = str(run / "checkpoints" / "best.safetensors")
    assert hkd.evaluate(hkd.EvaluateConfig(checkpoint=best, device="cpu")).images == 4, "the file says which classes"
    for split in ("train", "val"):
        (photos / split / "cat").rename(photos / split / "zebra")
    with pytest.raises(hkd.RequestError, match="learnt other classes: 'cat' where .* has 'dog'"):
        hkd.evaluate(hkd.EvaluateConfig(checkpoint=best, device="cpu"))


def test_one_network_cannot_teach_itself(tmp_path: Path) -> None:
    model = hkd.create_model("resnet8", 10)
    with pytest.raises(hkd.RequestError, match="the same network"):
        hkd.distill(config(tmp_path / "d", teacher=None), student=model, teacher=model)


def test_lost_metrics_come_back_from_the_checkpoint(tmp_path: Path, finished: hkd.Result) -> None:
    asked = config(tmp_path / "d", teacher_checkpoint=str(finished.run / "teacher"))
    hkd.distill(asked)
    before = rows_of(tmp_path / "d")
    for name in ("summary.json", "metrics.jsonl"):
        (tmp_path / "d" / name).unlink()
    hkd.distill(asked)
    assert rows_of(tmp_path / "d") == before


def test_a_corrupt_checkpoint_is_told(tmp_path: Path, finished: hkd.Result) -> None:
    run = tmp_path / "d"
    asked = config(run, teacher_checkpoint=str(finished.run / "teacher"))
    hkd.distill(asked)
    (run / "summary.json").unlink()
    for name in ("last.pt", "previous.pt"):
        checkpoint = run / "checkpoints" / name
        checkpoint.write_bytes(checkpoint.read_bytes()[:999])
    with pytest.raises(hkd.RequestError, match="last.pt is corrupt; start over with --fresh"):
        hkd.distill(asked)


def test_a_training_set_that_changed_between_starts_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: hkd.Result
) -> None:
    photos = write_files(tmp_path / "photos", class_folders())
    asked = hkd.TrainConfig(run=str(tmp_path / "t"), dataset=f"folder:{photos}", epochs=2, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            hkd.train(asked)
    write_files(photos, {"train/cat/new.png": encoded(picture((12, 12), 5))})
    with pytest.raises(hkd.RequestError, match="dataset: the training images are not what the run in .* began with"):
        hkd.train(asked)


def test_a_request_can_be_mended_before_training_has_begun(tmp_path: Path) -> None:
    asked = hkd.TrainConfig(run=str(tmp_path / "t"), student="resnet8", lr=1e30, epochs=1, limit_train=20, device="cpu")
    with pytest.raises(hkd.TrainingError):
        hkd.train(asked)
    assert hkd.train(replace(asked, lr=0.05)).summary["epochs"] == 1


def test_an_image_size_that_a_network_does_not_take_leaves_nothing(tmp_path: Path) -> None:
    for student in ("vgg8", "timm:vit_tiny_patch16_224"):
        with pytest.raises(hkd.RequestError, match="image_size: .* does not take images of 2x2"):
            hkd.distill(config(tmp_path / "d", student=student, image_size=2, teacher="resnet8"))
    assert not (tmp_path / "d").exists()


def test_photographs_stream_through_library_networks(tmp_path: Path) -> None:
    photos = write_files(tmp_path / "photos", class_folders((90, 70), train=3, val=2))
    asked = config(
        tmp_path / "d", dataset=f"folder:{photos}", epochs=1, limit_train=None, workers=1, batch_size=5,
        student="timm:mobilenetv3_small_050", teacher="torchvision:shufflenet_v2_x0_5",
    )  # fmt: skip
    result = hkd.distill(asked)
    assert result.summary["train_images"] == 9
    about = hkd.load_model(result.run / "student.safetensors")[1]
    assert (about["classes"], about["image_size"]) == (["cat", "dog", "eel"], 224)
    found = hkd.evaluate(hkd.EvaluateConfig(checkpoint=str(result.run), device="cpu", workers=0))
    assert found.images == 6


def test_reduced_precision_trains_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = hkd.create_model("resnet8", 10)
    seen = []
    forward = HolisticLoss.step
    monkeypatch.setattr(HolisticLoss, "step", lambda self, *a: seen.append(a[0].dtype) or forward(self, *a))
    result = hkd.distill(config(tmp_path / "d", epochs=2, precision="bf16", teacher=None), teacher=teacher)
    assert set(seen) == {torch.bfloat16}, "the networks computed in bf16"
    assert all(p.dtype == torch.float32 for p in result.model.parameters())
    rows = rows_of(tmp_path / "d")
    assert rows[1]["ce"] < rows[0]["ce"]


def test_all_parts_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[torch.nn.Module] = []
    monkeypatch.setattr(running, "Training", lambda *a: captured.append(a[0]) or before(a[0]) or loop.Training(*a))
    start: dict[str, torch.Tensor] = {}

    def before(objective: torch.nn.Module) -> None:
        start.update({name: p.detach().clone() for name, p in objective.named_parameters()})

    teacher = hkd.create_model("resnet8", 10)
    frozen = {name: p.detach().clone() for name, p in teacher.named_parameters()}
    hkd.distill(config(tmp_path / "d", epochs=1, teacher=None), teacher=teacher)
    assert [name for name, p in captured[0].named_parameters() if torch.equal(p, start[name])] == []
    assert any("teacher.embed" in name for name in start), "the method's own parts are among them"
    assert all(torch.equal(p, frozen[name]) for name, p in teacher.named_parameters())


def test_compile_compiles_both_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m: compiled.append(m) or original(m, backend="eager"))
    teacher = hkd.create_model("resnet8", 10)
    result = hkd.distill(config(tmp_path / "d", epochs=1, compile=True, teacher=None), teacher=teacher)
    assert compiled[0] is result.model and type(compiled[1]) is type(teacher) and len(compiled) == 2


def test_batches_larger_than_the_data_and_odd_ones(tmp_path: Path) -> None:
    teacher = hkd.create_model("resnet8", 10)
    for size in (1000, 7):
        asked = config(tmp_path / str(size), epochs=1, limit_train=5, batch_size=size, teacher=None)
        result = hkd.distill(asked, teacher=teacher)
        assert result.summary["train_images"] == 50


def test_learning_rates_follow_the_milestones() -> None:
    asked = hkd.TrainConfig()
    rates = [asked.lr_at(epoch) for epoch in (0, 149, 150, 179, 180, 209, 210, 239)]
    assert rates == pytest.approx([0.05, 0.05, 5e-3, 5e-3, 5e-4, 5e-4, 5e-5, 5e-5])
    imagenet = replace(asked, epochs=100, lr=0.1, milestones=(0.3, 0.6, 0.9))
    assert [imagenet.lr_at(e) for e in (29, 30, 60, 90)] == pytest.approx([0.1, 0.01, 1e-3, 1e-4])


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(hkd.TrainingError, match=r"no longer a number in epoch 1, step 2 \(loss .*--lr"):
        hkd.train(
            hkd.TrainConfig(run=str(tmp_path / "t"), student="resnet8", lr=1e30, epochs=1, limit_train=20, device="cpu")
        )


class Hundred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Own(100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def test_a_teacher_of_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(hkd.RequestError, match="teacher: Hundred tells 100 classes apart, digits has 10"):
        hkd.distill(config(tmp_path / "a", teacher=None), teacher=Hundred())
    hkd.save_model(hkd.create_model("resnet8", 100), tmp_path / "t.safetensors")
    with pytest.raises(hkd.RequestError, match="tells 100 classes apart, digits has 10"):
        hkd.distill(config(tmp_path / "a", teacher_checkpoint=str(tmp_path / "t.safetensors")))
    torch.save({"model": hkd.create_model("resnet8", 100).state_dict()}, tmp_path / "t.pth")
    with pytest.raises(hkd.RequestError, match=r"fc.weight is \(100, 64\) in the file"):
        hkd.distill(config(tmp_path / "a", teacher_checkpoint=str(tmp_path / "t.pth")))
    assert not (tmp_path / "a").exists(), "a refused request leaves no run folder"

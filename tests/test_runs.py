"""Whole runs on a few digits: what they leave, how they continue, what they refuse."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import hkd
from hkd import api, trainer
from hkd.cli import main
from hkd.data.base import FileDataset
from hkd.distiller import Distiller
from hkd.holistic import HolisticLoss
from hkd.models.weights import read_about, read_model
from hkd.runtime.progress import Progress
from hkd.runtime.run_folder import RunFolder, RunState
from hkd.trained import find_trained, open_test
from hkd.trainer import Trainer
from tests.data.test_datasets import class_folders, encoded, picture, write_files
from tests.first_version import write_run
from tests.models.test_external import Own


class Killed(BaseException):
    pass


HOLISTIC = ("individual_student", "individual_teacher", "holistic_student", "holistic_teacher")


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def config(run: Path, **changes: Any) -> hkd.DistillConfig:
    fields = {"epochs": 3, "limit_train": 20, "teacher": "resnet8", "tensorboard": False}
    return hkd.DistillConfig(run=str(run), device="cpu", **fields | changes)


def unfinished(start: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends a run between its last checkpoint and its summary."""

    def killed(self: RunFolder, *_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", killed)
        with pytest.raises(Killed):
            start()


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
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["best.safetensors"], "it is finished"
    assert RunFolder(run).state is RunState.FINISHED and summary["key"] == RunFolder(run).spec.key()
    assert list((run / "tensorboard").iterdir())
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert (written["method_weight"], written["kd_weight"], written["ce_weight"]) == (3.0, 1.0, 1.0)
    assert written["holistic"]["num_negatives"] == 16384
    assert (written["format"], written["method"], len(written["data_digest"])) == (2, "hkd", 16)
    assert (run / "teacher" / "model.safetensors").is_file()


def test_checkpoints_are_kept_where_that_is_wanted(tmp_path: Path) -> None:
    teacher = hkd.create_model("resnet8", 10)
    result = hkd.distill(config(tmp_path / "d", epochs=2, teacher=None, keep_checkpoints=True), teacher=teacher)
    names = {file.name for file in (result.run / "checkpoints").iterdir()}
    assert names == {"last.pt", "previous.pt", "best.safetensors"}


def test_the_student_file_is_complete(finished: hkd.Result) -> None:
    model, about = read_model(finished.run / "student.safetensors")
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


def test_a_finished_run_that_kept_its_checkpoint_gets_more_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(name: str, epochs: int, **changes: Any) -> hkd.DistillConfig:
        return config(tmp_path / name, epochs=epochs, milestones=(0.5,), keep_checkpoints=True, **changes)

    for name in ("a", "b"):
        assert hkd.distill(asked(name, 2)).summary["epochs"] == 2
    before, keys = rows_of(tmp_path / "a"), [RunFolder(tmp_path / "a").spec.key()]
    longer = hkd.distill(asked("a", 4))
    assert longer.summary["epochs"] == 4 and not longer.skipped
    assert rows_of(tmp_path / "a")[:2] == before, "past epochs stay as they were, with their rates"
    assert [round(row["lr"], 4) for row in rows_of(tmp_path / "a")] == [0.05, 0.005, 0.005, 0.005]
    assert hkd.distill(asked("a", 4)).skipped
    spec = RunFolder(tmp_path / "a").spec
    assert spec.optimisation.epochs_before == (2,) and rows_of(tmp_path / "a" / "teacher")[-1]["epoch"] == 2
    keys += [spec.key(), replace(spec, optimisation=replace(spec.optimisation, epochs_before=())).key()]
    assert len(set(keys)) == 3, "it never pools with runs that had all the epochs from the start"

    unfinished(lambda: hkd.distill(asked("b", 4)), monkeypatch)
    assert RunFolder(tmp_path / "b").state is RunState.BEGUN
    again = hkd.distill(asked("b", 4))
    assert torch.equal(_first(again), _first(longer))
    assert hkd.distill(asked("a", 5)).summary["epochs"] == 5
    assert RunFolder(tmp_path / "a").spec.optimisation.epochs_before == (2, 4)
    with pytest.raises(hkd.RequestError, match="holds a run with epochs = 5, not 3"):
        hkd.distill(asked("a", 3))
    with pytest.raises(hkd.RequestError, match="holds a run with epochs = 5, not 6"):  # and another rate
        hkd.distill(asked("a", 6, lr=0.1))


def test_a_process_that_reads_finds_a_longer_run_as_the_one_that_writes_prepared_it(tmp_path: Path) -> None:
    place, asked = tmp_path / "run", config(tmp_path / "run", epochs=2, keep_checkpoints=True)
    hkd.distill(asked)
    before = RunFolder(place).spec
    longer = replace(before, optimisation=replace(before.optimisation, epochs=3))
    writes, reads = RunFolder(place), RunFolder(place, writes=False)
    specs = [folder.extended(longer) for folder in (writes, reads)]  # each process by itself
    assert specs[0] == specs[1] and specs[0].optimisation.epochs_before == (2,)
    try:
        for folder in (writes, reads):
            folder.open(specs[0], fresh=False)
        assert reads.spec.optimisation.epochs == 3
    finally:
        writes.close()


@pytest.mark.parametrize("unlabelled", [False, True])
def test_training_accuracy_is_of_the_images_that_were_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unlabelled: bool
) -> None:
    """Of 10 images in batches of 9 an epoch skips one."""
    monkeypatch.setattr(trainer, "ranked", lambda logits: torch.arange(10)[None].expand(len(logits), -1))
    monkeypatch.setattr(trainer, "hits", lambda _, label: {"top1": (label >= 0).sum(), "top5": (label >= 0).sum()})
    changes: dict[str, Any] = {"limit_train": 1, "batch_size": 9, "epochs": 1, "method": "kd"}
    if unlabelled:
        more = write_files(tmp_path / "more", {f"{n}.png": encoded(picture((8, 8), n)) for n in range(12)})
        changes |= {"unlabelled": str(more), "batch_size": 8}
    result = hkd.distill(config(tmp_path / "run", **changes))
    assert rows_of(result.run)[-1]["train_top1"] == 100, "every labelled image is taken as a hit"


def _first(result: hkd.Result) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in result.model.parameters()])


def test_without_a_checkpoint_a_finished_run_gets_no_more_epochs(finished: hkd.Result) -> None:
    message = "holds a run with epochs = 3 that kept no checkpoint to continue from"
    with pytest.raises(hkd.RequestError, match=message):
        hkd.distill(config(finished.run, epochs=4))


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
        with pytest.raises(hkd.RequestError, match="is not a run folder"):
            hkd.distill(config(tmp_path), fresh=fresh)
    with pytest.raises(hkd.RequestError, match=r"run: cannot write|is not a run folder"):
        hkd.distill(config(tmp_path / "thesis.tex" / "run"))
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("bank_start", ["random", "first"])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: hkd.Result, bank_start: str
) -> None:
    teacher = finished.run / "teacher" / "model.safetensors"
    settings = {"bank_start": bank_start, "num_negatives": 50}
    whole = hkd.distill(config(tmp_path / "whole", teacher_checkpoint=str(teacher), settings=settings))

    evaluate = trainer.evaluate_model
    calls = []

    def die_in_the_second_epoch(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:  # after the teacher and the first epoch
            raise Killed
        return evaluate(*arguments)

    asked = config(tmp_path / "parts", teacher_checkpoint=str(teacher), settings=settings)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate_model", die_in_the_second_epoch)
        with pytest.raises(Killed):
            hkd.distill(asked)
    assert len(rows_of(tmp_path / "parts")) == 1 and RunFolder(tmp_path / "parts").state is RunState.BEGUN
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
def test_plus_kd_is_the_kd_term_with_weight_1(tmp_path: Path, finished: hkd.Result, method: str) -> None:
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

    set_epoch = Distiller.set_epoch
    for stop_at in (1, 2, 3):  # in the initialisation, between the stages, in the training
        calls = []

        def die(*arguments: Any, stop_at: int = stop_at, calls: list = calls) -> Any:
            if len(calls) == stop_at:
                raise Killed
            calls.append(arguments)
            return set_epoch(*arguments)

        asked = staged(tmp_path / f"parts-{stop_at}", method, finished)
        with monkeypatch.context() as patch:
            patch.setattr(Distiller, "set_epoch", die)
            with pytest.raises(Killed):
                hkd.distill(asked)
        parts = hkd.distill(asked)
        for (name, a), (_, b) in zip(whole.model.state_dict().items(), parts.model.state_dict().items(), strict=True):
            assert torch.equal(a, b), (stop_at, name)
        assert [row["epoch"] for row in rows_of(parts.run)] == [-1, 0, 1, 2]


def test_the_training_inherits_no_momentum_and_keeps_what_the_stage_fixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: hkd.Result
) -> None:
    train_step, seen = Trainer.train_step, []

    def watch(self: Trainer, step: int, batch: hkd.Batch) -> None:
        if step == 1:
            paraphraser = [p.detach().clone() for p in self.distiller.method.paraphraser.parameters()]
            student = self.distiller.student.conv1.weight.detach().clone()
            seen.append((len(self.optimizer.state), self.optimizer.param_groups[0]["lr"], paraphraser, student))
        train_step(self, step, batch)

    monkeypatch.setattr(Trainer, "train_step", watch)
    hkd.distill(staged(tmp_path / "d", "ft", finished, lr=0.02))
    states, rates, paraphrasers, students = zip(*seen, strict=True)
    assert [count > 0 for count in states] == [False, True, False, True]
    assert rates[:3] == (0.01, 0.01, 0.02)
    assert torch.equal(students[0], students[2]) and not torch.equal(students[2], students[3])
    pairs = [list(zip(paraphrasers[n], paraphrasers[n + 1], strict=True)) for n in (1, 2)]
    assert [all(torch.equal(a, b) for a, b in pair) for pair in pairs] == [False, True]


def test_a_method_knows_the_teacher_that_is_trained_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Watched(Trainer):
        def __init__(self, spec: Any, distiller: Distiller, *rest: Any) -> None:
            seen.append(distiller)
            super().__init__(spec, distiller, *rest)

    monkeypatch.setattr(api, "Trainer", Watched)
    result = hkd.distill(config(tmp_path / "d", method="sskd", epochs=1, settings={"init_epochs": 1}))
    distiller, teacher = seen[-1], seen[-1].teacher
    assert distiller.method.networks == (distiller.student, teacher)
    trained = hkd.load_model(result.run / "teacher")
    image = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(teacher(image).logits, trained.eval()(image).logits, rtol=1e-4, atol=1e-4)
    assert not teacher.training


def test_no_initialisation_epochs_is_no_initialisation(tmp_path: Path, finished: hkd.Result) -> None:
    result = hkd.distill(staged(tmp_path / "d", "ab", finished, settings={"init_epochs": 0}))
    assert [row["epoch"] for row in rows_of(result.run)] == [1, 2]
    assert "boundary" not in rows_of(result.run)[0]
    always = hkd.distill(staged(tmp_path / "e", "ab", finished, settings={"init_epochs": 0}, method_weight=1.0))
    assert "boundary" in rows_of(always.run)[0]


def test_an_interrupted_run_continues_in_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: hkd.Result
) -> None:
    train_step, told = Trainer.train_step, []

    def watch(self: Trainer, step: int, batch: hkd.Batch) -> None:
        train_step(self, step, batch)
        told.append((self.distiller.method.progress, self.distiller.method.theta.item()))
        if kill_at == len(told):
            raise Killed

    monkeypatch.setattr(Trainer, "train_step", watch)
    kill_at, settings = 0, {"reversal_epochs": 3}
    whole = hkd.distill(staged(tmp_path / "whole", "ctkd", finished, settings=settings, epochs=4))
    expected = list(told)
    assert {progress for progress, _ in expected} == {(epoch, 4) for epoch in range(4)}
    assert len({theta for _, theta in expected}) == len(expected), "θ moves in every step"
    told.clear()
    steps = len(expected) // 4
    kill_at = 2 * steps + 1  # in the third epoch
    asked = staged(tmp_path / "parts", "ctkd", finished, settings=settings, epochs=4)
    with pytest.raises(Killed):
        hkd.distill(asked)
    kill_at = 0
    parts = hkd.distill(asked)
    assert told[-2 * steps :] == expected[-2 * steps :]
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), parts.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


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
    with pytest.raises(hkd.RequestError, match="holds a network of its own, 'Own'; name its factory with --model"):
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


def test_the_default_teacher_and_a_teachers_accuracy_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: hkd.Result
) -> None:
    hkd.distill(config(tmp_path / "d", epochs=1, teacher=None, student="resnet8", method="kd"))
    told = capsys.readouterr().err
    assert f"no teacher is named: resnet20, the default, is trained first, in {tmp_path}/d/teacher; --teacher" in told
    given = str(finished.run / "teacher")
    right = hkd.distill(config(tmp_path / "e", epochs=1, teacher=None, teacher_checkpoint=given, student="resnet8"))
    told = capsys.readouterr().err
    assert f"teacher resnet8: top-1 {right.summary['teacher_top1']:.2f} % on the evaluation images\n" in told
    assert "no teacher is named" not in told and "near chance" not in told
    assert told.index("teacher resnet8: top-1") < told.index("epoch 1/1")
    permuted = hkd.load_model(finished.run / "teacher" / "model.safetensors")
    with torch.no_grad():
        for value in permuted.fc.parameters():
            value.copy_(value.roll(3, dims=0))
    hkd.distill(config(tmp_path / "f", epochs=1, teacher=None), teacher=permuted)
    assert "warning: the teacher is near chance, 10.00 %" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("classes", "top1", "warns"), [(2, 56, False), (2, 54, True), (10, 18, True), (10, 21, False), (100, 1.9, True)]
)
def test_near_chance(classes: int, top1: float, warns: bool) -> None:
    assert ("near chance" in trainer.accuracy_words("t", top1, classes)) is warns


def test_a_teacher_of_other_classes_is_refused_and_its_normalisation_taken(tmp_path: Path) -> None:
    teacher = hkd.create_model("resnet8", 10)
    hkd.save_model(teacher, tmp_path / "t.safetensors", classes=list("abcdefghij"))
    asked = config(tmp_path / "d", epochs=1, teacher=None, teacher_checkpoint=str(tmp_path / "t.safetensors"))
    with pytest.raises(hkd.RequestError, match="learnt other classes: 'a' where digits has '0'"):
        hkd.distill(asked)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    hkd.save_model(teacher, tmp_path / "t.safetensors", classes=list("0123456789"), mean=mean, std=std)
    about = read_about(hkd.distill(asked).weights)
    assert (about["mean"], about["std"]) == (mean, std)


def test_testing_uses_the_image_size_of_training(tmp_path: Path) -> None:
    odd = encoded(picture((20, 18), 3))
    files = class_folders((16, 16)) | {f"val/{c}/{n}.jpg": odd for c in ("cat", "dog", "eel") for n in (0, 1)}
    photos = write_files(tmp_path / "photos", files)
    for size in (None, 8):
        run = tmp_path / f"run-{size}"
        asked = config(run, dataset=f"folder:{photos}", epochs=1, limit_train=None, image_size=size)
        result = hkd.distill(asked)
        about = read_about(result.weights)
        assert about["image_size"] == (size or 16)
        for checkpoint in (run, result.weights, run / "checkpoints" / "best.safetensors"):
            found = hkd.evaluate(hkd.EvaluateConfig(checkpoint=str(checkpoint), device="cpu"))
            assert found.images == 6
            assert found.top1 == pytest.approx(result.summary["top1_last"])


def test_a_run_cut_short_while_writing_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: hkd.Result
) -> None:
    asked = config(tmp_path / "d", teacher_checkpoint=str(finished.run / "teacher"))
    unfinished(lambda: hkd.distill(asked), monkeypatch)
    metrics = tmp_path / "d" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"epoch": 4, "lo')
    assert hkd.distill(asked).summary["epochs"] == 3
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


def test_lost_metrics_come_back_from_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: hkd.Result
) -> None:
    asked = config(tmp_path / "d", teacher_checkpoint=str(finished.run / "teacher"))
    unfinished(lambda: hkd.distill(asked), monkeypatch)
    before = rows_of(tmp_path / "d")
    (tmp_path / "d" / "metrics.jsonl").unlink()
    hkd.distill(asked)
    assert rows_of(tmp_path / "d") == before


def test_a_corrupt_checkpoint_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: hkd.Result
) -> None:
    run = tmp_path / "d"
    asked = config(run, teacher_checkpoint=str(finished.run / "teacher"))
    unfinished(lambda: hkd.distill(asked), monkeypatch)
    for name in ("last.pt", "previous.pt"):
        checkpoint = run / "checkpoints" / name
        checkpoint.write_bytes(checkpoint.read_bytes()[:999])
    with pytest.raises(hkd.RequestError, match="last.pt is corrupt; start over with --fresh"):
        hkd.distill(asked)
    assert hkd.distill(asked, fresh=True).summary["epochs"] == 3


def test_a_training_set_that_changed_between_starts_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: hkd.Result
) -> None:
    photos = write_files(tmp_path / "photos", class_folders())
    asked = hkd.TrainConfig(run=str(tmp_path / "t"), dataset=f"folder:{photos}", epochs=2, device="cpu")
    unfinished(lambda: hkd.train(asked), monkeypatch)
    write_files(photos, {"train/cat/new.png": encoded(picture((12, 12), 5))})
    with pytest.raises(
        hkd.RequestError, match="dataset: the images are not what the run in .* began with; name another folder"
    ):
        hkd.train(asked)


def test_a_request_can_be_changed_before_training_has_begun(tmp_path: Path) -> None:
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
    about = read_about(result.run / "student.safetensors")
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
    captured: list[Distiller] = []
    start: dict[str, torch.Tensor] = {}

    class Watched(Trainer):
        def __init__(self, spec: Any, distiller: Distiller, *rest: Any) -> None:
            captured.append(distiller)
            start.update({name: p.detach().clone() for name, p in distiller.named_parameters()})
            super().__init__(spec, distiller, *rest)

    monkeypatch.setattr(api, "Trainer", Watched)
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


def test_a_loss_that_is_nan_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(hkd.TrainingError, match=r"the loss is NaN or infinite in epoch 1, step 2 \(loss .*--lr"):
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
    with pytest.raises(hkd.RequestError, match="teacher: Hundred has a 100-class head, digits has 10 classes"):
        hkd.distill(config(tmp_path / "a", teacher=None), teacher=Hundred())
    hkd.save_model(hkd.create_model("resnet8", 100), tmp_path / "t.safetensors")
    with pytest.raises(hkd.RequestError, match="t.safetensors has a 100-class head, digits has 10 classes"):
        hkd.distill(config(tmp_path / "a", teacher_checkpoint=str(tmp_path / "t.safetensors")))
    torch.save({"model": hkd.create_model("resnet8", 100).state_dict()}, tmp_path / "t.pth")
    with pytest.raises(hkd.RequestError, match=r"fc.weight is \(100, 64\) in the file"):
        hkd.distill(config(tmp_path / "a", teacher_checkpoint=str(tmp_path / "t.pth")))
    assert not (tmp_path / "a").exists(), "a refused request leaves no run folder"


# -- what a run says and how often it looks ---------------------------------------------------------------------------


def test_fresh_starts_over_where_the_summary_is_corrupt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "t"
    words = ["train", "--run", str(run), "--epochs", "1", "--limit-train", "4", "--device", "cpu", "--no-tensorboard"]
    assert main(words) == 0
    (run / "summary.json").write_text('{"top1_last": 1')
    capsys.readouterr()
    assert main(words) == 2
    assert capsys.readouterr().err == f"hkd: run: {run}/summary.json is corrupt (not JSON); start over with --fresh\n"
    assert main([*words, "--fresh"]) == 0
    assert json.loads((run / "summary.json").read_text())["epochs"] == 1
    assert (tmp_path / "t.1" / "summary.json").read_text() == '{"top1_last": 1'


def test_every_epoch_is_evaluated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, calls = trainer.evaluate_model, []
    monkeypatch.setattr(trainer, "evaluate_model", lambda *a: calls.append(a[0]) or evaluate(*a))
    teacher = hkd.create_model("resnet8", 10)
    result = hkd.distill(config(tmp_path / "d", teacher=None), teacher=teacher)
    assert [network is result.model for network in calls] == [False, True, True, True], "the teacher, and each epoch"
    predicted, label = RunFolder(result.run).predictions()
    assert 100 * float((predicted == label).mean()) == pytest.approx(result.summary["top1_last"])


def test_the_evaluation_split_can_be_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    every = hkd.train(hkd.TrainConfig(run=str(tmp_path / "every"), epochs=3, limit_train=20, device="cpu"))
    capsys.readouterr()
    evaluate, calls = trainer.evaluate_model, []
    monkeypatch.setattr(trainer, "evaluate_model", lambda *a: calls.append(a) or evaluate(*a))
    asked = hkd.TrainConfig(run=str(tmp_path / "last"), epochs=3, limit_train=20, device="cpu", evaluate="last")
    last = hkd.train(asked)
    assert len(calls) == 1
    assert last.summary["top1_best"] == last.summary["top1_last"] == every.summary["top1_last"]
    assert last.summary["best_epoch"] == 3
    assert ["test_top1" in row for row in rows_of(last.run)] == [False, False, True]
    lines = [line for line in capsys.readouterr().err.splitlines() if "epoch" in line]
    assert ["test" in line for line in lines] == [False, False, True]
    assert all("train" in line and "initialisation" not in line for line in lines)
    assert every.summary["key"] == last.summary["key"], "the same is learnt"


def test_an_evaluation_of_held_out_images_opens_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_files(tmp_path / "photos", class_folders(train=6))
    asked = hkd.TrainConfig(
        run=str(tmp_path / "run"), dataset=f"folder:{photos}", holdout=0.34, epochs=1, batch_size=6, device="cpu"
    )
    run = hkd.train(asked)
    held_out = open_test(hkd.EvaluateConfig(checkpoint=str(run.run)), find_trained(str(run.run)))
    assert isinstance(held_out, FileDataset)
    for file in photos.rglob("*.*"):
        if str(file.relative_to(photos)) not in held_out.names:
            file.write_bytes(b"no image")
    capsys.readouterr()
    result = hkd.evaluate(hkd.EvaluateConfig(checkpoint=str(run.run)))
    assert (result.images, result.top1) == (6, pytest.approx(run.summary["top1_last"]))
    assert result.source == f"the held-out part of folder:{photos}"
    assert "cannot be read" not in capsys.readouterr().err
    assert main(["evaluate", str(run.run)]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.endswith(f"6 images: {result.source}") and "top-5" not in line, "there are three classes"


def test_options_that_exclude_each_other_are_refused_before_images_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "open_data", lambda *_, **__: pytest.fail("images were opened"))
    asked = hkd.TrainConfig(run=str(tmp_path / "run"), epochs=2, warmup_epochs=3, device="cpu")
    with pytest.raises(hkd.RequestError, match="warmup_epochs: expected fewer than the 2 epochs, 0 for none; got 3"):
        hkd.train(asked)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_progress_counts_the_images_of_each_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    counted, totals = [], []
    start = Progress.__init__
    monkeypatch.setattr(Progress, "__init__", lambda self, title, images, *a, **k: (
        totals.append(images), start(self, title, images, *a, **k))[1])  # fmt: skip
    monkeypatch.setattr(Progress, "images", lambda self, count, loss=None: counted.append(count))
    if streamed:
        files = class_folders((110, 100), train=4)
        options: dict[str, Any] = {
            "dataset": f"folder:{write_files(tmp_path / 'photos', files)}", "image_size": 100, "workers": 0,
            "batch_size": 5,
        }  # fmt: skip
        sizes = [5, 5, 2]
    else:
        options, sizes = {"limit_train": 15, "batch_size": 64}, [64, 64, 22]
    hkd.train(hkd.TrainConfig(run=str(tmp_path / "t"), epochs=2, device="cpu", tensorboard=False, **options))
    assert counted == 2 * sizes
    assert totals == [sum(counted)]


def test_a_loss_says_what_it_is_the_sum_of(
    tmp_path: Path, finished: hkd.Result, capsys: pytest.CaptureFixture[str]
) -> None:
    result = hkd.distill(
        staged(tmp_path / "d", "dkd", finished, settings={"warmup_epochs": 4}, epochs=2, kd_weight=0.5)
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if " epoch " in line and line.startswith("d ")]
    assert len(lines) == 2
    for line, row, weight in zip(lines, rows_of(result.run), (0.25, 0.5), strict=True):
        dkd = row["target"] + row["nontarget"]
        assert (
            f"loss {row['loss']:.3f} = ce {row['ce']:.2f} + 0.5 x kd {row['kd']:.2f} + {weight:g} x dkd {dkd:.2f}"
            in line
        )


def test_a_bar_on_a_terminal_ends_at_its_total(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    progress, asked = Progress("a (resnet8)", 300, 100, 2), []
    progress.begin(2)
    for count in (64, 64, 22):
        progress.images(count, lambda: asked.append(1) or 1.25)
    assert progress._bar.n == 250 and progress._bar.total == 300
    assert str(progress._bar).startswith("a (resnet8)  epoch 2/2: ") and "loss 1.250" in str(progress._bar)
    assert asked == [1], "it waits for the device once a second"
    progress.close()


def test_a_start_says_images_classes_and_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = {"epochs": 1, "device": "cpu", "tensorboard": False}
    hkd.train(hkd.TrainConfig(run=str(tmp_path / "d"), limit_train=20, **train))
    assert "digits: 200 training and 355 test images, 10 classes, 8x8\nnormalised by " in capsys.readouterr().err
    photos = write_files(tmp_path / "photos", class_folders((110, 100), train=4))
    hkd.train(hkd.TrainConfig(run=str(tmp_path / "p"), dataset=f"folder:{photos}", image_size=100, workers=0, **train))
    told = capsys.readouterr().err
    assert f"folder:{photos}: 12 training and 6 test images, 3 classes, shown at 100x100\n" in told
    assert "training images streamed" in told


def test_the_line_of_an_epoch_says_of_which_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = {"epochs": 1, "device": "cpu", "tensorboard": False, "limit_train": 5}
    hkd.train(hkd.TrainConfig(run=str(tmp_path / "t"), **tiny))
    assert "  test " in (line := capsys.readouterr().err) and "held out" not in line
    hkd.train(hkd.TrainConfig(run=str(tmp_path / "h"), holdout=0.2, **tiny))
    assert "  held out " in (line := capsys.readouterr().err) and "  test " not in line


def test_a_training_s_configuration_names_one_network(tmp_path: Path) -> None:
    result = hkd.train(
        hkd.TrainConfig(run=str(tmp_path / "t"), teacher="resnet14", epochs=1, limit_train=4, device="cpu")
    )
    written = yaml.safe_load((result.run / "config.yaml").read_text())
    assert written["student"] == "resnet14" and not {"role", "teacher", "method"} & written.keys()


# -- runs of other versions -------------------------------------------------------------------------------------------


def test_an_unfinished_run_of_another_format_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "t"
    words = ["train", "--run", str(run), "--epochs", "1", "--limit-train", "4", "--device", "cpu", "--no-tensorboard"]
    unfinished(lambda: main(words), monkeypatch)
    last = run / "checkpoints" / "last.pt"
    state = torch.load(last, weights_only=True)
    for version in (1, 3):
        torch.save({name: value for name, value in state.items() if name != "format"} | (
            {} if version == 1 else {"format": version}), last)  # fmt: skip
        capsys.readouterr()
        assert main(words) == 2
        assert capsys.readouterr().err.splitlines()[-1] == (
            f"hkd: run: {last} has checkpoint format {version}, and this version continues format 2; "
            "start over with --fresh"
        )
    torch.save(state, last)
    assert main(words) == 0
    torch.save({"format": 3}, last)
    assert main(words) == 0 and "is finished" in capsys.readouterr().out, "a finished run is always read"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder of version 0.1."""
    monkeypatch.chdir(tmp_path)
    write_run(Path("old"))
    return Path("old")


OLD_WORDS = "--epochs 2 --limit-train 4 --device cpu --no-tensorboard".split()


def test_a_finished_run_of_the_first_version_is_left_alone(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in old.rglob("*") if file.is_file()}
    for words in (
        ["distill", "--run", "old", "--teacher", "resnet14"],
        ["distill", "--run", "old", "--teacher", "resnet14", "--method", "hkd+kd", "--data-root", "elsewhere"],
        ["train", "--run", "old/teacher", "--teacher", "resnet14"],
    ):
        assert main([*words, *OLD_WORDS]) == 0
        assert " is finished; --fresh starts over" in capsys.readouterr().out
    for command, file in (("distill", "old/config.yaml"), ("train", "old/teacher/config.yaml")):
        assert main([command, "--config", file]) == 0
        assert "is finished" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in old.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "0.1"], "lr = 0.05, not 0.1"), (["--seed", "3"], "seed = 0, not 3"),
        (["--limit-train", "5"], "limit_train = 4, not 5"), (["--holistic.k", "4"], "holistic.k = 8, not 4"),
        (["--method", "hkd"], "kd_weight = 1.0, not 0.0"), (["--holdout", "0.1"], "holdout = 0.0, not 0.1"),
    ],
)  # fmt: skip
def test_another_request_for_a_run_of_the_first_version_is_refused(
    old: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["distill", "--run", "old", "--teacher", "resnet14", *OLD_WORDS, *words]) == 2
    assert capsys.readouterr().err == (
        f"hkd: run: old holds a run with {message}; name another folder with --run, or start over with --fresh\n"
    )


def test_a_run_of_the_first_version_is_read(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((old / "summary.json").read_text())
    for run in (old, old / "teacher", old / "checkpoints" / "best.safetensors"):
        assert main(["evaluate", str(run), "--device", "cpu"]) == 0
        assert capsys.readouterr().out.startswith("top-1 ")
    assert hkd.evaluate(hkd.EvaluateConfig(checkpoint="old", device="cpu")).top1 == pytest.approx(summary["top1_last"])
    assert main(["export", "old", "--formats", "safetensors,torch"]) == 0
    card = (old / "export" / "MODEL_CARD.md").read_text()
    assert "Trained on digits with hkd+kd from the teacher resnet14" in card and "same class for all 355" in card


def test_a_run_of_the_first_version_is_reported(old: Path) -> None:
    summary = json.loads((old / "summary.json").read_text())
    assert main(["report", "old", "--output", "report.html"]) == 0
    assert f"{summary['top1_last']:.2f}" in Path("report.html").read_text()


def test_a_run_of_the_first_version_teaches_and_its_configuration_runs(
    old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", "--config", "old/config.yaml", "--run", "new", "--teacher-checkpoint", "old/teacher"]) == 0
    spec = RunFolder("new").spec
    assert spec.data.revision == 1 and spec.method is not None and spec.method.revision >= 1
    assert spec.teacher is not None and spec.teacher.digest.startswith("run ")
    assert spec.key() != RunFolder(old).spec.key()


def test_an_unfinished_run_of_the_first_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "old", finished=False)
    words = ["distill", "--run", str(tmp_path / "old"), "--teacher", "resnet14", *OLD_WORDS]
    assert main(words) == 2
    assert capsys.readouterr().err == (
        f"hkd: run: {tmp_path}/old holds an unfinished run of hkd 0.1, which cannot continue; "
        "name another folder with --run, or start over with --fresh\n"
    )
    assert main([*words, "--fresh"]) == 0
    assert (tmp_path / "old.1" / "checkpoints" / "last.pt").is_file()


def test_another_teacher_in_the_run_s_own_folder_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_epoch = Distiller.set_epoch

    def killed(self: Distiller, epoch: int, epochs: int) -> None:
        if self.teacher is not None and epoch == 1:
            raise Killed
        set_epoch(self, epoch, epochs)

    asked = config(tmp_path / "d")
    with monkeypatch.context() as patch:
        patch.setattr(Distiller, "set_epoch", killed)
        with pytest.raises(Killed):
            hkd.distill(asked)
    weights = tmp_path / "d" / "teacher" / "model.safetensors"
    before = weights.read_bytes()
    about = read_about(weights)
    del about["model"], about["num_classes"]
    hkd.save_model(hkd.create_model("resnet8", 10), weights, **about)
    with pytest.raises(hkd.RequestError, match="teacher: the teacher's weights are not what the run in .* began with"):
        hkd.distill(asked)
    weights.write_bytes(before)
    assert hkd.distill(asked).summary["epochs"] == 3

"""Comparisons on a few digits: what is trained, what is reused, what the tables say."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import hkd
from hkd.config import CONTROL, MethodRequest
from hkd.report.published import SETTINGS, ZHOU, published
from hkd.report.results import Comparison, Pair, Row
from hkd.report.tables import as_csv, csv_text, markdown, overview
from hkd.runtime.run_folder import RunFolder, RunState
from hkd.spec import RunSpec, resolve_method
from hkd.studies.compare import plan_comparison
from tests.studies.fakes import InstantEngine

METHODS = ("ce", "kd", CONTROL, "at+kd", "hkd(num_negatives=50)+kd")


def config(run: Path, **changes: Any) -> hkd.CompareConfig:
    fields = {
        "teachers": ("resnet14",), "students": ("resnet8",), "methods": METHODS, "trials": 2, "epochs": 2,
        "limit_train": 20, "tensorboard": False, "device": "cpu", "threads": 1,
    }  # fmt: skip
    return hkd.CompareConfig(run=str(run), **fields | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that has been trained; tests that change it take a copy."""
    run = tmp_path_factory.mktemp("compare") / "c"
    hkd.compare(config(run, jobs=2))
    return run


def numbers_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "comparison.json").read_text())


def config_of(run: str | Path) -> dict[str, Any]:
    return yaml.safe_load((Path(run) / "config.yaml").read_text())


# -- what is trained --------------------------------------------------------------------------------------------------


def test_what_a_comparison_leaves(finished: Path) -> None:
    (pair,) = numbers_of(finished)["pairs"]
    assert (pair["teacher"], pair["student"], len(pair["methods"])) == ("resnet14", "resnet8", 5)
    summary = json.loads((finished / "teachers" / "resnet14" / "summary.json").read_text())
    assert pair["teacher_top1"] == pytest.approx(summary["top1_last"])
    for row in pair["methods"]:
        assert [Path(run).is_dir() for run in row["runs"]] == [True, True]
        for run, top1 in zip(row["runs"], row["top1_last"], strict=True):
            predicted, label = RunFolder(run).predictions()
            assert top1 == pytest.approx(100 * np.mean(predicted == label))
    values = config_of(finished / "resnet14-resnet8" / "hkd_num_negatives=50_+kd-1")
    assert (values["seed"], values["kd_weight"], values["holistic"]["num_negatives"]) == (1, 1.0, 50)
    rows = list(csv.DictReader((finished / "comparison.csv").open()))
    assert [row["method"] for row in rows] == list(METHODS)
    assert all(int(row["n"]) == 2 for row in rows)
    text = (finished / "comparison.md").read_text()
    assert all(f"| {method} " in text for method in METHODS)
    assert "digits: 200 training and 355 test images, 10 classes" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "20 epochs, batch 64, learning rate 0.05, times 0.1 after 12, 15, 18; fp32"),
        (
            {"schedule": "cosine", "optimizer": "adamw", "warmup_epochs": 3, "min_lr": 1e-5},
            "20 epochs of adamw, batch 64, learning rate 0.05, rising over 3 epochs, falling to 1e-05 along a cosine",
        ),
    ],
)
def test_a_table_says_the_schedule_that_was_used(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    request = hkd.CompareConfig(
        run=str(tmp_path / "c"), teachers=("resnet14",), students=("resnet8",), methods=("ce", "kd"), trials=1,
        epochs=20, limit_train=20, device="cpu", **changes,
    )  # fmt: skip
    assert plan_comparison(request, False).comparison().protocol[1].startswith(words)


def test_a_finished_comparison_trains_nothing(finished: Path, engine: InstantEngine) -> None:
    before = numbers_of(finished)
    hkd.compare(config(finished))
    assert engine.started == []
    assert numbers_of(finished) == before


def test_more_trials_and_methods_reuse_what_is_there(tmp_path: Path, finished: Path, engine: InstantEngine) -> None:
    shutil.copytree(finished, tmp_path / "c")
    hkd.compare(config(tmp_path / "c", methods=(*METHODS, "sp"), trials=3))
    assert engine.started == [
        "resnet14-resnet8/sp-0", "resnet14-resnet8/sp-1", "alone/resnet8-2", "resnet14-resnet8/kd-2",
        "resnet14-resnet8/kd_ce_weight=1,kd_weight=1-2",
        "resnet14-resnet8/at+kd-2", "resnet14-resnet8/hkd_num_negatives=50_+kd-2", "resnet14-resnet8/sp-2",
    ]  # fmt: skip


def test_an_interrupted_comparison_continues(tmp_path: Path, engine: InstantEngine) -> None:
    request = config(tmp_path / "c", methods=("ce", "kd", "at"))
    engine.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        hkd.compare(request)
    assert engine.started == ["teachers/resnet14", "alone/resnet8-0", "resnet14-resnet8/kd-0"]
    partial = numbers_of(tmp_path / "c")["pairs"][0]["methods"]
    assert [len(row["seeds"]) for row in partial] == [1, 1, 0]
    assert "…" in (tmp_path / "c" / "comparison.md").read_text()
    engine.stop_at = None
    hkd.compare(request)
    assert engine.started[3:] == [
        "resnet14-resnet8/at-0", "alone/resnet8-1", "resnet14-resnet8/kd-1", "resnet14-resnet8/at-1",
    ]  # fmt: skip


def test_a_comparison_that_was_cut_short_before_its_first_table_continues(
    tmp_path: Path, engine: InstantEngine
) -> None:
    engine.stop_at = 0
    with pytest.raises(KeyboardInterrupt):
        hkd.compare(config(tmp_path / "c", methods=("ce",)))
    assert not (tmp_path / "c" / "comparison.json").exists()
    engine.stop_at = None
    hkd.compare(config(tmp_path / "c", methods=("ce",)))
    assert engine.started == ["alone/resnet8-0", "alone/resnet8-1"]


def test_a_run_of_another_specification_is_refused(finished: Path) -> None:
    with pytest.raises(hkd.RequestError, match=r"holds a run with epochs = 2, not 3; .* --fresh"):
        hkd.compare(config(finished, epochs=3))


def test_a_later_run_that_differs_is_refused_before_an_earlier_one_is_trained(
    tmp_path: Path, finished: Path, engine: InstantEngine
) -> None:
    hkd.save_model(hkd.create_model("resnet14", 10), tmp_path / "other.safetensors")
    teacher = {"resnet14": str(tmp_path / "other.safetensors")}
    with pytest.raises(hkd.RequestError, match="holds a run with teacher_checkpoint = "):
        hkd.compare(config(finished, methods=("sp", *METHODS), teacher_checkpoints=teacher))
    assert engine.started == []


def test_a_teacher_that_is_given_is_the_one_that_was_trained(finished: Path, engine: InstantEngine) -> None:
    teacher = {"resnet14": str(finished / "teachers" / "resnet14")}
    hkd.compare(config(finished, teacher_checkpoints=teacher))
    assert engine.started == [], "the same weights teach, by whatever path"


def test_fresh_starts_over_from_wherever_it_was(tmp_path: Path, engine: InstantEngine) -> None:
    engine.stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        hkd.compare(config(tmp_path / "c"))
    engine.stop_at = None
    hkd.compare(config(tmp_path / "c", methods=("ce",), trials=1, epochs=1), fresh=True)
    assert (tmp_path / "c.1" / "comparison.json").is_file()
    assert numbers_of(tmp_path / "c")["pairs"][0]["methods"][0]["seeds"] == [0]


def test_a_wrong_request_sets_nothing_aside(finished: Path) -> None:
    with pytest.raises(hkd.RequestError, match="unknown name 'hdk'"):
        hkd.compare(config(finished, methods=("ce", "hdk")), fresh=True)
    assert (finished / "comparison.json").is_file()


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for fresh in (False, True):
        with pytest.raises(hkd.RequestError, match="exists and is no comparison"):
            hkd.compare(config(tmp_path), fresh=fresh)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_folder_of_a_run_or_of_another_study_is_refused(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(hkd.RequestError, match="exists and is no comparison"):
        hkd.compare(config(finished / "alone" / "resnet8-0"))
    (tmp_path / "study.yaml").write_text("kind: sweep\n")
    with pytest.raises(hkd.RequestError, match="is the folder of a sweep"):
        hkd.compare(config(tmp_path))


def test_students_alone_need_no_teacher(tmp_path: Path, engine: InstantEngine) -> None:
    hkd.compare(config(tmp_path / "c", methods=("ce",), trials=1))
    assert engine.started == ["alone/resnet8-0"]


def test_weights_are_settings_of_a_line(tmp_path: Path, finished: Path, engine: InstantEngine) -> None:
    teacher = {"resnet14": str(finished / "teachers" / "resnet14")}
    line = "hkd(method_weight=0.5,ce_weight=2,k=4)+kd"
    hkd.compare(config(tmp_path / "c", methods=(line,), trials=1, teacher_checkpoints=teacher))
    control, row = numbers_of(tmp_path / "c")["pairs"][0]["methods"]
    values = config_of(row["runs"][0])
    weights = values["method_weight"], values["ce_weight"], values["kd_weight"], values["holistic"]["k"]
    assert weights == (0.5, 2, 1, 4)
    assert values["teacher_checkpoint"] == teacher["resnet14"]
    assert control["method"] == CONTROL
    assert engine.started[1:] == ["resnet14-resnet8/hkd_method_weight=0.5,ce_weight=2,k=4_+kd-0"]


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (("ce", "kd", "at"), ("ce", "kd", "at")),
        (("ce", "kd", "at+kd", "hkd+kd"), ("ce", "kd", CONTROL, "at+kd", "hkd+kd")),
        (("at+kd", "kd( kd_weight=1.0, ce_weight=1 )"), ("at+kd", "kd(kd_weight=1.0,ce_weight=1)")),
        (("at+kd", "kd(ce_weight=1,kd_weight=2)"), (CONTROL, "at+kd", "kd(ce_weight=1,kd_weight=2)")),
    ],
)
def test_methods_with_kd_have_their_control(
    tmp_path: Path, engine: InstantEngine, capsys: pytest.CaptureFixture[str], written: tuple, lines: tuple
) -> None:
    request = config(tmp_path / "c", methods=written, trials=1, baseline=lines[0])
    hkd.compare(request)
    said = [line for line in capsys.readouterr().err.splitlines() if "is added" in line]
    assert len(said) == (len(lines) > len(written)) and all(CONTROL in line for line in said)
    rows = numbers_of(tmp_path / "c")["pairs"][0]["methods"]
    assert tuple(row["method"] for row in rows) == lines
    assert all(len(row["seeds"]) == 1 for row in rows)
    if CONTROL in lines:
        values = config_of(tmp_path / "c" / "resnet14-resnet8" / "kd_ce_weight=1,kd_weight=1-0")
        assert (values["method"], values["ce_weight"], values["kd_weight"], values["method_weight"]) == ("kd", 1, 1, 0)


def test_a_student_of_two_teachers_is_trained_alone_once(tmp_path: Path, engine: InstantEngine) -> None:
    request = config(
        tmp_path / "c", methods=("ce", "kd"), trials=1, pairs=("resnet14->resnet8", "wrn_16_1 -> resnet8"),
        teachers=(), students=(), lr_of={"resnet8": 0.01},
    )  # fmt: skip
    hkd.compare(request)
    assert engine.started == [
        "teachers/resnet14", "teachers/wrn_16_1", "alone/resnet8-0", "resnet14-resnet8/kd-0", "wrn_16_1-resnet8/kd-0",
    ]  # fmt: skip
    for folder, lr in (("alone/resnet8-0", 0.01), ("wrn_16_1-resnet8/kd-0", 0.01), ("teachers/wrn_16_1", 0.05)):
        assert config_of(tmp_path / "c" / folder)["lr"] == lr
    assert "## All pairs" in (tmp_path / "c" / "comparison.md").read_text()


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_corrupt_run_fails_and_its_folder_is_named(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "c")
    run = tmp_path / "c" / "alone" / "resnet8-1"
    (run / "summary.json").unlink()
    for name in ("last.pt", "previous.pt"):
        (run / "checkpoints" / name).write_bytes(b"torn")
    result = hkd.compare(config(tmp_path / "c"))
    assert result.failed == (str(run),)
    assert f"last.pt is corrupt; delete {run} to train it again" in capsys.readouterr().err
    rows = numbers_of(tmp_path / "c")["pairs"][0]["methods"]
    assert [(row["note"], len(row["seeds"])) for row in rows] == [("failed", 1), *[("", 2)] * 4]


def test_a_run_that_failed_is_tried_again_if_asked_to(tmp_path: Path, engine: InstantEngine) -> None:
    run = RunFolder(tmp_path / "c" / "alone" / "resnet8-0")
    run.fail(RunState.FAILED, "no luck", 1)
    (tmp_path / "c" / "study.yaml").write_text("kind: compare\n")
    request = {"methods": ("ce",), "trials": 1}
    assert hkd.compare(config(tmp_path / "c", **request)).failed == (str(run.path),)
    assert engine.started == []
    assert "| ce       | failed " in (tmp_path / "c" / "comparison.md").read_text()
    assert hkd.compare(config(tmp_path / "c", retry_failed=True, **request)).failed == ()
    assert engine.started == ["alone/resnet8-0"]
    assert run.failure is None


def test_runs_whose_teacher_failed_have_failed_until_it_is_there(tmp_path: Path, engine: InstantEngine) -> None:
    teacher = RunFolder(tmp_path / "c" / "teachers" / "resnet14")
    teacher.fail(RunState.FAILED, "the loss is NaN or infinite", 1)
    (tmp_path / "c" / "study.yaml").write_text("kind: compare\n")
    request = {"methods": ("ce", "kd"), "trials": 1}
    result = hkd.compare(config(tmp_path / "c", **request))
    assert engine.started == ["alone/resnet8-0"]
    assert [Path(run).name for run in result.failed] == ["resnet14", "kd-0"]
    hkd.compare(config(tmp_path / "c", retry_failed=True, **request))
    assert engine.started[1:] == ["teachers/resnet14", "resnet14-resnet8/kd-0"]


def test_a_method_that_cannot_work_is_noted_and_the_others_run(
    tmp_path: Path, engine: InstantEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    hkd.compare(config(tmp_path / "c", teachers=("wrn_16_2",), methods=("ce", "fsp"), trials=1))
    assert "fsp compares Gram matrices" in capsys.readouterr().err
    assert engine.started == ["alone/resnet8-0"], "nobody learns from that teacher"
    assert "cannot work here" in (tmp_path / "c" / "comparison.md").read_text()


def test_a_run_that_diverges_is_noted_and_the_others_run(tmp_path: Path, finished: Path) -> None:
    teacher = {"resnet14": str(finished / "teachers" / "resnet14")}
    methods = ("rkd(distance_weight=1e30)", "kd")
    request = config(tmp_path / "c", methods=methods, trials=1, epochs=1, teacher_checkpoints=teacher, jobs=2)
    result = hkd.compare(request)
    assert [Path(run).name for run in result.failed] == ["rkd_distance_weight=1e30-0"]
    failure = json.loads((Path(result.failed[0]) / "failed.json").read_text())
    assert (failure["state"], failure["status"]) == ("failed", 1)
    assert failure["message"].startswith("the loss is NaN or infinite in epoch 1")
    rows = numbers_of(tmp_path / "c")["pairs"][0]["methods"]
    assert [row["note"] for row in rows] == ["diverged", ""]
    assert len(rows[1]["seeds"]) == 1
    lines = (tmp_path / "c" / "comparison.md").read_text().splitlines()
    assert any("| diverged " in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("ce", "hdk")}, "method: unknown name 'hdk'; did you mean hkd"),
        ({"methods": ("kd+kd",)}, "methods: kd takes nothing beside it"),
        ({"methods": ("ce(k=4)",)}, "methods: ce takes nothing beside it"),
        ({"methods": ("hkd(k=4,k=5)",)}, "methods: a setting is listed twice"),
        ({"methods": ("hkd(kd_weight=much)",)}, "methods: kd_weight is a number"),
        ({"methods": ("kd(kd_standardise=2)",)}, "methods: kd_standardise is true or false"),
        ({"methods": ("hkd(kd_weight=-1)",)}, "kd_weight: expected 0 or more; got -1"),
        ({"pairs": ("resnet14->resnet8",)}, "pairs: they name the networks; drop teachers and students"),
        ({"methods": ("hkd(k)",)}, "methods: expected setting=value, got 'k'"),
        ({"methods": ("hkd(k=4",)}, "methods: expected NAME, NAME[+]kd or"),
        ({"methods": ("hkd(kk=4)",)}, "holistic: unknown name 'kk'; did you mean k"),
        ({"methods": ("hkd(k=four)",)}, "holistic.k: expected int; got 'four'"),
        ({"methods": ("hkd(negatives=mine)",)}, "holistic.negatives: expected one of same, opposite; got 'mine'"),
        ({"methods": ("kd", "kd")}, "methods: kd is listed twice"),
        ({"methods": ()}, "methods: name at least one"),
        ({"trials": 0}, r"trials: expected a number in \[1, 100000\]; got 0"),
        ({"pairs": ("resnet14",), "teachers": (), "students": ()}, "pairs: expected TEACHER->STUDENT; got 'resnet14'"),
        ({"students": ("resnet9",)}, "model: unknown name 'resnet9'; did you mean resnet"),
        ({"baseline": "at"}, "baseline: unknown name 'at'; known: ce, kd, kd.ce_weight=1,kd_weight=1., at[+]kd"),
        ({"lr_of": {"resnet20": 0.1}}, "lr_of: unknown name 'resnet20'; did you mean"),
        ({"lr_of": {"resnet8": 0.0}}, "lr_of.resnet8: expected a number above 0; got 0.0"),
        ({"teacher_checkpoints": {"resnet14": "nowhere.pth"}}, "no file .*nowhere.pth"),
        ({"seed": 2**32 - 1}, "seed: expected 2 numbers below"),
        ({"jobs": 0}, r"jobs: expected a number in \[1, 4096\]; got 0"),
        ({"engine": "slurm"}, "engine: expected one of local, ray; got 'slurm'"),
    ],
)
def test_bad_requests_train_nothing(tmp_path: Path, engine: InstantEngine, changes: dict, message: str) -> None:
    with pytest.raises(hkd.RequestError, match=message):
        hkd.compare(config(tmp_path / "c", **changes))
    assert engine.started == []
    assert not (tmp_path / "c").exists()


def test_requests() -> None:
    assert MethodRequest.parse("ce") == MethodRequest("ce", None)
    assert MethodRequest.parse("at +kd") == MethodRequest("at+kd", {"method": "at+kd"})
    assert MethodRequest.parse("kd(kd_weight=.5)").options == {"method": "kd", "kd_weight": 0.5}
    standardised = MethodRequest.parse("hkd(kd_standardise=true,k=4)+kd").options
    assert standardised == {"method": "hkd+kd", "kd_standardise": True, "settings": {"k": 4}}
    listed = MethodRequest.parse("sdd(scales=[1, 2],loss=dkd)").options
    assert listed == {"method": "sdd", "settings": {"scales": [1, 2], "loss": "dkd"}}
    request = MethodRequest.parse("hkd(negatives=opposite, k=4, temperature=.1)+kd")
    assert request.options == {
        "method": "hkd+kd", "settings": {"negatives": "opposite", "k": 4, "temperature": 0.1}
    }  # fmt: skip
    assert request.label == "hkd(negatives=opposite,k=4,temperature=.1)+kd"


# -- tables -----------------------------------------------------------------------------------------------------------


def fake(folder: Path, top1: float, images: int = 200, **more: Any) -> RunFolder:
    """A finished run of a given accuracy."""
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    label = torch.zeros(images, dtype=torch.int64)
    right = round(top1 / 100 * images)
    run.save_predictions((torch.arange(images) >= right).long(), label)
    run.finish({"top1_last": top1, "top1_best": top1, "best_epoch": 1, "seconds": 60, "images_per_second": 9} | more)
    return run


def spec(pair: tuple[str, str], line: str, **flat: Any) -> RunSpec:
    """What a line of the paper's tables is a run of; with other options where they are given."""
    name = line.removesuffix("+kd")
    options = MethodRequest.parse(line.replace(name, name + SETTINGS.get(name, ""), 1)).options
    lr = 0.01 if pair[1] in ("MobileNetV2", "ShuffleV2") else 0.05
    taught = {} if options is None else {"teacher": pair[0], **options}
    made = RunSpec.from_flat({"dataset": "cifar100", "student": pair[1], "lr": lr, "data_digest": "a", **taught} | flat)
    return replace(made, method=None if made.method is None else resolve_method(made.method))


def published_comparison(folder: Path) -> Comparison:
    """The paper's table as if its runs were ours."""
    pairs = []
    for pair, found in ZHOU.items():
        teacher, student = pair
        rows = [
            Row(label, label, {0: fake(folder / f"{teacher}-{student}" / label, mean)}, spec=spec(pair, label))
            for label, (mean, _) in found.items()
        ]
        pairs.append(Pair(teacher, student, tuple(rows)))
    return Comparison("cifar100", tuple(pairs))


def test_ari_of_the_published_numbers(tmp_path: Path) -> None:
    found = published_comparison(tmp_path)
    assert found.headline == "hkd+kd"
    # the paper's 126.48 is of accuracies that were not rounded
    assert found.ari("kd") == pytest.approx(126.48, abs=0.5)
    by_hand = [
        (best["hkd+kd"][0] - best["crd+kd"][0]) / (best["crd+kd"][0] - best["ce"][0]) * 100 for best in ZHOU.values()
    ]
    assert found.ari("crd+kd") == pytest.approx(sum(by_hand) / 5)
    assert found.ari("ce") is None and found.ari("hkd+kd") is None
    text = overview(found.numbers())
    assert "126.67 %" in text and "resnet32x4 → ShuffleV2" in text


def test_published_numbers_stand_beside_ours(tmp_path: Path) -> None:
    found = published_comparison(tmp_path)
    text = markdown(found.numbers())
    assert "| 76.13 ± 0.05 [1]" in text and "[2] Tian et al." in text
    assert "76.13 ± 0.05 [1]" in as_csv(found.numbers())


PAIR = ("resnet32x4", "resnet8x4")


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "digits"}, {"epochs": 120}, {"batch_size": 128}, {"lr": 0.1}, {"milestones": [0.5]},
        {"limit_train": 100}, {"train_fraction": 0.5}, {"holdout": 0.1}, {"image_size": 64}, {"precision": "bf16"},
        {"mean": [0.5, 0.5, 0.5]}, {"flip": False}, {"weight_decay": 0.0}, {"student_pretrained": True},
        {"teacher": "resnet110"}, {"student": "resnet8"}, {"method_weight": 1.0}, {"kd_weight": 0.9},
        {"ce_weight": 0.5}, {"kd_temperature": 2.0}, {"settings": {"sampling": "shared"}},
        {"settings": {"bank_start": "first"}}, {"settings": {"negatives": "opposite"}}, {"settings": {"k": 4}},
    ],
)  # fmt: skip
def test_published_numbers_stand_beside_no_other_run(other: dict[str, Any]) -> None:
    assert published(PAIR[0], spec(PAIR, "hkd+kd")) == "76.13 ± 0.05 [1]"
    made = spec(PAIR, "hkd+kd", run="elsewhere", seed=3, data_root="there", teacher_checkpoint="teacher.pth")
    assert published(PAIR[0], made) == "76.13 ± 0.05 [1]", "what decides nothing"
    settings = {"negatives": "same", "bank_start": "random", "sampling": "per_sample"} | other.get("settings", {})
    assert published(PAIR[0], spec(PAIR, "hkd+kd", **other | {"settings": settings})) is None


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("ce", "72.79 ± 0.26 [1]"), ("kd", "73.55 ± 0.20 [1]"), ("crd", "75.51 [2]"), ("crd+kd", "75.64 ± 0.25 [1]"),
        ("cc", "72.97 [2]"), ("at", "73.44 [2]"), ("at+kd", None), ("hkd", "75.63 ± 0.22 [1]"), ("dkd", None),
        ("kd(ce_weight=1,kd_weight=1)", None), ("crd(sampling=shared)+kd", None), ("hkd(k=8)+kd", None),
    ],
)  # fmt: skip
def test_published_numbers_of_lines(line: str, number: str | None) -> None:
    assert published(PAIR[0], spec(PAIR, line)) == number
    assert published("vgg13", spec(PAIR, line)) is None, "of another pair"


def test_the_best_baseline_is_never_hkd(tmp_path: Path) -> None:
    pair = published_comparison(tmp_path).pairs[0]
    assert pair.baseline(None).label == "sskd+kd"
    assert pair.baseline("kd").label == "kd"


def test_differences_of_trials_that_are_missing(tmp_path: Path) -> None:
    a = Row("a", "at", {0: fake(tmp_path / "a0", 50), 1: fake(tmp_path / "a1", 60)})
    b = Row("b", "sp", {0: fake(tmp_path / "b0", 40), 1: RunFolder(tmp_path / "b1")})
    assert a.against(b).mean == pytest.approx(10)
    assert b.against(Row("c", "cc", {0: RunFolder(tmp_path / "c0")})) is None


def test_a_corrupt_prediction_file_is_reported(tmp_path: Path) -> None:
    run = fake(tmp_path / "a", 50)
    file = run.path / "predictions.npz"
    for content in (file.read_bytes()[:40], b"", None):
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(hkd.RequestError, match=r"predictions.npz is missing or corrupt"):
            run.predictions()


def test_an_interval_is_computed_again_where_predictions_changed(tmp_path: Path) -> None:
    rows = [Row(name, name, {0: fake(tmp_path / name, top1)}) for name, top1 in (("at", 50), ("sp", 40))]
    assert rows[0].against(rows[1]).mean == pytest.approx(10)
    shutil.rmtree(tmp_path / "at")
    again = Row("at", "at", {0: fake(tmp_path / "at", 60)})
    assert again.against(rows[1]).mean == pytest.approx(20)


def test_cells_have_no_digits_of_float32(tmp_path: Path) -> None:
    row = {"lr": float(np.float32(0.1)), "top1": float(np.float32(98.59155)), "n": 3, "note": "", "none": None}
    assert csv_text([row]) == "lr,top1,n,note,none\n0.1,98.5916,3,,\n"


def test_what_diverged_is_beside_what_did_not(tmp_path: Path) -> None:
    runs = {0: fake(tmp_path / "a0", 90), 1: RunFolder(tmp_path / "a1")}
    rows = (Row("at", "at", runs, "diverged"), Row("sp", "sp", {n: fake(tmp_path / f"b{n}", 50) for n in (0, 1)}))
    pair = Pair("t", "s", rows)
    assert pair.baseline(None).label == "sp", "one trial that did not diverge is no baseline"
    assert "| 90.00 (1), diverged " in markdown(Comparison("digits", (pair,)).numbers())

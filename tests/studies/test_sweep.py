"""Sweeps over a few digits."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import hkd
from hkd import api
from hkd.config import parse_value
from hkd.report.sweeps import draw_sweep, sweep_table
from hkd.runtime.run_folder import RunFolder, RunState
from tests.studies.fakes import InstantEngine, instant_run


def config(run: Path, **changes: Any) -> hkd.SweepConfig:
    fields = {
        "field": "holistic.k", "values": ("2", "4"), "methods": ("hkd+kd",), "trials": 2, "epochs": 1,
        "limit_train": 20, "teacher": "resnet14", "tensorboard": False, "device": "cpu", "threads": 1,
    }  # fmt: skip
    return hkd.SweepConfig(run=str(run), **fields | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that has been trained; tests that change it take a copy."""
    run = tmp_path_factory.mktemp("sweep") / "s"
    hkd.sweep(config(run, jobs=2))
    return run


def config_of(run: str | Path) -> dict[str, Any]:
    return yaml.safe_load((Path(run) / "config.yaml").read_text())


def test_what_a_sweep_leaves(finished: Path) -> None:
    numbers = json.loads((finished / "sweep.json").read_text())
    assert [(row["holistic.k"], row["seed"]) for row in numbers["points"]] == [(2, 0), (4, 0), (2, 1), (4, 1)]
    for row in numbers["points"]:
        values = config_of(row["run"])
        assert (values["holistic"]["k"], values["seed"], values["kd_weight"]) == (row["holistic.k"], row["seed"], 1.0)
        assert values["teacher_checkpoint"] == str(finished / "teachers" / "resnet14")
    assert [float(row["top1_last"]) for row in csv.DictReader((finished / "sweep.csv").open())] == pytest.approx(
        [row["top1_last"] for row in numbers["points"]], rel=1e-5
    )
    assert (finished / "sweep.md").read_text().count("(2)") == 2
    assert (finished / "sweep.png").is_file() and (finished / "sweep.svg").is_file()


def test_a_finished_sweep_trains_nothing_and_more_values_only_what_is_missing(
    tmp_path: Path, finished: Path, engine: InstantEngine
) -> None:
    shutil.copytree(finished, tmp_path / "s")
    before = hkd.sweep(config(tmp_path / "s"))
    assert engine.started == []
    assert [row["key"] for row in before["points"]] == [
        row["key"] for row in json.loads((finished / "sweep.json").read_text())["points"]
    ]
    hkd.sweep(config(tmp_path / "s", values=("2", "4", "6"), trials=1))
    assert engine.started == ["holistic.k=6/hkd+kd-0"]


def test_an_interrupted_sweep_continues(tmp_path: Path, engine: InstantEngine) -> None:
    engine.stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        hkd.sweep(config(tmp_path / "s"))
    assert [row["seed"] for row in json.loads((tmp_path / "s" / "sweep.json").read_text())["points"]] == [0]
    engine.stop_at = None
    assert len(hkd.sweep(config(tmp_path / "s"))["points"]) == 4
    assert engine.started == [
        "teachers/resnet14", "holistic.k=2/hkd+kd-0", "holistic.k=4/hkd+kd-0", "holistic.k=2/hkd+kd-1",
        "holistic.k=4/hkd+kd-1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "values", "read"),
    [
        ("train_fraction", ("0.25", "0.5"), lambda v: v["train_fraction"]),
        ("batch_size", ("16", "32"), lambda v: v["batch_size"]),
        ("method_weight", ("1", "2.5"), lambda v: v["method_weight"]),
        ("holistic.negatives", ("same", "opposite"), lambda v: v["holistic"]["negatives"]),
        ("flip", ("true", "false"), lambda v: v["flip"]),
        ("student", ("resnet8", "resnet14"), lambda v: v["student"]),
        ("milestones", (), None),
    ],
)
def test_any_field_can_vary(
    tmp_path: Path, engine: InstantEngine, finished: Path, field: str, values: tuple, read: Any
) -> None:
    teacher = str(finished / "teachers" / "resnet14")
    if read is None:
        with pytest.raises(hkd.RequestError, match=f"{field}: expected a list of float; got 0.5"):
            hkd.sweep(config(tmp_path / "s", field=field, values=("0.5",), teacher_checkpoint=teacher))
        return
    result = hkd.sweep(config(tmp_path / "s", field=field, values=values, trials=1, teacher_checkpoint=teacher))
    assert [read(config_of(row["run"])) for row in result["points"]] == [parse_value(value) for value in values]
    assert len(engine.started) == 2


def test_the_student_alone_and_other_methods_beside(tmp_path: Path, finished: Path, engine: InstantEngine) -> None:
    teacher = str(finished / "teachers" / "resnet14")
    request = config(
        tmp_path / "s", field="train_fraction", values=("0.5",), methods=("ce", "kd", "at+kd"), trials=1,
        teacher_checkpoint=teacher,
    )  # fmt: skip
    assert [row["method"] for row in hkd.sweep(request)["points"]] == ["ce", "kd", "at+kd"]
    assert len(engine.started) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("field", "values"), [("teacher", ("resnet14", "resnet8")), ("limit_classes", ("2", "3"))])
def test_each_value_has_a_teacher_that_fits(tmp_path: Path, field: str, values: tuple[str, str]) -> None:
    request = config(
        tmp_path / "s", field=field, values=values, methods=("kd",), trials=1, jobs=2, limit_train=5,
        student="resnet8",
    )  # fmt: skip
    result = hkd.sweep(request)
    assert [row[field] for row in result["points"]] == [parse_value(value) for value in values]
    for row, value in zip(result["points"], values, strict=True):
        run, teacher = config_of(row["run"]), tmp_path / "s" / f"{field}={value}" / "teachers"
        assert Path(run["teacher_checkpoint"]).parent == teacher
        trained = config_of(run["teacher_checkpoint"])
        assert trained["limit_classes"] == run["limit_classes"]
        assert trained["student"] == run["teacher"] == (value if field == "teacher" else "resnet14")


def test_another_value_may_come_later(tmp_path: Path, engine: InstantEngine) -> None:
    fields = {"field": "limit_classes", "methods": ("kd",), "trials": 1}
    hkd.sweep(config(tmp_path / "s", values=("2",), **fields))
    hkd.sweep(config(tmp_path / "s", values=("4",), **fields))
    assert engine.started == [
        "teachers/resnet14", "limit_classes=2/kd-0", "teachers/resnet14", "limit_classes=4/kd-0"
    ]  # fmt: skip


def test_the_checkpoint_says_which_teacher_it_is(tmp_path: Path, finished: Path, engine: InstantEngine) -> None:
    teacher = str(finished / "teachers" / "resnet14")
    (row,) = hkd.sweep(config(tmp_path / "s", values=("2",), trials=1, teacher=None, teacher_checkpoint=teacher))[
        "points"
    ]
    assert config_of(row["run"])["teacher"] == "resnet14"
    assert engine.started == ["holistic.k=2/hkd+kd-0"]


def test_a_run_that_fails_is_named_and_the_others_are_done(
    tmp_path: Path, engine: InstantEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(spec: Any, *, fresh: bool = False) -> Any:
        if spec.optimisation.lr > 1:
            raise hkd.TrainingError("the loss is NaN or infinite in epoch 1")
        return instant_run()(spec, fresh=fresh)

    monkeypatch.setattr(api, "train", run)
    request = config(tmp_path / "s", field="lr", values=("1e30", "0.05"), methods=("ce",), trials=1)
    with pytest.raises(hkd.TrainingError, match=r"lr=1e\+30/ce-0: the loss is NaN .*; --retry-failed tries again"):
        hkd.sweep(request)
    assert len(json.loads((tmp_path / "s" / "sweep.json").read_text())["points"]) == 1
    assert RunFolder(tmp_path / "s" / "lr=1e+30" / "ce-0").state is RunState.FAILED


def test_all_values_share_one_image_cache(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for label in ("cat", "dog"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    request = config(
        tmp_path / "s", field="lr", values=("0.1", "0.01"), methods=("ce",), trials=1, jobs=2, limit_train=None,
        dataset=f"folder:{tmp_path / 'photos'}", image_size=16, batch_size=4,
    )  # fmt: skip
    hkd.sweep(request)
    caches = sorted(
        file.relative_to(tmp_path).parts[:2] for file in tmp_path.rglob("*.safetensors") if "cache" in str(file)
    )
    assert caches == [("s", "cache"), ("s", "cache")], "one file a split, beside the runs"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"field": "holistic.kk"}, "holistic: unknown name 'kk'; did you mean k"),
        ({"field": "holistc.k"}, "field: holistc.k is no setting of hkd[+]kd"),
        ({"field": "lrr"}, "field: hkd[+]kd has no field lrr"),
        ({"field": "seed"}, "field: seed is set by the sweep itself"),
        ({"methods": ("kd",)}, "field: holistic.k is no setting of kd"),
        ({"methods": ("hkd(k=4)",)}, r"field: holistic.k is fixed by the line hkd\(k=4\)"),
        ({"methods": ("hkd(method_weight=4)",), "field": "method_weight"}, "field: method_weight is fixed by the line"),
        ({"values": ("two",)}, "holistic.k: expected int; got 'two'"),
        ({"values": ("2", "2")}, "values: 2 is listed twice"),
        ({"field": "lr", "values": ("0.1", "0.10", "1e-1")}, "values: 0.1 is listed twice"),
        ({"field": "lr", "values": ("1", "1.0")}, "values: 1 is listed twice"),
        ({"field": "workers", "values": ("1", "2")}, "values: 1 and 2 stand for the same run of hkd[+]kd; workers"),
        ({"values": ()}, "values: name at least one"),
        ({"trials": 0}, "trials: expected a number in"),
        ({"jobs": 0}, "jobs: expected a number in"),
        ({"field": "batch_size", "values": ("1",)}, "batch_size: expected a number in"),
        ({"field": "train_fraction", "values": ("2",)}, r"train_fraction: expected a number in \(0, 1\]; got 2"),
        (
            {"field": "teacher", "values": ("resnet8",), "teacher_checkpoint": "x"},
            "field: teacher varies, and teacher_checkpoint names one trained teacher",
        ),
    ],
)
def test_wrong_requests_train_nothing(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(hkd.RequestError, match=message):
        hkd.sweep(config(tmp_path / "s", **changes))
    assert not (tmp_path / "s").exists()


def test_points_are_drawn_with_their_spread(tmp_path: Path) -> None:
    rows = [{"method": "a", "k": k, "seed": s, "top1_last": float(10 * k + s)} for k in (1, 2) for s in (0, 1)]
    numbers = {"field": "k", "values": [1, 2], "methods": ["a"], "points": rows}
    draw_sweep(numbers, tmp_path)
    assert (tmp_path / "sweep.png").stat().st_size > 1000
    assert "| 10.50 ± 0.71 (2) |" in sweep_table(numbers)

"""Sweeps over a few digits."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hkd.jobs import running

import hkd
from hkd.config import parse_value
from hkd.studies import sweep as module


def config(run: Path, **changes: Any) -> hkd.SweepConfig:
    fields = {
        "field": "holistic.k", "values": ("2", "4"), "methods": ("hkd+kd",), "trials": 2, "epochs": 1,
        "limit_train": 20, "teacher": "resnet14", "tensorboard": False, "device": "cpu",
    }  # fmt: skip
    return hkd.SweepConfig(run=str(run), **fields | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("sweep") / "s"
    hkd.sweep(config(run))
    return run


def asked_by(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())


def test_what_a_sweep_leaves(finished: Path) -> None:
    numbers = json.loads((finished / "sweep.json").read_text())
    assert [(row["holistic.k"], row["seed"]) for row in numbers["points"]] == [(2, 0), (4, 0), (2, 1), (4, 1)]
    for row in numbers["points"]:
        asked = asked_by(Path(row["run"]))
        assert (asked["holistic"]["k"], asked["seed"], asked["kd_weight"]) == (row["holistic.k"], row["seed"], 1.0)
        assert asked["teacher_checkpoint"] == str(finished / "teacher")
    assert [row["top1_last"] for row in csv.DictReader((finished / "sweep.csv").open())] == [
        str(row["top1_last"]) for row in numbers["points"]
    ]
    assert (finished / "sweep.md").read_text().count("(2)") == 2
    assert (finished / "sweep.png").is_file() and (finished / "sweep.svg").is_file()


def test_a_finished_sweep_trains_nothing_and_more_values_only_what_is_missing(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, count = running.Training, []
    monkeypatch.setattr(running, "Training", lambda *a: count.append(a) or fit(*a))
    hkd.sweep(config(finished))
    assert not count
    hkd.sweep(config(finished, values=("2", "4", "6"), trials=1))
    assert len(count) == 1


def test_an_interrupted_sweep_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path) -> None:
    fit, count = running.Training, []

    def stop(*arguments: Any) -> Any:
        if len(count) == 2:
            raise KeyboardInterrupt
        count.append(arguments)
        return fit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(running, "Training", stop)
        with pytest.raises(KeyboardInterrupt):
            hkd.sweep(config(tmp_path / "s"))
    found = hkd.sweep(config(tmp_path / "s"))
    for row in found["points"]:
        same = finished / Path(row["run"]).relative_to(tmp_path / "s") / "summary.json"
        assert row["top1_last"] == json.loads(same.read_text())["top1_last"]


def test_processes_share_the_work(tmp_path: Path, finished: Path) -> None:
    found = hkd.sweep(config(tmp_path / "s", jobs=2, teacher_checkpoint=str(finished / "teacher")))
    assert len(found["points"]) == 4


@pytest.mark.parametrize(
    ("field", "values", "read"),
    [
        ("train_fraction", ("0.25", "0.5"), lambda asked: asked["train_fraction"]),
        ("batch_size", ("16", "32"), lambda asked: asked["batch_size"]),
        ("method_weight", ("1", "2.5"), lambda asked: asked["method_weight"]),
        ("holistic.negatives", ("same", "opposite"), lambda asked: asked["holistic"]["negatives"]),
    ],
)
def test_any_field_can_vary(tmp_path: Path, finished: Path, field: str, values: tuple, read: Any) -> None:
    teacher = str(finished / "teacher")
    found = hkd.sweep(config(tmp_path / "s", field=field, values=values, trials=1, teacher_checkpoint=teacher))
    told = [read(asked_by(Path(row["run"]))) for row in found["points"]]
    assert told == [parse_value(value) for value in values]
    if field == "train_fraction":
        seen = [json.loads((Path(row["run"]) / "summary.json").read_text())["train_images"] for row in found["points"]]
        assert seen == [50, 100]


def test_the_student_alone_and_other_methods_beside(tmp_path: Path, finished: Path) -> None:
    teacher = str(finished / "teacher")
    asked = config(
        tmp_path / "s", field="train_fraction", values=("0.5",), methods=("ce", "kd", "at+kd"), trials=1,
        teacher_checkpoint=teacher,
    )  # fmt: skip
    assert [row["method"] for row in hkd.sweep(asked)["points"]] == ["ce", "kd", "at+kd"]


def test_a_run_that_fails_is_told_and_the_others_are_done(tmp_path: Path, finished: Path) -> None:
    asked = config(
        tmp_path / "s", field="lr", values=("0.05", "1e30"), trials=1, teacher_checkpoint=str(finished / "teacher")
    )
    with pytest.raises(hkd.TrainingError, match=r"lr=1e\+30.* no longer a number"):
        hkd.sweep(asked)
    assert len(json.loads((tmp_path / "s" / "sweep.json").read_text())["points"]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"field": "holistic.kk"}, "holistic: unknown name 'kk'; did you mean k"),
        ({"field": "holistc.k"}, "field: holistc.k is no setting of hkd[+]kd"),
        ({"field": "lrr"}, "field: hkd[+]kd has no field lrr"),
        ({"field": "seed"}, "field: seed is set by the sweep itself"),
        ({"methods": ("kd",)}, "field: holistic.k is no setting of kd"),
        ({"values": ("two",)}, "holistic.k: expected int; got 'two'"),
        ({"values": ("2", "2")}, "values: 2 stands there twice"),
        ({"values": ()}, "values: name at least one"),
        ({"trials": 0}, "trials: expected 1 or more"),
        ({"jobs": 0}, "jobs: expected 1 or more"),
        ({"field": "batch_size", "values": ("1",)}, "batch_size: expected 2 or more; got 1"),
        ({"field": "train_fraction", "values": ("2",)}, r"train_fraction: expected a part in \(0, 1\]; got 2"),
    ],
)
def test_wrong_requests_train_nothing(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(hkd.RequestError, match=message):
        hkd.sweep(config(tmp_path / "s", **changes))
    assert not (tmp_path / "s").exists()


def test_points_are_drawn_with_their_spread(tmp_path: Path) -> None:
    rows = [{"method": "a", "k": k, "seed": s, "top1_last": float(10 * k + s)} for k in (1, 2) for s in (0, 1)]
    numbers = {"field": "k", "values": [1, 2], "methods": ["a"], "points": rows}
    module.draw(numbers, tmp_path)
    assert (tmp_path / "sweep.png").stat().st_size > 1000
    assert "| 10.50 ± 0.71 (2) |" in module.markdown(numbers)

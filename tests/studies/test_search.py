"""Searches for settings, most of them over an accuracy that is a formula of the settings."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hkd
from hkd import api
from hkd.runtime.run_folder import RunFolder, RunState
from hkd.spec import RunSpec
from hkd.studies.ranges import Range
from tests.studies.fakes import InstantEngine, instant_run

EPOCHS = 8


def config(run: Path, **changes: Any) -> hkd.SweepConfig:
    fields = {
        "search": ("method_weight=0.01..100:log",), "methods": ("hkd+kd",), "tries": 16, "epochs": EPOCHS,
        "holdout": 0.25, "limit_train": 20, "teacher": "resnet14", "tensorboard": False, "device": "cpu", "threads": 1,
    }  # fmt: skip
    return hkd.SweepConfig(run=str(run), **fields | changes)


def best_at_two(spec: RunSpec) -> float:
    """An accuracy that is highest at weight 2."""
    assert spec.method is None or spec.method.weight is not None
    return 80.0 if spec.method is None else 90 - 10 * abs(math.log10(spec.method.weight / 2))


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch, engine: InstantEngine) -> Callable[..., InstantEngine]:
    """Runs that come to an accuracy in even steps, whose epochs are in their metrics."""

    def with_accuracy(top1_of: Callable[[RunSpec], float] = best_at_two) -> InstantEngine:
        def run(spec: RunSpec, *, fresh: bool = False) -> Any:
            result = instant_run(top1_of)(spec, fresh=fresh)
            top1 = result.summary["top1_last"]
            rows = [{"epoch": n, "test_top1": top1 * n / EPOCHS} for n in range(1, EPOCHS + 1)]
            RunFolder(result.run).log(rows)
            return result

        for name in ("train", "distill"):
            monkeypatch.setattr(api, name, run)
        return engine

    return with_accuracy


def tries_of(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "search.json").read_text())["tries"]


def test_it_comes_near_the_best(tmp_path: Path, formula: Callable[..., InstantEngine]) -> None:
    engine = formula()
    numbers = hkd.sweep(config(tmp_path / "s"))
    assert 0.5 < numbers["best"]["values"]["method_weight"] < 8
    assert engine.started == ["teachers/resnet14", *(f"tries/{n:03d}" for n in range(16))]
    assert numbers["tries"] == tries_of(tmp_path / "s")
    assert numbers["best"]["top1_holdout"] == max(row["top1_holdout"] for row in numbers["tries"])
    rows = list(csv.DictReader((tmp_path / "s" / "search.csv").open()))
    assert [row["try"] for row in rows] == [str(n) for n in range(16)]
    text = (tmp_path / "s" / "search.md").read_text()
    assert "Best: method_weight = " in text and "The test split was not opened" in text


def test_a_try_that_is_behind_is_pruned(tmp_path: Path, formula: Callable[..., InstantEngine]) -> None:
    formula()
    numbers = hkd.sweep(config(tmp_path / "s"))
    pruned = [row for row in numbers["tries"] if row["state"] == "pruned"]
    assert 3 <= len(pruned) <= 12
    for row in pruned:
        before = [r for r in numbers["tries"][: row["try"]] if r["state"] == "complete"]
        assert len(before) >= 4
        assert row["epochs"] == 2, "after a quarter of the epochs"
        median = np.median([r["top1_holdout"] * 2 / EPOCHS for r in before])
        assert row["top1_holdout"] < median


def test_the_same_request_makes_the_same_tries(tmp_path: Path, formula: Callable[..., InstantEngine]) -> None:
    formula()
    first, second = (hkd.sweep(config(tmp_path / name))["tries"] for name in "ab")
    assert [(row["values"], row["state"]) for row in first] == [(row["values"], row["state"]) for row in second]
    other = hkd.sweep(config(tmp_path / "c", seed=1))["tries"]
    assert [row["values"] for row in first] != [row["values"] for row in other]


def test_an_interrupted_search_continues_as_if_it_had_not_been(
    tmp_path: Path, formula: Callable[..., InstantEngine]
) -> None:
    engine = formula()
    whole = [(row["values"], row["state"]) for row in hkd.sweep(config(tmp_path / "whole"))["tries"]]
    engine.started.clear()
    for stop_at in (0, 3, 9):
        engine.stop_at = stop_at
        with pytest.raises(KeyboardInterrupt):
            hkd.sweep(config(tmp_path / "s"))
    engine.stop_at = None
    assert [(row["values"], row["state"]) for row in hkd.sweep(config(tmp_path / "s"))["tries"]] == whole
    assert len(engine.started) == len(set(engine.started)) == 17
    hkd.sweep(config(tmp_path / "s"))
    assert len(engine.started) == 17, "a finished search trains nothing"
    hkd.sweep(config(tmp_path / "s", tries=18))
    assert engine.started[17:] == ["tries/016", "tries/017"]


def test_a_try_that_was_complete_stays_complete(tmp_path: Path, formula: Callable[..., InstantEngine]) -> None:
    """Of several at a time, one may end before those are known against which it would have been pruned."""
    formula()
    first = hkd.sweep(config(tmp_path / "s"))
    file = tmp_path / "s" / "search.json"
    numbers = json.loads(file.read_text())
    pruned = next(row for row in numbers["tries"] if row["state"] == "pruned")
    pruned |= {"state": "complete", "epochs": EPOCHS}
    file.write_text(json.dumps(numbers))
    again = hkd.sweep(config(tmp_path / "s"))
    states = [row["state"] for row in again["tries"]]
    assert states == [row["state"] for row in numbers["tries"]] != [row["state"] for row in first["tries"]]


def test_several_fields_and_choices(tmp_path: Path, formula: Callable[..., InstantEngine]) -> None:
    formula(lambda spec: 50.0)
    ranges = ("holistic.k=2..5", "holistic.negatives=same|opposite", "lr=0.001..1:log", "kd_weight=0..1")
    numbers = hkd.sweep(config(tmp_path / "s", search=ranges, methods=("hkd",), tries=8))
    values = [row["values"] for row in numbers["tries"]]
    assert {v["holistic.k"] for v in values} <= {2, 3, 4, 5}
    assert {v["holistic.negatives"] for v in values} == {"same", "opposite"}
    assert all(0.001 <= v["lr"] <= 1 for v in values)
    weights = [v["kd_weight"] for v in values]
    assert all(isinstance(w, float) and 0 < w < 1 for w in weights), "a weight is no whole number"
    for row in numbers["tries"]:
        spec = RunFolder(row["run"]).spec
        assert (spec.method.settings.k, spec.optimisation.lr) == (row["values"]["holistic.k"], row["values"]["lr"])
        assert spec.data.holdout == 0.25


def test_settings_that_fail_are_bad_settings(tmp_path: Path, formula: Callable[..., InstantEngine]) -> None:
    def diverging(spec: RunSpec) -> float:
        if spec.method is not None and spec.method.weight > 10:
            raise hkd.TrainingError("the loss is NaN or infinite in epoch 1")
        return best_at_two(spec)

    formula(diverging)
    numbers = hkd.sweep(config(tmp_path / "s"))
    failed = [row for row in numbers["tries"] if row["state"] == "failed"]
    assert failed and all(row["values"]["method_weight"] > 10 for row in failed)
    assert numbers["best"]["values"]["method_weight"] < 10


def test_without_any_result_it_has_failed(tmp_path: Path, formula: Callable[..., InstantEngine]) -> None:
    def failing(spec: RunSpec) -> float:
        raise hkd.TrainingError("out of memory")

    engine = formula(failing)
    with pytest.raises(hkd.TrainingError, match="no try has a result; out of memory"):
        hkd.sweep(config(tmp_path / "s"))
    assert engine.started == ["teachers/resnet14"], "without a teacher there are no tries"


def test_a_run_that_is_behind_is_stopped(tmp_path: Path, engine: InstantEngine) -> None:
    from hkd.studies.plan import Plan
    from hkd.studies.search import Search

    request = config(tmp_path / "s")
    current = Search(request, Plan(request.run, "search"))
    stopped = []

    class Process:
        def stop(self) -> None:
            stopped.append(True)

    for number in range(6):
        run = current.propose()
        top1 = 10.0 if number == 5 else 50.0
        run.folder.path.mkdir(parents=True, exist_ok=True)
        run.folder.log([{"epoch": n, "test_top1": top1} for n in range(1, 4)])
        current.watch(run, Process())
        if number < 5:
            run.resolved.save(run.folder.config)
            run.folder.finish({"top1_last": top1, "epochs": EPOCHS})
            current.end(run)
    assert stopped == [True]
    assert run.state is RunState.PRUNED
    assert run.failure == "behind the median after epoch 2"
    current.watch(run, Process())
    assert stopped == [True], "it is asked once"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": ("lr",)}, r"search: expected FIELD=LO..HI\[:log\] or FIELD=A|B|C; got 'lr'"),
        ({"search": ("lr=1",)}, "search: expected FIELD=LO..HI"),
        ({"search": ("lr=a..b",)}, "search: expected FIELD=LO..HI"),
        ({"search": ("lr=0.1..inf",)}, "search: expected FIELD=LO..HI"),
        ({"search": ("lr=2..1",)}, "search: expected LO below HI; got 'lr=2..1'"),
        ({"search": ("lr=0..1:log",)}, "search: expected LO below HI, above 0; got"),
        ({"search": ("lr=0.1..1", "lr=1..2")}, "search: lr is listed twice"),
        ({"search": ("flip=true|true",)}, "search: flip: True is listed twice"),
        ({"search": ("lrr=0.1..1",)}, "field: hkd[+]kd has no field lrr"),
        ({"search": ("crd.temperature=0.1..1",)}, "field: crd.temperature is no setting of hkd[+]kd"),
        ({"search": ("holistic.kk=1..2",)}, "holistic: unknown name 'kk'; did you mean k"),
        ({"search": ("holistic.k=2.5..8",)}, "holistic.k: expected int; got 2.5"),
        ({"search": ("holistic.smoothing=0.5..2",)}, "holistic.smoothing: expected a number in"),
        ({"search": ("train_fraction=0.5..2",)}, r"train_fraction: expected a number in \(0, 1\]; got 2"),
        ({"search": ("limit_classes=2..4",)}, "search: limit_classes decides which teacher fits"),
        ({"search": ("workers=0..4",)}, "search: workers changes nothing that decides what is learnt"),
        ({"search": ("seed=0..4",)}, "field: hkd[+]kd has no field seed"),
        ({"methods": ("ce",)}, "search: ce has no settings to look for"),
        ({"methods": ("kd", "at")}, "search: looks for settings of one method"),
        ({"holdout": 0.0}, "search: settings are chosen on held-out training images; name a part, --holdout"),
        ({"tries": 0}, "tries: expected a number in"),
    ],
)
def test_wrong_requests_train_nothing(tmp_path: Path, engine: InstantEngine, changes: dict, message: str) -> None:
    with pytest.raises(hkd.RequestError, match=message) as error:
        hkd.sweep(config(tmp_path / "s", **changes))
    assert "\n" not in str(error.value)
    assert engine.started == []
    assert not (tmp_path / "s").exists()


def test_another_search_in_the_folder_is_refused(tmp_path: Path, formula: Callable[..., InstantEngine]) -> None:
    formula()
    hkd.sweep(config(tmp_path / "s", tries=2))
    with pytest.raises(hkd.RequestError, match=r"holds a search with search = \['method_weight.*; name another folder"):
        hkd.sweep(config(tmp_path / "s", search=("method_weight=1..2",)))
    with pytest.raises(hkd.RequestError, match="holds a run with epochs = 8, not 9"):
        hkd.sweep(config(tmp_path / "s", epochs=9))
    with pytest.raises(hkd.RequestError, match="is the folder of a search"):
        hkd.sweep(config(tmp_path / "s", search=(), values=("2",), field="holistic.k"))


@pytest.mark.parametrize(
    "values",
    [
        None, {}, {"method_weight": "2"}, {"method_weight": 1e9}, {"method_weight": math.nan}, {"method_weight": True},
        {"method_weight": 2.0, "lr": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_a_proposal_that_is_none_of_the_search_is_refused(
    tmp_path: Path, formula: Callable[..., InstantEngine], values: Any
) -> None:
    """The file may have come with a folder from elsewhere; Optuna would raise an error of its own."""
    formula()
    hkd.sweep(config(tmp_path / "s", tries=1))
    file = tmp_path / "s" / "search.json"
    numbers = json.loads(file.read_text())
    numbers["tries"][0]["values"] = values
    file.write_text(json.dumps(numbers))
    with pytest.raises(hkd.RequestError, match=r"search.json is corrupt"):
        hkd.sweep(config(tmp_path / "s", tries=2))


def test_what_a_search_s_file_says_is_repeated_on_one_line(
    tmp_path: Path, formula: Callable[..., InstantEngine]
) -> None:
    formula()
    hkd.sweep(config(tmp_path / "s", tries=1))
    file = tmp_path / "s" / "search.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"method": "\x1b[2J" + "x" * 10**5}))
    with pytest.raises(hkd.RequestError, match="search.json is corrupt") as error:
        hkd.sweep(config(tmp_path / "s", tries=2))
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_a_dry_run_shows_the_tries_so_far(
    tmp_path: Path, formula: Callable[..., InstantEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    formula()
    hkd.sweep(config(tmp_path / "s", tries=2))
    capsys.readouterr()
    before = (tmp_path / "s" / "search.json").read_text()
    hkd.sweep(config(tmp_path / "s", tries=5, dry_run=True))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:6:2]] == ["finished"] * 3
    assert lines[-1] == "5 tries in all, each proposed from those before"
    assert (tmp_path / "s" / "search.json").read_text() == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=1e-3..1:log", Range("lr", 1e-3, 1, log=True)),
        ("holistic.k=2..16", Range("holistic.k", 2, 16)),
        ("kd_weight = 0..1.5", Range("kd_weight", 0, 1.5)),
        ("a=-2..-1", Range("a", -2, -1)),
        ("x=true|3|word", Range("x", choices=(True, 3, "word"))),
    ],
)
def test_ranges(text: str, expected: Range) -> None:
    assert Range.parse(text) == expected


@pytest.mark.slow
def test_the_test_split_is_never_opened(tmp_path: Path) -> None:
    """A folder that has none serves for a search, with real runs; the killed search goes on."""
    draw = np.random.default_rng(0)
    photos = tmp_path / "photos"
    for label in ("cat", "dog"):
        folder = photos / "train" / label
        folder.mkdir(parents=True)
        for number in range(8):
            Image.fromarray(draw.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    command = [
        sys.executable, "-m", "hkd", "sweep", "--search", "kd_weight=0.1..10:log", "--methods", "kd", "--tries", "3",
        "--holdout", "0.25", "--dataset", f"folder:{photos}", "--image-size", "16", "--epochs", "1",
        "--batch-size", "4", "--teacher", "resnet8", "--no-tensorboard", "--device", "cpu",
        "--run", str(tmp_path / "s"),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    first = RunFolder(tmp_path / "s" / "tries" / "000")
    while first.state is not RunState.FINISHED and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first.state is RunState.FINISHED
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "s"], "nothing beside the study"
    assert "Best: kd_weight = " in done.stdout
    rows = tries_of(tmp_path / "s")
    assert [row["state"] for row in rows] == ["complete"] * 3
    assert first.log_file.read_text().count("$ ") == 1, "a finished try is not repeated"
    for row in rows:
        assert RunFolder(tmp_path / row["run"]).predictions()[1].shape == (4,), "a quarter of the training images"

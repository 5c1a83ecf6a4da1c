"""Runs of one report: which are trials of one experiment, which are compared, and where the teachers are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import hkd
from hkd.report.collect import Group, find_finished, grouped, results
from hkd.report.confusions import by_class
from hkd.report.pairs import comparisons
from hkd.report.results import Row
from hkd.runtime.run_folder import RunFolder
from tests.report.fakes import IMAGES, OLD, OLD_DISTILLATION, fake_run

KD = {"method": "kd", "teacher": "resnet14"}


def groups_of(*folders: Path) -> dict[str, Group]:
    runs, _ = find_finished(map(str, folders))
    return {group.label: group for group in grouped(runs)}


def accuracies(groups: dict[str, Group]) -> dict[str, list[float]]:
    return {label: group.values("top1_last") for label, group in groups.items()}


def compared(*folders: Path) -> dict[str, dict[str, Row]]:
    """The rows of each comparison, by heading and line."""
    made = comparisons(groups_of(*folders).values())
    return {heading: {row.label: row for row in one.pairs[0].rows} for heading, one in made}


@pytest.mark.parametrize(
    ("other", "labels"),
    [
        ({"dataset": "cifar100"}, ("digits", "cifar100")),
        ({"epochs": 4}, ("epochs=2", "epochs=4")),
        ({"lr": 0.1}, ("lr=0.05", "lr=0.1")),
    ],
)
def test_other_experiments_are_other_groups(tmp_path: Path, other: dict[str, Any], labels: tuple[str, str]) -> None:
    """They share network, method and seeds, and were pooled as long as a label was an identity."""
    for seed in (0, 1):
        fake_run(tmp_path / f"a-{seed}", 0.5 + seed / 10, seed=seed, **KD)
        fake_run(tmp_path / f"b-{seed}", 0.8 + seed / 10, seed=seed, **KD | other)
    one, two = (f"resnet8, kd, {label}" for label in labels)
    assert accuracies(groups_of(tmp_path)) == {one: [50.0, 60.0], two: [80.0, 90.0]}
    assert len(comparisons(groups_of(tmp_path).values())) == 0, "one method each: nothing to compare"


def test_trials_of_one_key_are_one_group_wherever_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_run(tmp_path / "x" / "second", 0.6, seed=1, device="cpu", **KD)
    fake_run(tmp_path / "y" / "first", 0.5, seed=0, workers=2, **KD)
    fake_run(tmp_path / "z" / "again", 0.9, seed=1, **KD)
    assert accuracies(groups_of(tmp_path)) == {"resnet8, kd": [50.0, 60.0]}
    note = f"note: {tmp_path}/z/again is not counted: it has the specification and the seed of {tmp_path}/x/second\n"
    assert capsys.readouterr().err == note
    assert accuracies(groups_of(tmp_path / "z", tmp_path / "y")) == {"resnet8, kd": [50.0, 90.0]}


def test_a_folder_that_is_named_twice_is_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fake_run(tmp_path / "runs" / "kd", **KD)
    runs, _ = find_finished([str(tmp_path / "runs"), str(run), f"{run}/../kd"])
    assert len(runs) == 1 and len(grouped(runs)) == 1 and capsys.readouterr().err == ""


def test_unfinished_runs_are_not_read(tmp_path: Path) -> None:
    fake_run(tmp_path / "kd", **KD)
    shutil.copytree(fake_run(tmp_path / "other", seed=1, **KD), tmp_path / "begun")
    (tmp_path / "begun" / "summary.json").unlink()
    runs, _ = find_finished([str(tmp_path)])
    assert sorted(run.path.name for run in runs) == ["kd", "other"]
    shutil.rmtree(tmp_path / "kd")
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(hkd.RequestError, match="runs: no finished run in"):
        find_finished([str(tmp_path)])


def test_runs_of_version_0_1_are_shown_and_never_pool(tmp_path: Path) -> None:
    for name, values in (("alone", OLD), ("kd", OLD_DISTILLATION)):
        run = fake_run(tmp_path / "old" / name, 0.4, **{"format": 1} | values)
        (run / "config.yaml").write_text(yaml.safe_dump(values | {"run": str(run)}))
    fake_run(tmp_path / "new", 0.5, **KD)
    groups = groups_of(tmp_path)
    assert accuracies(groups) == {"resnet8, kd": [50.0], "resnet8, hkd 0.1": [40.0], "resnet8, kd, hkd 0.1": [40.0]}
    assert {heading: list(rows) for heading, rows in compared(tmp_path).items()} == {"resnet14 → resnet8": ["ce", "kd"]}


# -- teachers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def taught(tmp_path: Path) -> Path:
    """A student in ``students``, its teacher in ``elsewhere``, and the teacher's own teacher in ``farther``."""
    first = fake_run(tmp_path / "farther" / "first", student="resnet20")
    second = fake_run(tmp_path / "elsewhere" / "second", student="resnet14", method="kd", teacher_checkpoint=str(first))
    fake_run(tmp_path / "students" / "kd", method="kd", teacher_checkpoint=str(second))
    return tmp_path


def test_teachers_are_read_wherever_they_are(taught: Path) -> None:
    runs, _ = find_finished([str(taught / "students")])
    teachers = {group.label: group.is_teacher for group in grouped(runs)}
    assert teachers == {"resnet8, kd": False, "resnet14, kd": True, "resnet20": True}
    (student,) = [run for run in runs if run.path.name == "kd"]
    assert [teacher.path for teacher in student.teachers] == [taught / "elsewhere" / "second"]


def test_both_of_two_teachers_are_read(taught: Path) -> None:
    places = [str(taught / "farther" / "first"), str(taught / "elsewhere" / "second")]
    for method in ("kd", "hkd"):
        fake_run(taught / "both" / method, method=method, teacher_checkpoint=places)
    groups = groups_of(taught / "both")
    teachers = {label: group.is_teacher for label, group in groups.items()}
    assert teachers == {"resnet8, kd": False, "resnet8, hkd": False, "resnet14, kd": True, "resnet20": True}
    assert list(compared(taught / "both")) == ["resnet20+resnet14 → resnet8"]
    fake_run(taught / "both" / "turned", method="kd", teacher_checkpoint=places[::-1])
    labels = groups_of(taught / "both")
    assert {"resnet8, kd, teacher=resnet20+resnet14", "resnet8, kd, teacher=resnet14+resnet20"} <= set(labels)
    fake_run(taught / "other", student="resnet14", epochs=3)
    fake_run(taught / "both" / "third", method="kd", teacher_checkpoint=[places[0], str(taught / "other")])
    labels = groups_of(taught / "both")
    assert "resnet8, kd, epochs=2, teacher=resnet20+resnet14, teacher=first+second" in labels


def test_a_teacher_that_is_gone_or_another_is_not_shown(taught: Path) -> None:
    place = taught / "elsewhere" / "second"
    (place / "student.safetensors").unlink()
    assert list(groups_of(taught / "students")) == ["resnet8, kd"]
    shutil.rmtree(place)
    assert list(groups_of(taught / "students")) == ["resnet8, kd"]
    fake_run(place, student="resnet14", epochs=9)
    assert list(groups_of(taught / "students")) == ["resnet8, kd"], "the same place, another run"


def test_a_teacher_that_a_run_trained_is_beside_it(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "kd", **KD)
    fake_run(run / "teacher", student="resnet14")
    groups = groups_of(run)
    assert {label: group.is_teacher for label, group in groups.items()} == {"resnet8, kd": False, "resnet14": True}


def test_a_teacher_of_one_run_is_the_baseline_of_another(tmp_path: Path) -> None:
    """Self-distillation: the network trained with cross-entropy is both."""
    teacher = fake_run(tmp_path / "first", 0.6, student="resnet8")
    fake_run(tmp_path / "kd", 0.7, method="kd", teacher_checkpoint=str(teacher))
    assert {heading: list(rows) for heading, rows in compared(tmp_path).items()} == {"resnet8 → resnet8": ["ce", "kd"]}


# -- comparisons ------------------------------------------------------------------------------------------------------


def test_each_setting_is_compared_by_itself(tmp_path: Path) -> None:
    """A comparison of 4 epochs and a sweep of 2 were one comparison, and their difference was printed."""
    for epochs, methods in ((4, ("kd", "hkd", "hkd+kd")), (2, ("kd", "sp"))):
        fake_run(tmp_path / f"ce-{epochs}", epochs=epochs)
        for method in methods:
            fake_run(tmp_path / f"{method}-{epochs}", method=method, teacher="resnet14", epochs=epochs)
    fake_run(tmp_path / "only", method="crd", teacher="resnet14", epochs=3)
    assert {heading: sorted(rows) for heading, rows in compared(tmp_path).items()} == {
        "resnet14 → resnet8, epochs=4": ["ce", "hkd", "hkd+kd", "kd"],
        "resnet14 → resnet8, epochs=2": ["ce", "kd", "sp"],
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([{"dataset": "digits"}, {"dataset": "cifar100"}], [", digits", ", cifar100"]),
        ([{"lr": 0.05}, {"lr": 0.1}], [", lr=0.05", ", lr=0.1"]),
        ([{"flip": False}, {}], [", flip=false", ""]),
        ([{"student_pretrained": True}, {}], [", student_pretrained=true", ""]),
    ],
)
def test_runs_of_two_settings_are_two_comparisons(tmp_path: Path, changes: list[Any], words: list[str]) -> None:
    for n, change in enumerate(changes):
        for seed in (0, 1):
            fake_run(tmp_path / f"ce-{n}-{seed}", 0.5, seed=seed, **change)
            fake_run(tmp_path / f"kd-{n}-{seed}", 0.6, seed=seed, **KD | change)
    found = compared(tmp_path)
    assert set(found) == {f"resnet14 → resnet8{word}" for word in words}
    assert all(list(rows) == ["ce", "kd"] and list(rows["kd"].runs) == [0, 1] for rows in found.values())


def test_two_teachers_are_two_comparisons(tmp_path: Path) -> None:
    for n in (0, 1):
        teacher = fake_run(tmp_path / f"teacher-{n}", student="resnet14", seed=n)
        for method in ("kd", "hkd"):
            fake_run(tmp_path / f"{method}-{n}", method=method, teacher_checkpoint=str(teacher))
    assert {heading: sorted(rows) for heading, rows in compared(tmp_path).items()} == {
        "resnet14 → resnet8, teacher=teacher-0": ["hkd", "kd"],
        "resnet14 → resnet8, teacher=teacher-1": ["hkd", "kd"],
    }


def test_lines_are_those_of_a_comparison(tmp_path: Path) -> None:
    """Also kd with the KD term's weight at 1, whose label could not be parsed."""
    lines = {
        "kd(kd_weight=1)": {"method": "kd", "kd_weight": 1.0},
        "hkd+kd": {"method": "hkd", "kd_weight": 1.0},
        "hkd(k=4)": {"method": "hkd", "holistic": {"k": 4}},
    }
    for n, options in enumerate(lines.values()):
        fake_run(tmp_path / str(n), 0.5 + n / 10, teacher="resnet14", **options)
    (rows,) = compared(tmp_path).values()
    assert {line: row.mean for line, row in rows.items()} == dict(zip(lines, (50.0, 60.0, 70.0), strict=True))
    assert [row.is_ours for row in rows.values()] == [False, True, True]
    (pair,) = comparisons(groups_of(tmp_path).values())[0][1].numbers()["pairs"]
    assert pair["baseline"] == "kd(kd_weight=1)" and pair["methods"][1]["difference"]["mean"] == pytest.approx(10)


def test_runs_without_predictions_are_not_compared(tmp_path: Path) -> None:
    for n, method in enumerate(("kd", "hkd", "sp")):
        fake_run(tmp_path / method, method=method, teacher="resnet14")
        if n == 0:
            (tmp_path / method / "predictions.npz").unlink()
    assert len(groups_of(tmp_path)) == 3
    assert [list(rows) for rows in compared(tmp_path).values()] == [["hkd", "sp"]]


# -- other results ----------------------------------------------------------------------------------------------------


def test_results_are_read_once_and_others_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = {"field": "lr", "values": [0.1], "methods": ["kd"], "points": []}
    for folder, text in (("a", json.dumps(sweep)), ("b", '{"wheels": 4}'), ("c", "not JSON")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "sweep.json").write_text(text)
    assert list(results([tmp_path, tmp_path / "a"], "sweep")) == [(tmp_path / "a", sweep)]
    notes = capsys.readouterr().err.splitlines()
    assert notes == [f"note: {tmp_path}/{n}/sweep.json is skipped: it is no result of hkd sweep" for n in "bc"]


def test_confusions_are_counted(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path / str(seed), 0.3, seed=seed, **KD) for seed in (0, 1)]
    draw = np.random.default_rng(0)
    label = np.arange(IMAGES) % 10
    for run in runs:
        np.savez(run / "predictions.npz", predicted=draw.integers(0, 10, IMAGES), label=label)
    (group,) = groups_of(tmp_path).values()
    classes = {row.name: row for row in by_class(group.runs)}
    pairs = [RunFolder(run).predictions() for run in runs]
    for n, name in enumerate("0123456789"):
        guesses = [int(p) for predicted, label in pairs for p, y in zip(predicted, label, strict=True) if y == n]
        wrong = [p for p in guesses if p != n]
        row = classes[name]
        assert row.top1 == pytest.approx(100 * guesses.count(n) / len(guesses))
        assert row.images == len(guesses) // 2 == IMAGES // 10
        assert row.times == max(wrong.count(p) for p in set(wrong)) == wrong.count(int(row.mistaken_for))

"""The numbers that docs/results.md keeps, and the tables made of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import collect, tables

from hkd.report.results import Comparison, Pair, Row
from hkd.runtime.run_folder import RunFolder
from tests.report.fakes import fake_run

DOCUMENT = Path(__file__).parents[1] / "docs" / "results.md"


def test_the_tables_of_the_results_are_those_of_the_numbers_beside_them() -> None:
    text = DOCUMENT.read_text()
    assert tables.written(text, DOCUMENT.parent) == text, "python -m benchmarks.tables docs/results.md"


def test_a_study_is_kept_and_its_table_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tmp_path / "study"
    parts = {"ce": (0.5, 0.6, 0.54), "hkd+kd": (0.7, 0.72, 0.7)}
    runs = {
        name: {seed: RunFolder(fake_run(study / f"{name}-{seed}", part, seed=seed)) for seed, part in enumerate(of)}
        for name, of in parts.items()
    }
    runs["hkd+kd"][3] = RunFolder(study / "unfinished")
    rows = tuple(Row(name, name, folders) for name, folders in (runs | {"hkd": {}}).items())
    data = f"folder:{tmp_path}/small.zip: 100 training and 50 test images"
    numbers = Comparison("digits", (Pair("resnet14", "resnet8", rows),), "ce", (data,)).numbers()
    (study / "comparison.json").write_text(json.dumps(numbers))
    monkeypatch.setattr("sys.argv", ["collect", str(study), str(tmp_path / "results" / "small")])
    collect.main()

    kept = json.loads((tmp_path / "results" / "small.json").read_text())
    of_ce, of_hkd, _ = kept["pairs"][0]["methods"]
    assert of_hkd["runs"] == ["hkd+kd-0", "hkd+kd-1", "hkd+kd-2"] and of_hkd["seeds"] == [0, 1, 2]
    assert kept["hours"] > 0 and kept["machines"]
    assert kept["protocol"] == ["folder:small.zip: 100 training and 50 test images"]
    with np.load(tmp_path / "results" / "small.npz") as arrays:
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.uint8)}
        for row in (of_ce, of_hkd):
            for run, top1 in zip(row["runs"], row["top1_last"], strict=True):
                assert 100 * np.mean(arrays[run] == arrays["label"]) == pytest.approx(top1)

    text = "# Results\n\n<!-- results/small.json | ce -->\n| old |\n\nWords.\n"
    made = tables.written(text, tmp_path)
    assert made.startswith("# Results\n\n<!-- results/small.json | ce -->\n| method") and made.endswith("|\n\nWords.\n")
    assert tables.written(made, tmp_path) == made and "old" not in made and "`hkd`" not in made
    line = next(line for line in made.splitlines() if "`hkd+kd`" in line)
    assert "| 70.67 ± 1.15 (3)" in line and "| **+16.00 [" in line
    assert {float(value) for value in line.split("|")[2].split()} == {70.0, 72.0}


def test_what_was_measured_of_networks_is_kept_and_its_table_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = {"hkd+kd": (71.0, 73.0, 72.0), "kd": (70.0, 70.0, 71.0)}
    rows = [
        {"label": f"resnet8, {name}", "key": name, "seed": seed, "weights": f"runs/b/{name}-{seed}/student.safetensors",
         "dataset": "folder:photos.zip", "top1": top1}
        for name, of in accuracies.items()
        for seed, top1 in enumerate(of)
    ]  # fmt: skip
    numbers = {"datasets": ["folder:photos.zip"], "rows": rows, "protocol": []}
    (tmp_path / "transfer.json").write_text(json.dumps(numbers))
    monkeypatch.setattr("sys.argv", ["collect", str(tmp_path), str(tmp_path / "results" / "probes")])
    collect.main()

    kept = json.loads((tmp_path / "results" / "probes.json").read_text())
    assert [row["weights"] for row in kept["rows"]][:2] == [
        "hkd+kd-0/student.safetensors",
        "hkd+kd-1/student.safetensors",
    ]
    made = tables.written("<!-- results/probes.json | hkd+kd | kd -->\n", tmp_path)
    (line,) = [line for line in made.splitlines() if "photos.zip" in line]
    assert "72.00 ± 1.00 (3)" in line and "70.33 ± 0.58 (3)" in line
    mean, half = 5 / 3, 4.302652729911275 * (4 / 3 / 3) ** 0.5  # differences 1, 3, 1; t of two degrees of freedom
    assert f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]" in line


def test_the_best_tries_of_a_search_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = [
        {
            "try": n,
            "state": state,
            "top1_holdout": top1,
            "epochs": 5,
            "values": {"method_weight": n / 3},
            "run": f"e/{n}",
        }
        for n, (state, top1) in enumerate([("complete", 40.0), ("pruned", 50.0), ("failed", None), ("complete", 41.0)])
    ]
    numbers = {"search": ["method_weight=0..3"], "method": "hkd+kd", "best": tries[3], "tries": tries}
    (tmp_path / "search.json").write_text(json.dumps(numbers))
    monkeypatch.setattr("sys.argv", ["collect", str(tmp_path), str(tmp_path / "results" / "search")])
    collect.main()

    made = tables.written("<!-- results/search.json -->\n", tmp_path).splitlines()
    assert "`method_weight`" in made[1] and [line.split("|")[1].strip() for line in made[3:]] == ["3", "0"]

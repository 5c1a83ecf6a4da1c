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
    numbers = Comparison("digits", (Pair("resnet14", "resnet8", rows),), "ce", (), ()).numbers()
    (study / "comparison.json").write_text(json.dumps(numbers))
    monkeypatch.setattr("sys.argv", ["collect", str(study), str(tmp_path / "results" / "small")])
    collect.main()

    kept = json.loads((tmp_path / "results" / "small.json").read_text())
    of_ce, of_hkd, _ = kept["pairs"][0]["methods"]
    assert of_hkd["runs"] == ["hkd+kd-0", "hkd+kd-1", "hkd+kd-2"] and of_hkd["seeds"] == [0, 1, 2]
    assert kept["hours"] > 0 and kept["machines"]
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

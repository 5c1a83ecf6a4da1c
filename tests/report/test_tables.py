"""Tables on disk: what their cells say."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hkd.analysis.bootstrap import paired_t
from hkd.report import tables
from hkd.report.collect import find_finished, grouped
from hkd.report.pairs import comparisons
from hkd.report.results import Comparison
from hkd.report.sweeps import accuracies, draw_sweep, search_table, sweep_table
from tests.report.fakes import fake_run


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    for seed in (0, 1):
        fake_run(tmp_path / f"ce-{seed}", 0.5, seed=seed)
        for method, accuracy in (("kd", 0.7), ("hkd", 0.9)):
            fake_run(tmp_path / f"{method}-{seed}", accuracy - seed / 50, method=method, teacher="resnet14", seed=seed)
    ((_, made),) = comparisons(grouped(find_finished([str(tmp_path)])[0]))
    return made


def test_the_files_of_a_comparison(comparison: Comparison, tmp_path: Path) -> None:
    tables.write(comparison.numbers(), tmp_path / "tables")
    assert sorted(file.name for file in (tmp_path / "tables").iterdir()) == [
        "comparison.csv", "comparison.json", "comparison.md", "comparison.tex",
    ]  # fmt: skip
    rows = sorted(
        csv.DictReader((tmp_path / "tables" / "comparison.csv").open()), key=lambda row: row["top1_last_mean"]
    )
    assert [(row["method"], row["n"], row["top1_last_mean"]) for row in rows] == [
        ("ce", "2", "50.0"), ("kd", "2", "69.0"), ("hkd", "2", "89.0"),
    ]  # fmt: skip
    assert rows[1]["top1_last_std"] == "1.41421", "rounded"
    assert rows[1]["ari"] == "105.263" and float(rows[1]["ari"]) == pytest.approx(100 * (89 - 69) / (69 - 50), rel=1e-5)
    exact = json.loads((tmp_path / "tables" / "comparison.json").read_text())
    assert max(row["ari"] or 0 for row in exact["pairs"][0]["methods"]) == 100 * (89 - 69) / (69 - 50), "JSON is exact"
    text = (tmp_path / "tables" / "comparison.md").read_text()
    assert "| kd       | 69.00 ± 1.41 (2)" in text and "105 %" in text


def test_intervals_from_the_seeds_alone(comparison: Comparison, tmp_path: Path) -> None:
    numbers = comparison.numbers()
    (pair,) = numbers["pairs"]
    found = {row["method"]: row["difference_seeds"] for row in pair["methods"]}
    assert pair["baseline"] == "kd" and found["kd"] is None
    expected = paired_t([90.0, 88.0], [70.0, 68.0])
    assert expected is not None and found["hkd"] == pytest.approx(expected._asdict())
    t = 12.706204736  # the 97.5 % quantile of t with 1 degree of freedom
    low, high = (-19 + sign * t * statistics.stdev([-20.0, -18.0]) / math.sqrt(2) for sign in (-1, 1))
    assert (found["ce"]["low"], found["ce"]["high"]) == pytest.approx((low, high))
    assert f"[{low:+.2f}, {high:+.2f}]" in tables.markdown(numbers)
    row = next(row for row in csv.DictReader(io.StringIO(tables.as_csv(numbers))) if row["method"] == "ce")
    assert float(row["difference_seeds_low"]) == pytest.approx(low, rel=1e-5)


def test_one_trial_says_nothing_about_the_seeds(tmp_path: Path) -> None:
    fake_run(tmp_path / "ce", 0.5)
    fake_run(tmp_path / "kd", 0.7, method="kd", teacher="resnet14")
    ((_, made),) = comparisons(grouped(find_finished([str(tmp_path)])[0]))
    rows = made.numbers()["pairs"][0]["methods"]
    assert [row["difference_seeds"] for row in rows] == [None, None]
    assert rows[0]["difference"] is not None


def test_a_single_trial_that_both_have_is_not_bold(tmp_path: Path) -> None:
    """However many trials a line has by itself."""
    for seed in range(3):
        fake_run(tmp_path / f"kd-{seed}", 0.9, method="kd", teacher="resnet14", seed=seed)
    fake_run(tmp_path / "ce-0", 0.5, seed=0)
    ((_, made),) = comparisons(grouped(find_finished([str(tmp_path)])[0]))
    numbers = replace(made, baseline="ce").numbers()
    row = next(row for row in numbers["pairs"][0]["methods"] if row["difference"] is not None)
    assert len(row["seeds"]) == 3 and row["difference_seeds"] is None
    assert row["difference"]["mean"] == pytest.approx(40) and row["difference"]["low"] > 0
    assert "**" not in tables.pair_table(numbers["pairs"][0], "github")


def test_latex(comparison: Comparison) -> None:
    numbers = comparison.numbers() | {"protocol": ["100 % of it,\n\\end"]}
    (row,) = (row for row in numbers["pairs"][0]["methods"] if row["method"] == "kd")
    row["method"] = numbers["pairs"][0]["baseline"] = r"kd(a_b=1)&\x{$#~^<|>"
    text = tables.as_latex(numbers)
    assert text.startswith("% Needs \\usepackage{booktabs}.\n% 100 % of it, \\end\n")
    lines = [line.strip() for line in text.splitlines() if not line.startswith("%")]
    for word in ("begin{table}", "toprule", "midrule", "bottomrule", "end{tabular}", "end{table}"):
        assert sum(line.startswith(f"\\{word}") for line in lines) == 1
    assert r"\caption{resnet14 $\rightarrow$ resnet8}" in lines
    rows = [line for line in lines if line.endswith(r"\\")]
    assert len(rows) == 4 and len({line.count(" & ") for line in rows}) == 1
    escaped = r"kd(a\_b=1)\&\textbackslash{}x\{\$\#\textasciitilde{}\textasciicircum{}"
    assert any(
        line.startswith(escaped + r"\textless{}\textbar{}\textgreater{} & 69.00 $\pm$ 1.41 (2)") for line in rows
    )
    assert any(r"\textbf{+20.00 [" in line for line in rows), "bold as in Markdown"
    assert not any("**" in line for line in rows)


def test_times_with_and_without_a_table_of_the_teacher_are_marked(tmp_path: Path) -> None:
    fake_run(tmp_path / "ce")
    fake_run(tmp_path / "at", method="at", teacher="resnet14")
    for seed, hits in ((0, 20), (1, 100)):
        fake_run(tmp_path / f"kd-{seed}", method="kd", teacher="resnet14", seed=seed, hits=hits)
    ((_, made),) = comparisons(grouped(find_finished([str(tmp_path)])[0]))
    (pair,) = made.numbers()["pairs"]
    assert {row["method"]: row["teacher_read"] for row in pair["methods"]} == {"ce": None, "at": None, "kd": 60.0}
    lines = tables.pair_table(pair).splitlines()
    assert "teacher's outputs" in lines[0]
    words = {line.split()[0]: line.split("1,000")[1].strip() for line in lines[2:]}
    assert words == {"ce": "", "at": "computed", "kd": "60 % read"}


def test_csv_cells_have_no_float32_noise() -> None:
    row = {"lr": float(np.float32(0.1)), "top1": float(np.float32(83.1)), "penalty": 1e-6, "images": 123456789}
    assert row["lr"] != 0.1 and row["top1"] != 83.1
    text = tables.csv_text([row, {"lr": None, "top1": 0.0, "penalty": -1234567.8, "images": True}])
    assert text == "lr,top1,penalty,images\n0.1,83.1,1e-06,123456789\n,0.0,-1234570.0,True\n"


def test_csv_cells_are_no_formulas() -> None:
    """A spreadsheet would evaluate them; numbers stay numbers."""
    cells = ["=1+1", "+kd", "-x", "@SUM(A1)", "kd+kd", "hkd(k=4)", "", -1, -0.5]
    rows = list(csv.reader(io.StringIO(tables.csv_text([{str(n): cell for n, cell in enumerate(cells)}]), newline="")))
    assert rows[1] == ["'=1+1", "'+kd", "'-x", "'@SUM(A1)", "kd+kd", "hkd(k=4)", "", "-1", "-0.5"]


def test_a_table_that_cannot_be_written_leaves_the_one_before(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tables"
    tables.write(comparison.numbers(), folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        tables.write(comparison.numbers() | {"protocol": ["another"]}, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


SWEEP = {
    "field": "holistic.k",
    "values": [4, 8, 16],
    "methods": ["hkd", "hkd+kd"],
    "points": [
        {"method": method, "holistic.k": k, "seed": seed, "top1_last": 50.0 + k + seed}
        for method in ("hkd", "hkd+kd")
        for k in (4, 8)
        for seed in (0, 2)
        if (method, k) != ("hkd", 8)
    ],
}


def test_sweeps(tmp_path: Path) -> None:
    assert accuracies(SWEEP, "hkd", 4) == [54.0, 56.0]
    lines = sweep_table(SWEEP).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[0] == ["holistic.k", "hkd", "hkd+kd"]
    spread = ["55.00 ± 1.41 (2)", "59.00 ± 1.41 (2)"]
    assert cells[2:] == [["4", spread[0], spread[0]], ["8", "", spread[1]], ["16", "", ""]]
    draw_sweep(SWEEP, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"sweep.png", "sweep.svg"}


def test_searches() -> None:
    tries = [
        {"try": n, "state": state, "top1_holdout": top1, "values": {"lr": 0.01234567 * (n + 1)}}
        for n, (state, top1) in enumerate([("complete", 61.25), ("complete", 70.5), ("pruned", None)])
    ]
    text = search_table({"method": "hkd", "best": tries[1], "tries": tries})
    assert "Best: lr = 0.02469, with 70.50 % of the held-out training images." in text
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][2:] == ["1", "0", "2"]
    assert "No try has finished." in search_table({"method": "hkd", "best": None, "tries": tries[2:]})

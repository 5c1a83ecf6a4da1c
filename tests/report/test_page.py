"""The report of a few digits' runs: what it holds, and that it needs nothing but itself."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import hkd
from hkd.cli import main
from hkd.report.collect import by_class, find_runs, grouped
from hkd.report.cost import cost_of
from hkd.report.page import _topologies, _transfers
from hkd.report.topology import topology

OF_THE_MODEL = ("model", "num_classes")
SECTIONS = ["networks", "comparison", "curves", "topology", "classes", "samples", "configuration", "reproduce"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    hkd.compare(
        hkd.CompareConfig(
            run=str(folder / "compare"), teachers=("resnet14",), methods=("ce", "kd", "hkd+kd"), trials=2, epochs=2,
            limit_train=20, tensorboard=False, device="cpu",
        )
    )  # fmt: skip
    students = tuple(str(folder / "compare" / "resnet14-resnet8" / name) for name in ("kd-0", "hkd+kd-0"))
    topology(
        hkd.TopologyConfig(checkpoints=students, run=str(folder / "compare" / "topology"), images=40, device="cpu")
    )
    return folder


@pytest.fixture(scope="module")
def page(runs: Path) -> str:
    file = hkd.write_report(hkd.ReportConfig(runs=(str(runs / "compare"),), output=str(runs / "out" / "report.html")))
    return file.read_text()


class Reader(HTMLParser):
    """The text of each table's cells, the sections, and what a page would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.loads: list[str] = []
        self._cell = False
        self.feed(re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.loads += [given[name] or "" for name in ("src", "href") if given.get(name)]
        if tag == "section":
            self.sections.append(given["id"] or "")
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self._cell = tag in ("td", "th")

    def handle_endtag(self, tag: str) -> None:
        self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[-1][-1][-1] += data


def test_the_page_has_all_that_the_runs_hold(page: str, runs: Path) -> None:
    found = Reader(page)
    assert found.sections == SECTIONS
    networks, comparison = found.tables[:2]
    assert {row[0] for row in networks[1:]} == {"resnet8 alone", "resnet8, hkd+kd", "resnet8, kd", "resnet14"}
    means = [float(row[1].split()[0]) for row in networks[1:]]
    assert means == sorted(means, reverse=True)
    numbers = json.loads((runs / "compare" / "comparison.json").read_text())["pairs"][0]["methods"]
    told = {row[0]: row[1] for row in comparison[1:]}
    for row in numbers:
        mean = np.mean(row["top1_last"])
        assert told[row["method"]].startswith(f"{mean:.2f} ± ")
    reproduce = found.tables[-1]
    assert len(reproduce) == 1 + 7
    assert all(row[-1].startswith("hkd ") and "config.yaml" in row[-1] for row in reproduce[1:])
    summary = json.loads((runs / "compare" / "teachers" / "resnet14" / "summary.json").read_text())
    assert f"All were made by hkd {hkd.__version__}, torch {summary['torch']}, Python" in page
    assert page.count("data:image/png;base64") >= 1 + 1


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    loads = [target for target in Reader(page).loads if not target.startswith(("#", "data:"))]
    assert loads == []
    assert "default-src 'none'" in page and "connect-src 'none'" in page
    assert page.count("Plotly.newPlot(") >= 2
    assert "prefers-color-scheme: dark" in page and "@media print" in page


def test_a_command_of_the_page_repeats_its_number(page: str, runs: Path, tmp_path: Path) -> None:
    reproduce = Reader(page).tables[-1]
    row = next(row for row in reproduce[1:] if row[1] == "resnet8, kd" and row[2] == "1")
    command = row[-1].replace("NEW", str(tmp_path / "again")).split()
    assert main([*command[1:], "--device", "cpu"]) == 0
    summary = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert f"{summary['top1_last']:.2f}" == row[3]


def test_class_names_and_runs_are_escaped(runs: Path, tmp_path: Path) -> None:
    evil = tmp_path / "<script>alert(1)</script>"
    run = evil / "kd"
    source = runs / "compare" / "resnet14-resnet8" / "kd-0"
    run.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file():
            (run / file.name).write_bytes(file.read_bytes())
    asked = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(asked | {"student": "<img src=x onerror=alert(2)>"}))
    model, about = hkd.load_model(run / "student.safetensors")
    about |= {"classes": ["</td><script>alert(3)</script>", *about["classes"][1:]]}
    hkd.save_model(model, run / "student.safetensors", **{k: v for k, v in about.items() if k not in OF_THE_MODEL})
    file = hkd.write_report(hkd.ReportConfig(runs=(str(evil),), output=str(tmp_path / "r.html"), title="<b>t</b>"))
    page = file.read_text()
    for hostile in ("<script>alert", "<img src=x", "<b>t</b>"):
        assert hostile not in page
    assert "&lt;script&gt;alert(3)" in page


def test_results_of_version_0_1_are_shown_without_pooling(tmp_path: Path) -> None:
    """Their rows have no key, and their distance correlation is the biased statistic."""
    kept = {"knn_overlap": 0.25, "linear_cka": 0.5, "trustworthiness": 0.75, "distance_correlation": 0.875}
    rows = [{"network": "kd", "weights": f"{f}/s.safetensors", "seed": 0} | kept for f in ("a", "b")]
    numbers = {"rows": rows, "teacher": "resnet14", "images": 60, "neighbours": 5}
    (tmp_path / "topology.json").write_text(json.dumps(numbers))
    section = _topologies([tmp_path])
    assert section is not None and section.parts[0].table is not None
    cells = [[cell.text for cell in row.cells] for row in section.parts[0].table.rows]
    assert cells == [[f"kd [{f}/s.safetensors]", "0.250 (1)", "0.500 (1)", "0.750 (1)", ""] for f in ("a", "b")]

    rows = [
        {"label": "kd", "key": "k", "seed": n, "weights": f"{n}/s", "dataset": name, "top1": 50.0 + n}
        for n in (0, 2) for name in ("digits", "stl10")
    ]  # fmt: skip
    (tmp_path / "transfer.json").write_text(json.dumps({"rows": rows, "protocol": [], "datasets": ["digits", "stl10"]}))
    section = _transfers([tmp_path])
    assert section is not None and section.parts[0].table is not None
    (row,) = section.parts[0].table.rows
    assert [cell.text for cell in row.cells] == ["kd", "51.00 ± 1.41 (2)", "51.00 ± 1.41 (2)"]


def test_confusions_are_counted(runs: Path) -> None:
    found, _ = find_runs([str(runs / "compare")])
    own = grouped(found)["resnet8, kd"]
    classes = {row.name: row for row in by_class(own)}
    pairs = [run.folder.predictions() for run in own]
    for n, name in enumerate("0123456789"):
        guesses = [int(p) for predicted, label in pairs for p, y in zip(predicted, label, strict=True) if y == n]
        wrong = [p for p in guesses if p != n]
        row = classes[name]
        assert row.top1 == pytest.approx(100 * guesses.count(n) / len(guesses))
        assert row.images == len(guesses) // 2
        if wrong:
            assert row.times == max(wrong.count(p) for p in set(wrong)) == wrong.count(int(row.mistaken_for))


def test_costs() -> None:
    cost = cost_of("resnet8", 10, 32)
    assert cost.parameters == 78_042
    assert cost.flops == pytest.approx(2 * 12.5e6, rel=0.05), "two operations a multiply-add"
    assert cost.latency_ms > 0
    assert cost_of("somebody.else:net", 10, 32) is None


def test_the_command_and_wrong_requests(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    output = tmp_path / "deep" / "r.html"
    assert main(["report", str(runs / "compare"), "--output", str(output)]) == 0
    assert str(output) in capsys.readouterr().out
    for arguments, message in (
        ([], "runs: name at least one run folder"),
        ([str(tmp_path / "none")], "runs: no folder"),
        ([str(tmp_path / "deep")], "runs: no finished run in"),
        ([str(runs / "compare"), "--output", str(output / "x.html")], "output: cannot write"),
    ):
        assert main(["report", *arguments]) == 2
        captured = capsys.readouterr().err
        assert message in captured and captured.count("\n") == 1

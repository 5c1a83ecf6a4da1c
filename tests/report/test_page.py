"""The report of a few digits' runs: what it holds, and that it needs nothing but itself."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import yaml

import hkd
from hkd.cli import main
from hkd.report.collect import Group, Run, find_finished
from hkd.report.confusions import confusion_matrix
from hkd.report.cost import cost_of
from hkd.report.figures import curves, whole_step
from hkd.report.sections import searches, sweeps, topologies, transfers
from tests.report.fakes import CLASSES, fake_run

SECTIONS = [
    "networks",
    "comparison",
    "curves",
    "topology",
    "classes",
    "samples",
    "provenance",
    "reproduce",
    "configuration",
]
METHODS = {"kd": {"method": "kd"}, "hkd+kd": {"method": "hkd+kd"}, "weak kd": {"method": "kd", "kd_weight": 1.0}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trials of a student alone and of three methods, and their teacher, really trained."""
    folder = tmp_path_factory.mktemp("runs") / "study"
    small: dict[str, Any] = {"epochs": 2, "limit_train": 20, "tensorboard": False, "device": "cpu"}
    hkd.train(hkd.TrainConfig(run=str(folder / "teacher"), teacher="resnet14", **small))
    for seed in (0, 1):
        hkd.train(hkd.TrainConfig(run=str(folder / f"ce-{seed}"), student="resnet8", seed=seed, **small))
        for name, options in METHODS.items():
            hkd.distill(
                hkd.DistillConfig(
                    run=str(folder / f"{name}-{seed}"), seed=seed, teacher_checkpoint=str(folder / "teacher"),
                    **small, **options,
                )
            )  # fmt: skip
    students = tuple(str(folder / name) for name in ("kd-0", "hkd+kd-0"))
    hkd.topology(hkd.TopologyConfig(checkpoints=students, run=str(folder / "topology"), images=40, device="cpu"))
    return folder


@pytest.fixture(scope="module")
def page(runs: Path) -> str:
    return report(runs, output=runs.parent / "out" / "report.html")


def report(*folders: Path, output: Path, **options: Any) -> str:
    """The page of some folders."""
    config = hkd.ReportConfig(runs=tuple(map(str, folders)), output=str(output), **options)
    return hkd.write_report(config).read_text(encoding="utf-8")


class Reader(HTMLParser):
    """The text of each section's tables, the sections, and what a page would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.by_section: dict[str, list[list[list[str]]]] = {}
        self.loads: list[str] = []
        self._cell = False
        self.feed(re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.loads += [given[name] or "" for name in ("src", "href") if given.get(name)]
        if tag == "section":
            self.sections.append(given["id"] or "")
            self._tables = self.by_section[self.sections[-1]] = []
        elif tag == "table":
            self._tables.append([])
        elif tag == "tr":
            self._tables[-1].append([])
        elif tag in ("td", "th"):
            self._tables[-1][-1].append("")
        self._cell = tag in ("td", "th")

    def handle_endtag(self, tag: str) -> None:
        self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self._tables[-1][-1][-1] += data

    def table(self, section: str, number: int = 0) -> list[list[str]]:
        """The cells of one table of a section, its heads first."""
        return self.by_section[section][number]


def test_the_page_has_all_that_the_runs_hold(page: str, runs: Path) -> None:
    read = Reader(page)
    assert read.sections == SECTIONS
    networks, comparison = read.table("networks"), read.table("comparison")
    students = ["resnet8, hkd+kd", "resnet8, kd", "resnet8, kd(kd_weight=1)"]
    assert sorted(row[0] for row in networks[1:]) == ["resnet14", "resnet8", *students]
    means = [float(row[1].split()[0]) for row in networks[1:]]
    assert means == sorted(means, reverse=True)
    shown = {row[0]: row[1] for row in comparison[1:]}
    lines = {"ce": "ce", "kd": "kd", "hkd+kd": "hkd+kd", "kd(kd_weight=1)": "weak kd"}
    assert shown.keys() == lines.keys()
    for line, folder in lines.items():
        summaries = [json.loads((runs / f"{folder}-{n}" / "summary.json").read_text()) for n in (0, 1)]
        assert shown[line].startswith(f"{np.mean([summary['top1_last'] for summary in summaries]):.2f} ± ")
    reproduce = read.table("reproduce")
    assert len(reproduce) == 1 + 9
    assert all(row[-1].startswith("hkd ") and "config.yaml" in row[-1] for row in reproduce[1:])
    torch = json.loads((runs / "teacher" / "summary.json").read_text())["torch"]
    assert f"All were made by hkd {hkd.__version__}, torch {torch}, Python" in page
    assert page.count("data:image/png;base64") >= 1 + 1
    topology = read.table("topology")
    assert [row[0] for row in topology[1:]] == ["resnet8, kd", "resnet8, hkd+kd"]


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    loads = [target for target in Reader(page).loads if not target.startswith(("#", "data:"))]
    assert loads == []
    assert "default-src 'none'" in page and "connect-src 'none'" in page
    assert page.count("Plotly.newPlot(") >= 2
    assert "prefers-color-scheme: dark" in page and "@media print" in page


def test_a_command_of_the_page_repeats_its_number(page: str, tmp_path: Path) -> None:
    row = next(row for row in Reader(page).table("reproduce")[1:] if row[1] == "resnet8, kd" and row[2] == "1")
    command = shlex.split(row[-1].replace("NEW", str(tmp_path / "again")))
    assert main([*command[1:], "--device", "cpu"]) == 0
    summary = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert f"{summary['top1_last']:.2f}" == row[3]


def test_a_teacher_alone(runs: Path, tmp_path: Path) -> None:
    """It ended in an IndexError."""
    read = Reader(report(runs / "teacher", output=tmp_path / "r.html"))
    assert read.sections == ["networks", "curves", "classes", "provenance", "reproduce", "configuration"]
    assert [row[0] for row in read.table("networks")] == ["network", "resnet14"]


def test_a_student_alone_shows_its_teacher(runs: Path, tmp_path: Path) -> None:
    """The teacher's run is elsewhere."""
    read = Reader(report(runs / "kd-0", output=tmp_path / "r.html"))
    assert sorted(row[0] for row in read.table("networks")[1:]) == ["resnet14", "resnet8, kd"]
    assert "samples" in read.sections


def test_a_teacher_that_was_a_file_has_a_row(tmp_path: Path) -> None:
    """Once for all students, with the accuracy that their runs measured."""
    teacher = hkd.create_model("resnet14", 10)
    hkd.save_model(teacher, tmp_path / "teacher.safetensors")
    options = {"method": "kd", "teacher_checkpoint": str(tmp_path / "teacher.safetensors")}
    for seed in (0, 1):
        run = fake_run(tmp_path / "runs" / str(seed), seed=seed, **options)
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps(summary | {"teacher_top1": 71.25}))
    networks = Reader(report(tmp_path / "runs", output=tmp_path / "r.html")).table("networks")
    assert networks[1] == ["resnet14 (teacher)", "71.25", *[""] * 6]
    assert [row[0] for row in networks[2:]] == ["resnet8, kd"]


def test_the_teacher_s_run_is_its_row(runs: Path, tmp_path: Path) -> None:
    page = report(runs / "kd-0", output=tmp_path / "r.html")
    assert "teacher_top1" in json.loads((runs / "kd-0" / "summary.json").read_text())
    assert "(teacher)" not in [row[0] for row in Reader(page).table("networks")]
    assert len(Reader(page).table("networks")) == 3


def test_the_configuration_is_closed(page: str) -> None:
    part = page[page.index('<section id="configuration">') :]
    assert part.count("<details>") == 2 and "<details open" not in page
    assert part.index("<details>") < part.index("<table>")


def test_a_confusion_matrix(tmp_path: Path) -> None:
    """Against a count of each pair; 3 is always right and 2 never predicted."""
    run = fake_run(tmp_path / "a", classes=["cat", "dog", "eel", "fox"])
    label, predicted = [0, 0, 0, 1, 1, 2, 3, 3], [0, 0, 1, 1, 0, 0, 3, 3]
    np.savez(run / "predictions.npz", label=np.array(label), predicted=np.array(predicted))
    runs, _ = find_finished([str(tmp_path)])
    matrix = confusion_matrix(runs)
    assert matrix is not None and matrix.names == ["cat", "dog", "eel", "fox"]
    pairs = list(zip(label, predicted, strict=True))
    for n, row in enumerate(matrix.rows):
        assert [int(count.text or 0) for count in row] == [pairs.count((n, m)) for m in range(4)]
        assert [count.right for count in row] == [n == m for m in range(4)]
    assert matrix.rows[0][0].shade == 67 and matrix.rows[0][1].title == "cat taken for dog: 1 of 3"
    assert "matrix of all classes" in matrix.caption
    page = report(tmp_path, output=tmp_path / "r.html")
    assert 'title="cat taken for dog: 1 of 3"' in page and "most often mistaken for" in page


def test_a_matrix_of_many_classes_shows_the_most_confused(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(30)]
    run = fake_run(tmp_path / "a", classes=names)
    label = np.arange(300) % 30
    predicted = np.where((label >= 5) & (label < 24), label + 1, label)  # 5 to 24 are in a mistake
    np.savez(run / "predictions.npz", label=label, predicted=predicted)
    matrix = confusion_matrix(find_finished([str(tmp_path)])[0])
    assert matrix is not None and matrix.names == names[5:25]
    assert "the 20 most confused of 30 classes" in matrix.caption
    assert sum(int(count.text or 0) for row in matrix.rows for count in row) == 20 * 10


def test_epochs_are_whole_on_the_axis(page: str) -> None:
    for last, step in ((1, 1), (2, 1), (6, 1), (7, 2), (12, 2), (60, 10), (240, 50), (2400, 500), (60_000, 10_000)):
        assert whole_step(last) == step and last / step <= 6
    assert '"displayModeBar": false' in page and '"tickformat":",d"' in page


def test_two_data_sets(tmp_path: Path) -> None:
    """Their different numbers of test images ended in a ValueError."""
    for dataset, classes in (("digits", CLASSES), ("stl10", ["cat", "dog", "eel"])):
        for n, options in enumerate(({}, {"method": "kd", "teacher": "resnet14"})):
            folder = tmp_path / dataset / str(n)
            fake_run(folder, 0.5 + n / 10, classes=classes, dataset=dataset, **options)
            file = folder / "predictions.npz"
            with np.load(file) as content:
                shorter = {name: content[name][: 10 * len(classes)] for name in ("predicted", "label")}
            np.savez(file, **shorter)
    read = Reader(report(tmp_path, output=tmp_path / "r.html"))
    labels = {row[0] for row in read.table("networks")[1:]}
    assert labels == {f"resnet8{method}, {data}" for method in ("", ", kd") for data in ("digits", "stl10")}
    for number in (0, 1):
        rows = {row[0]: row for row in read.table("comparison", number)[1:]}
        assert rows.keys() == {"ce", "kd"}
    hardest = {row[0]: row[1:] for row in read.table("classes")[1:]}
    assert hardest["resnet8, stl10"][3] in ("dog", "eel", "cat")


def test_what_a_summary_lacks_is_blank(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "kd", method="kd", teacher="resnet14")
    (run / "summary.json").write_text(json.dumps({"top1_last": 50.0}))
    (run / "student.safetensors").unlink()
    (row,) = Reader(report(tmp_path, output=tmp_path / "r.html")).table("networks")[1:]
    assert row == ["resnet8, kd", "50.00 (1)", *[""] * 6]


def test_times_with_and_without_a_table_of_the_teacher_are_marked(tmp_path: Path) -> None:
    for name, more in (("ce", {}), ("at", {"method": "at"}), ("kd", {"method": "kd", "hits": 60})):
        fake_run(tmp_path / name, **more, **({"teacher": "resnet14"} if more else {}))
    read = Reader(report(tmp_path, output=tmp_path / "r.html"))
    for name in ("networks", "comparison"):
        head, *rows = read.table(name)
        assert head[-1] == "teacher's outputs" and {row[-1] for row in rows} == {"", "computed", "60 % read"}


def test_held_out_images_are_named(tmp_path: Path) -> None:
    fake_run(tmp_path / "a", holdout=0.2)
    assert "of the held-out training images where a run has a holdout" in report(tmp_path, output=tmp_path / "r.html")


def test_class_names_and_runs_are_escaped(tmp_path: Path) -> None:
    evil = tmp_path / "<script>alert(1)</script>"
    hostile = ["</td><script>alert(3)</script>", *CLASSES[1:]]
    run = fake_run(evil / "kd", classes=hostile, method="kd", teacher="resnet14")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"student": "<img src=x onerror=alert(2)>"}))
    page = report(evil, output=tmp_path / "r.html", title="<b>t</b>")
    for text in ("<script>alert", "<img src=x", "<b>t</b>"):
        assert text not in page
    assert "&lt;script&gt;alert(3)" in page


def test_names_in_files_import_and_download_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "surprise.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    assert cost_of("surprise:net", 10, 32) is None
    assert cost_of("timm:hf-hub:somebody/net", 10, 32) is None
    fake_run(tmp_path / "runs" / "teacher", dataset="cifar100", data_root="nowhere", student="resnet14")
    teacher = str(tmp_path / "runs" / "teacher")
    fake_run(tmp_path / "runs" / "kd", dataset="cifar100", data_root="nowhere", method="kd", teacher_checkpoint=teacher)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    assert "samples" not in Reader(report(tmp_path / "runs", output=tmp_path / "r.html")).sections
    assert not (tmp_path / "nowhere").exists()


def cells(section: Any, part: int = 0) -> list[list[str]]:
    return [[cell.text for cell in row] for row in section.parts[part].table.rows]


def test_results_of_version_0_1_are_shown_without_pooling(tmp_path: Path) -> None:
    """Their rows have no key, and their distance correlation is the biased statistic."""
    kept = {"knn_overlap": 0.25, "linear_cka": 0.5, "trustworthiness": 0.75, "distance_correlation": 0.875}
    rows = [{"network": "kd", "weights": f"{f}/s.safetensors", "seed": 0} | kept for f in ("a", "b")]
    numbers = {"rows": rows, "teacher": "resnet14", "images": 60, "neighbours": 5}
    (tmp_path / "topology.json").write_text(json.dumps(numbers))
    expected = [[f"kd [{f}/s.safetensors]", "0.250 (1)", "0.500 (1)", "0.750 (1)", ""] for f in ("a", "b")]
    assert cells(topologies([tmp_path], {})) == expected


def test_tables_of_topology_and_transfer_pool_by_key(tmp_path: Path) -> None:
    """And call a network what the page calls it."""
    rows = [
        {"label": "kd", "key": key, "seed": n, "weights": f"{key}{n}/s", "dataset": name, "top1": top1 + n}
        for key, top1 in (("k1", 50.0), ("k2", 20.0)) for n in (0, 2) for name in ("digits", "stl10")
    ]  # fmt: skip
    (tmp_path / "transfer.json").write_text(json.dumps({"rows": rows, "protocol": [], "datasets": ["digits", "stl10"]}))
    one, two = ["51.00 ± 1.41 (2)"] * 2, ["21.00 ± 1.41 (2)"] * 2
    assert cells(transfers([tmp_path], {})) == [["kd [k10]", *one], ["kd [k20]", *two]]
    assert cells(transfers([tmp_path], {"k1": "kd, lr=0.1"})) == [["kd, lr=0.1", *one], ["kd [k20]", *two]]


def test_sweeps_and_searches_have_their_places(tmp_path: Path) -> None:
    point = {"method": "kd", "lr": 0.1, "seed": 0, "top1_last": 50.0}
    sweep = {"field": "lr", "values": [0.1, 0.2], "methods": ["kd"], "points": [point]}
    tries = [{"try": n, "state": "complete", "top1_holdout": 50.0 + n, "values": {"lr": 0.1 * (n + 1)}} for n in (0, 1)]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "sweep.json").write_text(json.dumps(sweep))
    (tmp_path / "search.json").write_text(json.dumps({"method": "kd", "best": tries[1], "tries": tries}))
    section = sweeps([tmp_path])
    assert section is not None
    assert [part.heading for part in section.parts] == [f"lr in {tmp_path}/a", f"lr in {tmp_path}/b"]
    assert cells(searches([tmp_path])) == [["1", "51.00", "0.2", "complete"], ["0", "50.00", "0.1", "complete"]]


def test_costs() -> None:
    cost = cost_of("resnet8", 10, 32)
    assert cost is not None and cost.parameters == 78_042
    assert cost.flops == pytest.approx(2 * 12.5e6, rel=0.05), "two operations a multiply-add"
    assert cost.latency_ms > 0
    assert cost_of("no such network", 10, 32) is None


def test_the_command_and_wrong_requests(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    output = tmp_path / "deep" / "r.html"
    assert main(["report", str(runs / "kd-0"), "--output", str(output)]) == 0
    assert str(output) in capsys.readouterr().out
    shutil.copytree(runs / "kd-0", tmp_path / "corrupt")
    (tmp_path / "corrupt" / "config.yaml").write_text("lr: fast")
    for arguments, message in (
        ([], "runs: name at least one run folder"),
        ([str(tmp_path / "none")], "runs: no folder"),
        ([str(tmp_path / "deep")], "runs: no finished run in"),
        ([str(tmp_path / "corrupt")], "config.yaml is not the configuration of a run"),
        ([str(runs / "kd-0"), "--output", str(output / "x.html")], "output: cannot write"),
    ):
        assert main(["report", *arguments]) == 2
        captured = capsys.readouterr().err
        assert message in captured and captured.count("\n") == 1


@pytest.mark.parametrize(
    ("tested", "epochs", "shown", "mode"),
    [
        ((1, 2, 3), 3, "test top-1 (%)", "lines"),
        ((3,), 3, "training top-1 (%)", "lines+markers"),  # as with `evaluate: last`
        ((1,), 1, "test top-1 (%)", "lines+markers"),
    ],
)
def test_the_curves_that_are_shown_first_can_be_seen(
    tested: tuple[int, ...], epochs: int, shown: str, mode: str
) -> None:
    rows = [{"epoch": n, "train_top1": 10.0 * n, "loss": 1 / n} for n in range(1, epochs + 1)]
    for n in tested:
        rows[n - 1]["test_top1"] = 7.0 * n
    figure = curves([Group("kd", (cast("Run", SimpleNamespace(rows=rows)),), is_teacher=False)])
    (menu,), (trace,) = figure.layout.updatemenus, figure.data
    assert figure.layout.yaxis.title.text == shown
    assert menu.buttons[menu.active].args[1] == {"yaxis.title.text": shown}
    assert trace.mode == mode
    assert list(trace.y) == [row.get("test_top1" if shown.startswith("test") else "train_top1") for row in rows]

"""Panels and numbers of a few digits' networks."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hkd
from hkd.analysis import topology as analysis
from hkd.analysis.features import Features
from hkd.analysis.topology import Panel, compute_topology
from hkd.report import panels as drawing
from hkd.report.topology import MEASURES, topology
from hkd.runtime.run_folder import RunFolder
from hkd.trained import with_teachers
from tests.analysis.conftest import distill
from tests.data.test_datasets import class_folders, write_files


def config(runs: Path, tmp_path: Path, *names: str, **changes: Any) -> hkd.TopologyConfig:
    fields = {"images": 60, "neighbours": 5, "device": "cpu"}
    return hkd.TopologyConfig(
        checkpoints=tuple(str(runs / n) for n in names), run=str(tmp_path / "t"), **fields | changes
    )


def test_numbers_and_panels(runs: Path, tmp_path: Path) -> None:
    request = config(runs, tmp_path, "kd-0/teacher", "alone", "kd-0", edges=True)
    result = compute_topology(request, with_teachers(request.checkpoints))
    rows = result.numbers["rows"]
    assert [row["label"] for row in rows] == ["resnet8", "resnet8, kd"]
    assert [row["seed"] for row in rows] == [0, 0] and rows[0]["key"] != rows[1]["key"]
    assert all(0 <= row[name] <= 1 for row in rows for name in MEASURES)
    assert result.numbers["dataset"] == "digits" and result.numbers["images"] == 60
    assert [panel.title for panel in result.panels] == ["resnet14", "resnet8", "resnet8, kd"]
    spreads = [np.linalg.norm(panel.points - panel.points.mean(0)) for panel in result.panels]
    np.testing.assert_allclose(spreads, spreads[0], rtol=1e-5)
    for panel in result.panels:
        assert panel.edges is not None and panel.edges.shape == (60, 8)
        assert (panel.edges[:, 0] == np.arange(60)).all()
    assert result.label.shape == (60,) and result.classes == list("0123456789")
    assert not list((tmp_path / "t").glob("topology*")), "numbers are computed without writing or drawing"


def test_the_command_writes_tables_and_panels(runs: Path, tmp_path: Path) -> None:
    request = config(runs, tmp_path, "kd-0/teacher", "alone", "kd-0", edges=True)
    numbers = topology(request)
    folder = tmp_path / "t"
    assert json.loads((folder / "topology.json").read_text()) == numbers
    with Image.open(folder / "topology.png") as image:
        assert image.width > 2 * image.height
    assert "<svg" in (folder / "topology.svg").read_text()
    page = (folder / "topology.html").read_text()
    assert "Plotly.newPlot" in page
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', page), "the page needs no network"
    text = (folder / "topology.md").read_text()
    assert "unrelated embeddings overlap by 0.085" in text
    assert "| distance correlation² (bias-corrected)" in text

    assert topology(request) == numbers, "the same images, layout and numbers"


def test_seeds_are_pooled_and_nothing_else(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ "kd-2-epochs" has the label of "kd-0" and another key; "again" repeats its key and seed."""
    longer = tmp_path / "kd-2-epochs"
    distill(longer, epochs=2)
    again = tmp_path / "again"
    shutil.copytree(runs / "kd-0", again)
    names = ("kd-0/teacher", "kd-0", "kd-1", str(longer), str(again))
    topology(config(runs, tmp_path, *names))
    rows = json.loads((tmp_path / "t" / "topology.json").read_text())["rows"]
    students = [row for row in rows if row["label"] == "resnet8, kd"]
    assert len(students) == 4, "all are kept"
    table = [line for line in (tmp_path / "t" / "topology.md").read_text().splitlines() if "resnet8, kd" in line]
    assert [re.findall(r"\((\d)\)", line)[0] for line in table] == ["2", "1"]
    assert f"[{runs / 'kd-0'}]" in table[0] and f"[{longer}]" in table[1]
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert any(str(again / "student.safetensors") in note and str(runs / "kd-0") in note for note in notes)


def test_no_file_of_the_analysis_draws() -> None:
    for file in sorted(Path(compute_topology.__code__.co_filename).parent.glob("*.py")):
        imported = [
            name
            for node in ast.walk(ast.parse(file.read_text()))
            for name in (
                [alias.name for alias in node.names] if isinstance(node, ast.Import)
                else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            )
        ]  # fmt: skip
        for name in imported:
            assert name.split(".")[0] not in ("matplotlib", "plotly"), f"{file} imports {name}"
            assert not name.startswith("hkd.report"), f"{file} imports {name}"


def test_a_network_keeps_all_of_itself(runs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((runs / "kd-0" / "teacher" / "model.safetensors").read_bytes())
    (row,) = topology(config(runs, tmp_path, "kd-0/teacher", str(copy)))["rows"]
    assert [row[name] for name in ("knn_overlap", "trustworthiness")] == [1, 1]
    assert [row[name] for name in ("linear_cka", "distance_correlation_squared")] == pytest.approx([1, 1])


def test_all_networks_are_shown_the_same_images(runs: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(runs / "kd-0" / "teacher", again)
    text = (again / "config.yaml").read_text()
    (again / "config.yaml").write_text(text + "\nholdout: 0.25\n")
    assert RunFolder(again).spec.data.holdout == 0.25, "the same weights, of a run that evaluates on held-out images"
    (row,) = topology(config(runs, tmp_path, "kd-0/teacher", str(again)))["rows"]
    assert row["knn_overlap"] == 1

    photos = write_files(tmp_path / "photos", class_folders(train=6))
    other = hkd.train(
        hkd.TrainConfig(run=str(tmp_path / "other"), dataset=f"folder:{photos}", epochs=1, batch_size=6, device="cpu")
    )
    with pytest.raises(hkd.RequestError, match="learnt other classes"):
        topology(config(runs, tmp_path, "kd-0/teacher", str(other.run)))


def test_networks_that_would_be_shown_different_images_are_refused(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Features] = []

    def shuffled(*_: Any) -> Features:
        seen.append(Features(np.eye(60, dtype=np.float32), np.eye(60, dtype=np.float32), np.arange(60) + len(seen)))
        return seen[-1]

    monkeypatch.setattr(analysis, "extract", shuffled)
    request = config(runs, tmp_path, "kd-0/teacher", "kd-0")
    with pytest.raises(hkd.RequestError, match="would be shown different images"):
        compute_topology(request, with_teachers(request.checkpoints))


def test_hostile_class_names_stay_text(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    panel = Panel("</script><script>alert(1)</script>", draw.standard_normal((6, 2)), None)
    page = drawing.interactive([panel], np.arange(6) % 2, ["<img src=x onerror=alert(2)>", "b"])
    assert "<script>alert(1)" not in page
    assert "<img src=x" not in page


def test_wrong_requests(runs: Path, tmp_path: Path) -> None:
    for names, changes, message in (
        (("alone",), {}, "checkpoints: name students with their teacher, or the teacher first"),
        ((), {}, "checkpoints: name at least one run folder"),
        (("kd-0",), {"neighbours": 30}, "neighbours: expected less than half of the 60 images; got 30"),
        (("kd-0",), {"images": 2}, "images: expected a number in"),
        (("kd-0",), {"dataset": "digit"}, "did you mean digits"),
    ):
        with pytest.raises(hkd.RequestError, match=message):
            topology(config(runs, tmp_path, *names, **changes))

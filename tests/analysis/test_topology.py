"""Panels and numbers of a few digits' networks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hkd
from hkd.analysis import topology as module
from tests.analysis.test_transfer import runs  # noqa: F401  (a fixture)


def config(runs: Path, tmp_path: Path, *names: str, **changes: Any) -> hkd.TopologyConfig:  # noqa: F811
    fields = {"images": 60, "neighbours": 5, "device": "cpu"}
    return hkd.TopologyConfig(
        checkpoints=tuple(str(runs / n) for n in names), run=str(tmp_path / "t"), **fields | changes
    )


def test_a_topology(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    panels, labels = [], []
    draw = module.draw

    def watch(drawn: Any, label: Any, *rest: Any) -> None:
        panels.extend(drawn)
        labels.append(label)
        draw(drawn, label, *rest)

    monkeypatch.setattr(module, "draw", watch)
    asked = config(runs, tmp_path, "kd-0/teacher", "alone", "kd-0", edges=True)
    found = hkd.topology(asked)
    assert [row["network"] for row in found["rows"]] == ["resnet8 alone", "resnet8, kd"]
    assert all(0 <= row[key] <= 1 for row in found["rows"] for key in list(row)[3:])
    assert found["dataset"] == "digits" and found["images"] == 60
    assert [panel.title for panel in panels] == ["resnet14", "resnet8 alone", "resnet8, kd"]
    spreads = [np.linalg.norm(panel.points - panel.points.mean(0)) for panel in panels]
    np.testing.assert_allclose(spreads, spreads[0], rtol=1e-5)
    assert all(panel.edges.shape == (60, 8) and (panel.edges[:, 0] == np.arange(60)).all() for panel in panels)

    folder = tmp_path / "t"
    assert json.loads((folder / "topology.json").read_text()) == found
    with Image.open(folder / "topology.png") as image:
        assert image.width > 2 * image.height
    assert "<svg" in (folder / "topology.svg").read_text()
    page = (folder / "topology.html").read_text()
    assert "Plotly.newPlot" in page
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', page), "the page needs no network"
    assert "unrelated embeddings overlap by 0.085" in (folder / "topology.md").read_text()

    assert hkd.topology(asked) == found, "the same images, layout and numbers"


def test_a_network_keeps_all_of_itself(runs: Path, tmp_path: Path) -> None:  # noqa: F811
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((runs / "kd-0" / "teacher" / "model.safetensors").read_bytes())
    asked = config(runs, tmp_path, "kd-0/teacher")
    both = hkd.TopologyConfig(**{**asked.__dict__, "checkpoints": (*asked.checkpoints, str(copy))})
    (row,) = hkd.topology(both)["rows"]
    assert [row[key] for key in ("knn_overlap", "trustworthiness")] == [1, 1]
    assert [row[key] for key in ("linear_cka", "distance_correlation")] == pytest.approx([1, 1])


def test_hostile_class_names_stay_text(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    panel = module.Panel("</script><script>alert(1)</script>", draw.standard_normal((6, 2)), None)
    page = module.interactive([panel], np.arange(6) % 2, ["<img src=x onerror=alert(2)>", "b"])
    assert "<script>alert(1)" not in page
    assert "<img src=x" not in page


def test_wrong_requests(runs: Path, tmp_path: Path) -> None:  # noqa: F811
    for names, changes, message in (
        (("alone",), {}, "checkpoints: name students with their teacher, or the teacher first"),
        ((), {}, "checkpoints: name at least one run folder"),
        (("kd-0",), {"neighbours": 60}, "neighbours: expected fewer than the 60 images; got 60"),
        (("kd-0",), {"images": 2}, "images: expected 5 or more; got 2"),
        (("kd-0",), {"dataset": "digit"}, "did you mean digits"),
    ):
        with pytest.raises(hkd.RequestError, match=message):
            hkd.topology(config(runs, tmp_path, *names, **changes))

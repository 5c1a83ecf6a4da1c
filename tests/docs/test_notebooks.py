"""The notebooks run, and hold what they printed."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
each_notebook = pytest.mark.parametrize("file", sorted(FOLDER.glob("*.ipynb")), ids=lambda file: file.stem)


@each_notebook
def test_committed_outputs_are_whole_and_small(file: Path) -> None:
    first, *cells = (cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code")
    assert "%pip install -q hkd" in first.source
    assert [cell.execution_count for cell in (first, *cells)] == list(range(1, len(cells) + 2)), "run top to bottom"
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and all(output.output_type != "error" for output in outputs)
    assert os.path.getsize(file) < 100_000


@pytest.mark.slow
@each_notebook
def test_every_cell_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(file, 4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output.output_type for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs and "error" not in outputs

"""The checks of `make check`, as part of the suite."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "tool",
    [
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],
        pytest.param(["mypy"], marks=pytest.mark.slow),
        ["codespell_lib"],
    ],
    ids=" ".join,
)
def test_a_checker_is_content(tool: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

"""The run that broken ones are compared with."""

from pathlib import Path

import pytest

import hkd
from tests.faults.runs import asked, teacher


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher and the run that nothing happened to; of each module, which sets its threads."""
    folder = tmp_path_factory.mktemp("whole")
    teacher(folder)
    hkd.distill(asked(folder / "run"))
    return folder

"""Table 1 of the paper and the methods beyond it, 1,153 runs, are planned and restarted in a few times an import.

The measure is what the same machine needs to import hkd at the same moment, since a busy one is slower at both.
"""

import sys
from pathlib import Path

import pytest
from benchmarks.startup import TABLE1, finish_all_but_the_last, until_the_last_run, whole

pytestmark = pytest.mark.slow


def test_plan_and_restart_of_table_1(tmp_path: Path) -> None:
    count, last = finish_all_but_the_last(tmp_path / "finished")
    assert count == 1153
    imports = whole([sys.executable, "-c", "import hkd.studies.compare"])
    assert whole([*TABLE1, str(tmp_path / "empty"), "--dry-run"]) < 10 * imports
    assert until_the_last_run(tmp_path / "finished", last) < 10 * imports

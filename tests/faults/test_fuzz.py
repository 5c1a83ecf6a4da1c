"""A short run of the fuzzers; `make fuzz` gives them ten minutes."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hkd
from hkd.cli import main
from hkd.cli.commands import CONFIGS
from hkd.files import read_json, read_yaml
from hkd.options import options
from hkd.spec import RunSpec
from tests.faults.fuzz_targets import TARGETS

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "OMP_NUM_THREADS": "1"}
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=8), v, max_size=4))
FIELDS = sorted(
    {entry.name for config in CONFIGS.values() for entry in options(config)} | {"format", "plugins", "kd.x"}
)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_loaders_refuse_what_they_cannot_read(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.fuzz_loaders", "-max_total_time=5", "-seed=1"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Done" in done.stderr


def test_changed_files_and_requests_are_read_or_refused(tmp_path: Path) -> None:
    """In a process of its own, whose alarm clock is not another test's."""
    command = [sys.executable, "-m", "tests.faults.fuzz_files", "5", "1", *TARGETS]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "in all; 0 findings" in done.stdout


def said_in_a_line(call: Callable[[], object]) -> bool:
    """Whether a call ends well, or with an error as the command line prints one."""
    try:
        call()
    except hkd.RequestError as error:
        return str(error).isprintable() and len(str(error)) < 6000
    except SystemExit as ended:
        return ended.code == 0
    return True


@QUICK
@given(values=VALUES)
def test_any_value_in_a_file_is_a_mapping_or_refused(tmp_path: Path, values: object) -> None:
    (tmp_path / "any.json").write_text(json.dumps(values))
    (tmp_path / "any.yaml").write_text(yaml.safe_dump(values))
    for read, file in ((read_json, "any.json"), (read_yaml, "any.yaml"), (RunSpec.load, "any.yaml")):
        assert said_in_a_line(lambda read=read, file=file: read(tmp_path / file))


@QUICK
@given(command=st.sampled_from(sorted(CONFIGS)), values=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3))
def test_any_options_of_a_file_are_taken_or_refused(tmp_path: Path, command: str, values: dict[str, object]) -> None:
    (tmp_path / "any.yaml").write_text(yaml.safe_dump(values | {"plugins": []}))
    assert said_in_a_line(lambda: main([command, "--print-config", "--config", str(tmp_path / "any.yaml"), "--debug"]))


@QUICK
@given(
    command=st.sampled_from(sorted(CONFIGS)),
    given_=st.lists(st.tuples(st.sampled_from(FIELDS), st.text(max_size=20) | LEAVES.map(str)), max_size=3),
)
def test_any_words_are_taken_or_refused(command: str, given_: list[tuple[str, str]]) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given_ if name != "plugins"]
    assert said_in_a_line(lambda: main([command, "--print-config", *words, "--debug"]))

"""One comparison of digits on every engine, with processes killed in the middle: the same numbers, and no other run is
started twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from hkd.runtime.run_folder import RunFolder, RunState, find_runs

pytestmark = pytest.mark.slow

RUNS = 9
LINES = "ce,kd,hkd(num_negatives=50)+kd"
COMPARE = [
    sys.executable, "-m", "hkd", "compare", "--teachers", "resnet14", "--students", "resnet8", "--methods", LINES,
    "--trials", "2", "--epochs", "6", "--limit-train", "40", "--save-minutes", "0.001", "--no-tensorboard",
    "--device", "cpu", "--threads", "1",
]  # fmt: skip
ENGINES: dict[str, list[list[str]]] = {
    "jobs 1": [["--jobs", "1"]],
    "jobs 2": [["--jobs", "2"]],
    "ray": [["--engine", "ray", "--jobs", "2"]],
    "two processes": [["--jobs", "1"], ["--jobs", "1"]],
}
SECONDS = 240


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "OMP_NUM_THREADS")}
    return subprocess.Popen(
        [*COMPARE, "--run", str(folder), *options], env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    """What they said on standard error; all have to end well."""
    said = [process.communicate(timeout=SECONDS)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return said


def outcome(folder: Path) -> dict[str, Any]:
    """Everything but times: what each run has come to, and the intervals."""
    runs = {}
    for run in find_runs(folder):
        summary = run.summary
        assert summary is not None, run.path
        weights = safetensors.torch.load_file(run.weights)
        runs[str(run.path.relative_to(folder))] = {
            "seed": run.spec.seed,
            "key": run.spec.key(),
            "top1": (summary["top1_last"], summary["top1_best"], summary["best_epoch"]),
            "predicted": run.predictions()[0].tolist(),
            "weights": [(name, float(np.abs(value.double().numpy()).sum())) for name, value in sorted(weights.items())],
            "epochs": [row["epoch"] for row in run.rows()],
        }
    assert len(runs) == RUNS
    (pair,) = json.loads((folder / "comparison.json").read_text())["pairs"]
    intervals = {row["method"]: (row["seeds"], row["top1_last"], row["difference"]) for row in pair["methods"]}
    return {"runs": runs, "intervals": intervals, "teacher": pair["teacher_top1"]}


def starts(folder: Path) -> dict[str, int]:
    """How often each run has been started."""
    count = {}
    for run in find_runs(folder):
        lines = run.log_file.read_text(errors="replace").splitlines()
        count[str(run.path.relative_to(folder))] = sum(line.startswith("$ ") for line in lines)
    return count


def until(condition: Callable[[], Any], *processes: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def processes_of(run: Path) -> list[int]:
    """The processes whose command line names a run folder."""
    numbers = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(run).encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                numbers.append(int(entry.name))
    return numbers


def is_in_the_middle(run: Path) -> bool:
    return len(RunFolder(run).rows()) >= 1 and RunFolder(run).state is RunState.BEGUN


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one run at a time comes to, with nothing in its way."""
    folder = tmp_path_factory.mktemp("reference") / "c"
    finish(start(folder, "--jobs", "1"))
    assert set(starts(folder).values()) == {1}
    return outcome(folder)


@pytest.mark.parametrize("engine", ENGINES)
def test_with_a_worker_killed_it_still_does(tmp_path: Path, reference: dict[str, Any], engine: str) -> None:
    studies = [start(tmp_path / "c", *options) for options in ENGINES[engine]]
    victim = tmp_path / "c" / "resnet14-resnet8" / "hkd_num_negatives=50_+kd-0"
    until(lambda: is_in_the_middle(victim), *studies)
    (worker,) = processes_of(victim)
    os.kill(worker, signal.SIGKILL)
    said = finish(*studies)
    assert outcome(tmp_path / "c") == reference
    count = starts(tmp_path / "c")
    assert count.pop(str(victim.relative_to(tmp_path / "c"))) == 2
    assert set(count.values()) == {1}
    assert "".join(said).count("its process was lost, it is started again") == 1


def test_a_lost_ray_worker_is_replaced(tmp_path: Path, reference: dict[str, Any]) -> None:
    """Ray's own process, whose run ends by itself."""
    study = start(tmp_path / "c", *ENGINES["ray"][0])
    victim = tmp_path / "c" / "resnet14-resnet8" / "kd-1"
    until(lambda: is_in_the_middle(victim), study)
    (worker,) = processes_of(victim)
    parent = int(Path(f"/proc/{worker}/stat").read_text().rsplit(") ", 1)[1].split()[1])
    os.kill(parent, signal.SIGKILL)
    finish(study)
    assert outcome(tmp_path / "c") == reference


@pytest.mark.parametrize("engine", ["jobs 2", "ray"])
def test_a_signal_stops_a_study_which_continues(tmp_path: Path, reference: dict[str, Any], engine: str) -> None:
    (options,) = ENGINES[engine]
    study = start(tmp_path / "c", *options)
    begun = tmp_path / "c" / "resnet14-resnet8" / "kd-0"
    until(lambda: RunFolder(begun).rows(), study)  # or later: on a busy machine its middle may pass unseen
    study.send_signal(signal.SIGTERM)
    _, said = study.communicate(timeout=SECONDS)
    assert study.returncode == 143, said
    ours = [line for line in said.splitlines() if line.startswith("hkd: ") and "is added" not in line]
    assert len(ours) == 1 and ours[0].endswith("runs to go; the same command continues")
    assert "Traceback" not in said
    assert processes_of(begun) == []
    if RunFolder(begun).state is RunState.BEGUN:
        assert "hkd: stopped after" in (begun / "log.txt").read_text()
    finish(start(tmp_path / "c", *options))
    assert outcome(tmp_path / "c") == reference


@pytest.mark.parametrize("engine", ["jobs 2", "ray"])
def test_runs_end_with_a_study_that_is_killed(tmp_path: Path, reference: dict[str, Any], engine: str) -> None:
    (options,) = ENGINES[engine]
    study = start(tmp_path / "c", *options)
    begun = tmp_path / "c" / "resnet14-resnet8" / "kd-0"
    until(lambda: RunFolder(begun).rows(), study)
    study.kill()
    study.communicate(timeout=SECONDS)
    again = start(tmp_path / "c", *options)  # at once: it waits until the others have let go
    until(lambda: not any(worker for worker in processes_of(begun) if parent_of(worker) == 1), again)
    finish(again)
    assert outcome(tmp_path / "c") == reference


def parent_of(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1].split()[1])
    except OSError:
        return 0


def test_a_run_of_two_processes(tmp_path: Path) -> None:
    options = ["--methods", "kd", "--trials", "1", "--processes-per-run", "2", "--epochs", "2"]
    finish(start(tmp_path / "c", *options))
    for run in find_runs(tmp_path / "c"):
        assert run.state is RunState.FINISHED
        assert run.summary is not None and run.summary["machine"].startswith("2 x ")
        assert "torch.distributed.run" in run.log_file.read_text().splitlines()[0]
    assert set(starts(tmp_path / "c").values()) == {1}


def test_a_process_of_two_that_is_killed(tmp_path: Path) -> None:
    options = ["--methods", "ce", "--trials", "1", "--processes-per-run", "2", "--epochs", "60"]
    study = start(tmp_path / "c", *options)
    run = tmp_path / "c" / "alone" / "resnet8-0"
    until(lambda: is_in_the_middle(run), study)
    workers = [n for n in processes_of(run) if "torch.distributed.run" not in Path(f"/proc/{n}/cmdline").read_text()]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    (said,) = finish(study)
    assert "its process was lost, it is started again" in said
    assert RunFolder(run).state is RunState.FINISHED
    assert [row["epoch"] for row in RunFolder(run).rows()] == list(range(1, 61))

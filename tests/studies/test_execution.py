"""The loop that trains what is missing: what it makes of ends, losses, other processes and signals."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

import hkd
from hkd.errors import Stopped
from hkd.runtime.run_folder import RunFolder, RunState
from hkd.studies import engines
from hkd.studies.claims import claim
from hkd.studies.engines import LocalEngine
from hkd.studies.execution import Execution, was_lost
from hkd.studies.plan import Plan
from hkd.studies.planned_run import PlannedRun
from tests.studies.fakes import Ended, InstantEngine, finish


class ScriptedEngine(InstantEngine):
    """Each start does what the script says next: prints something and ends with a status."""

    slots = 2

    def __init__(self, *script: tuple[str, int], finishes: Callable[[Path], None] | None = None) -> None:
        super().__init__()
        self.script = list(script)
        self.finishes = finishes

    def start(self, command: Sequence[str], log: Path) -> Ended:
        self.started.append(log.parent.name)
        output, status = self.script.pop(0)
        with log.open("a") as file:
            file.write(output)
        if status == 0 and self.finishes is not None:
            self.finishes(log.parent)
        return Ended(status)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hkd.studies.execution.POLL_SECONDS", 0.001)
    monkeypatch.setattr("hkd.studies.execution.SCAN_SECONDS", 0.001)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Two students alone."""
    plan = Plan(str(tmp_path / "c"), "compare")
    for seed in (0, 1):
        spec = hkd.TrainConfig(run="-", student="resnet8", limit_train=5, epochs=1, device="cpu", seed=seed).spec()
        plan.add(spec, ("alone", str(seed)), f"seed {seed}")
    plan.begin()
    return plan


def finisher(plan: Plan) -> Callable[[Path], None]:
    return lambda path: finish_run(next(run for run in plan.runs if run.folder.path == path)) and None


def finish_run(run: PlannedRun) -> object:
    return finish(run.folder, run.resolved, 50)


def test_every_run_is_started_once_and_reported(plan: Plan) -> None:
    engine, ended, changes = ScriptedEngine(("", 0), ("", 0), finishes=finisher(plan)), [], []
    Execution(plan, engine, on_end=ended.append, refresh=lambda: changes.append(len(ended))).run()
    assert engine.started == ["0", "1"]
    assert ended == plan.runs
    assert changes[0] == 0 and changes[-1] == 2
    assert list((plan.folder / ".claims").iterdir()) == []
    assert plan.runs[0].folder.log_file.read_text().startswith("$ ")


def test_a_run_whose_process_was_lost_is_started_again_twice(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    engine = ScriptedEngine(("", -9), ("", 0), ("", -9), ("", 0), finishes=finisher(plan))
    Execution(plan, engine).run()
    assert sorted(engine.started) == ["0", "0", "0", "1"]
    assert capsys.readouterr().err.count("seed 0: its process was lost, it is started again") == 2
    (plan.runs[0].folder.path / "summary.json").unlink()
    engine = ScriptedEngine(*[("", -9)] * 3)
    Execution(plan, engine).run()
    assert engine.started == ["0"] * 3
    assert plan.runs[0].folder.failure == {"state": "failed", "message": "it printed nothing", "status": -9}


def test_a_failure_is_in_its_own_words_and_is_not_tried_again(plan: Plan) -> None:
    engine = ScriptedEngine(("epoch 1\nhkd: failed: out of memory\nbye\n", 1), ("hkd: lr: wrong\n", 2))
    Execution(plan, engine).run()
    assert [run.failure for run in plan.runs] == ["out of memory", "lr: wrong"]
    engine = ScriptedEngine()
    Execution(plan, engine).run()
    assert engine.started == []


def test_what_an_earlier_start_said_is_not_the_reason(plan: Plan) -> None:
    plan.runs[0].folder.path.mkdir(parents=True)
    plan.runs[0].folder.log_file.write_text("hkd: stopped\n")
    Execution(plan, ScriptedEngine(("nothing\n", 0), ("", 0), finishes=lambda _: None)).run()
    assert [run.failure for run in plan.runs] == ["nothing", "it printed nothing"]


@pytest.mark.parametrize(
    ("status", "output", "lost"),
    [
        (-9, "hkd: failed: x", True),
        (143, "hkd: stopped after epoch 3", True),
        (1, "Traceback", True),
        (1, "hkd: failed: x", False),
        (1, "epoch 1\nhkd: failed: RuntimeError\n  exitcode  : -9 (pid: 7)", True),
        (1, "hkd: stopped after epoch 3\n  exitcode  : 143 (pid: 7)", True),
        (1, "hkd: failed: x\n  exitcode  : 1 (pid: 7)", False),
        (2, "hkd: lr: wrong", False),
        (0, "", False),
    ],
)
def test_what_counts_as_lost(status: int, output: str, lost: bool) -> None:
    assert was_lost(status, output) is lost


def test_a_run_of_another_process_is_waited_for(plan: Plan) -> None:
    first, second = plan.runs
    first.folder.path.mkdir(parents=True)
    lock = FileLock(first.folder.path / ".lock")
    taken = claim(plan.folder, *second.identity)
    assert taken is not None
    lock.acquire()

    def others_finish() -> None:
        finish_run(first)
        lock.release()
        finish_run(second)
        taken.release()

    later = threading.Timer(0.3, others_finish)
    later.start()
    engine, ended = ScriptedEngine(), []
    Execution(plan, engine, on_end=ended.append).run()
    later.join()
    assert engine.started == [] and set(map(id, ended)) == set(map(id, plan.runs))


def test_a_run_that_another_process_let_go_of_is_taken(plan: Plan) -> None:
    taken = claim(plan.folder, *plan.runs[0].identity)
    assert taken is not None
    later = threading.Timer(0.3, taken.release)
    later.start()
    engine = ScriptedEngine(("", 0), ("", 0), finishes=finisher(plan))
    Execution(plan, engine).run()
    later.join()
    assert engine.started == ["1", "0"]


def test_a_run_that_somebody_took_at_the_last_moment_is_no_failure(plan: Plan) -> None:
    words = "hkd: run: another process is working in x; wait for it, or name another folder with --run\n"
    engine = ScriptedEngine((words, 2), ("", 0), ("", 0), finishes=finisher(plan))
    Execution(plan, engine).run()
    assert sorted(engine.started) == ["0", "0", "1"]


def test_a_signal_stops_the_runs_and_says_how_many_are_left(plan: Plan) -> None:
    stopped = []

    class Working(Ended):
        def poll(self) -> int | None:  # type: ignore[override]
            return 143 if stopped else None

        def stop(self) -> None:
            stopped.append(True)

    class Engine(ScriptedEngine):
        slots = 1

        def start(self, command: Sequence[str], log: Path) -> Ended:
            os.kill(os.getpid(), signal.SIGTERM)
            return Working(0)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="^stopped with 2 runs to go; the same command continues$") as error:
        Execution(plan, Engine()).run()
    assert error.value.status == 143
    assert stopped == [True]
    assert signal.getsignal(signal.SIGTERM) is before
    assert [run.state for run in plan.runs] == [RunState.MISSING] * 2
    assert list((plan.folder / ".claims").iterdir()) == []


def test_a_corrupt_checkpoint_is_to_be_deleted(plan: Plan) -> None:
    words = "hkd: run: last.pt is corrupt; start over with --fresh\n"
    Execution(plan, ScriptedEngine((words, 2), (words, 2))).run()
    run = plan.runs[0].folder
    assert plan.runs[0].failure == f"run: last.pt is corrupt; delete {run.path} to train it again"
    assert RunFolder(run.path).state is RunState.FAILED


# -- which devices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "arguments", "slots", "each"),
    [
        (0, {}, 1, []),
        (0, {"jobs": 3}, 3, []),
        (4, {}, 4, ["0", "1", "2", "3"]),
        (4, {"gpus_per_run": 0.5}, 8, ["0", "1", "2", "3", "0", "1", "2", "3"]),
        (4, {"processes": 2}, 2, ["0,1", "2,3"]),
        (4, {"gpus_per_run": 4}, 1, ["0,1,2,3"]),
        (1, {"jobs": 2}, 2, ["0", "0"]),
        (2, {"use_gpus": False}, 1, [None]),
    ],
)
def test_runs_are_spread_over_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, arguments: dict, slots: int, each: list
) -> None:
    environments = []

    class Process:
        def poll(self) -> None:
            return None

    monkeypatch.setattr(engines, "_gpus", lambda: [str(n) for n in range(gpus)])
    monkeypatch.setattr(
        engines, "start_process", lambda c, log, environment: environments.append(environment) or Process()
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    engine = LocalEngine(**arguments)
    assert engine.slots == slots
    for _ in each:
        engine.start(["true"], tmp_path / "log.txt")
    assert [environment.get("CUDA_VISIBLE_DEVICES") for environment in environments] == each


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert LocalEngine(use_gpus=False).threads == 8
    assert LocalEngine(jobs=2, use_gpus=False).threads == 4
    assert LocalEngine(jobs=2, processes=2, use_gpus=False).threads == 2
    assert LocalEngine(jobs=16, use_gpus=False).threads == 1
    assert LocalEngine(jobs=2, threads=3, use_gpus=False).threads == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert LocalEngine(jobs=2, use_gpus=False).threads == 5

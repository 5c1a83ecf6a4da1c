"""The loop that trains what is missing of a plan. Several processes may carry out one plan at the same time."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hkd.errors import RequestError, Stopped
from hkd.files import appending
from hkd.outside import open_regular, printable
from hkd.runtime.run_folder import RunState
from hkd.runtime.stopping import StopSignal
from hkd.studies.claims import Claim, claim
from hkd.studies.engines import PATIENCE_SECONDS, Engine, Handle
from hkd.studies.plan import Plan
from hkd.studies.planned_run import Identity, PlannedRun

POLL_SECONDS = 0.2
SCAN_SECONDS = 2.0
"""Between looks at the runs that other processes are training."""
RETRIES = 2
"""How often a run whose process was lost is started again."""
LONGEST_OUTPUT = 100_000
"""Bytes of a run's output that are looked at, its last."""


def ignore(*_: object) -> None:
    """A callback for whoever needs none."""


@dataclass(frozen=True)
class ActiveRun:
    """A run that this process has started.

    Attributes:
        claim: keeps other processes from starting it, too.
        log_start: where in ``log.txt`` the output of this start begins.
    """

    run: PlannedRun
    handle: Handle
    claim: Claim
    log_start: int


class Execution:
    """Trains what is missing of a plan.

    A run that another process is training is waited for. A run whose process is lost is started again, twice. One that
    ends without a result has ``failed.json`` in its folder, and does not stop the others.

    Args:
        plan: what to train.
        engine: where.
        on_end: called with each run that has come to an end since the start.
        refresh: called at the start, once runs are under way, and after each change.
        watch: called with each run under way and its process, now and then.
        propose: asked for another run while the engine has room for it; None is none for now.
        retry_failed: whether runs that failed in an earlier start are tried again.
    """

    def __init__(
        self,
        plan: Plan,
        engine: Engine,
        *,
        on_end: Callable[[PlannedRun], None] = ignore,
        refresh: Callable[[], None] = ignore,
        watch: Callable[[PlannedRun, Handle], None] = ignore,
        propose: Callable[[], PlannedRun | None] = lambda: None,
        retry_failed: bool = False,
    ) -> None:
        self.plan, self.engine, self.retry_failed = plan, engine, retry_failed
        self.on_end, self.refresh, self.watch, self.propose = on_end, refresh, watch, propose
        self._active: dict[Identity, ActiveRun] = {}
        self._lost: Counter[Identity] = Counter()
        self._next_scan = 0.0
        for run in plan.runs:
            self._forget_failure(run)
        self._waiting = {run.identity: run for run in plan.runs if not run.has_ended}

    def run(self) -> None:
        """Returns when every run has a result or has failed.

        Raises:
            Stopped: a signal asked to stop; the runs of this process have ended and saved where they were.
        """
        with StopSignal() as stop:
            try:
                changed = True
                while True:
                    if stop.signal is not None:
                        words = f"stopped with {self._to_go()} to go; the same command continues"
                        raise Stopped(words, 128 + stop.signal)
                    ended = self._collect()
                    if ended or time.monotonic() >= self._next_scan:
                        changed |= self._scan()
                        self._next_scan = time.monotonic() + SCAN_SECONDS
                    if changed:
                        self.refresh()
                        changed = False
                    if not self._waiting and not self._active:
                        return
                    time.sleep(POLL_SECONDS)
            finally:
                self._stop_all()

    def _to_go(self) -> str:
        count = len(self._waiting)
        return f"{count} run{'s' if count != 1 else ''}"

    # -- one turn of the loop -----------------------------------------------------------------------------------------

    def _collect(self) -> bool:
        """Whether processes of this study have ended; says what that means for their runs."""
        ended = False
        for identity, active in list(self._active.items()):
            self.watch(active.run, active.handle)
            if (status := active.handle.poll()) is not None:
                self._settle(active, status)
                active.claim.release()
                del self._active[identity]
                ended = True
        return ended

    def _scan(self) -> bool:
        """Whether runs have ended; starts others in their place."""
        changed = False
        for run in list(self._waiting.values()):
            if run.identity in self._active:
                continue
            if run.has_ended:
                self._end(run)
                changed = True
            elif len(self._active) < self.engine.slots:
                self._start(run)
        while len(self._waiting) < self.engine.slots and (proposed := self.propose()) is not None:
            changed = True
            if proposed.identity in self._waiting:
                continue
            self._forget_failure(proposed)
            self._waiting[proposed.identity] = proposed
            if proposed.has_ended:
                self._end(proposed)
            else:
                self._start(proposed)
        return changed

    def _end(self, run: PlannedRun) -> None:
        del self._waiting[run.identity]
        self.on_end(run)

    def _forget_failure(self, run: PlannedRun) -> None:
        if self.retry_failed and run.folder.state is RunState.FAILED:
            run.folder.forget_failure()

    # -- a run's process ----------------------------------------------------------------------------------------------

    def _start(self, run: PlannedRun) -> None:
        """Starts a run, unless its teacher is missing or another process is training it."""
        teacher_is_missing = run.teacher is not None and run.teacher.state is not RunState.FINISHED
        if teacher_is_missing or run.folder.is_locked:
            return
        taken = claim(self.plan.folder, *run.identity)
        if taken is None:
            return
        if run.has_ended:  # in the meantime
            taken.release()
            return
        command = self.plan.command(run)
        run.folder.path.mkdir(parents=True, exist_ok=True)
        with appending(run.folder.log_file) as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            position = log.tell()
        handle = self.engine.start(command, run.folder.log_file)
        self._active[run.identity] = ActiveRun(run, handle, taken, position)

    def _settle(self, active: ActiveRun, status: int) -> None:
        """What a process's end means for its run."""
        run, folder = active.run, active.run.folder
        if run.has_ended or folder.is_locked:  # by somebody who trains it without the study
            return
        output = _read_from(folder.log_file, active.log_start)
        if was_lost(status, output):
            self._lost[run.identity] += 1
            if self._lost[run.identity] <= RETRIES:
                print(f"{run.title}: its process was lost, it is started again", file=sys.stderr, flush=True)
                return
        message = _last_line(output)
        if message.startswith("run: another process is working in"):
            return
        if message.endswith("start over with --fresh"):
            message = message.removesuffix("start over with --fresh") + f"delete {folder.path} to train it again"
        folder.fail(RunState.FAILED, message, status)
        print(f"{run.title}: failed: {message}", file=sys.stderr, flush=True)

    def _stop_all(self) -> None:
        """Ends the processes of this study: first by asking, then by force."""
        for active in self._active.values():
            active.handle.stop()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._active and time.monotonic() < deadline:
            for identity, active in list(self._active.items()):
                if active.handle.poll() is not None:
                    active.claim.release()
                    del self._active[identity]
            time.sleep(POLL_SECONDS)
        for active in self._active.values():
            active.handle.kill()
            active.claim.release()


# -- what a run's output says -----------------------------------------------------------------------------------------


def was_lost(status: int, output: str) -> bool:
    """Whether a run's process was ended from outside, or died without a word: the machine's fault, not the run's.

    Args:
        status: its exit status.
        output: what it printed. torchrun's own status is 1 whatever ended its processes; its report says more.
    """
    killed_below_launcher = re.search(r"exitcode\s*: (-\d+|1[2-9]\d)", output) is not None
    return status < 0 or status > 128 or killed_below_launcher or (status != 0 and "\nhkd: " not in f"\n{output}")


def _read_from(log: Path, position: int) -> str:
    try:
        with open_regular(log, "run", follow=False) as file:
            file.seek(max(position, file.seek(0, os.SEEK_END) - LONGEST_OUTPUT))
            return file.read(LONGEST_OUTPUT).decode(errors="replace")
    except (OSError, RequestError):
        return ""


def _last_line(output: str) -> str:
    """The program's own last words, or else what was printed last."""
    lines = output.strip().splitlines()
    ours = [line for line in lines if line.startswith("hkd: ")]
    line = (ours or lines or ["it printed nothing"])[-1]
    return printable(line.removeprefix("hkd: ").removeprefix("failed: "), 500)

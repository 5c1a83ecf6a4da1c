"""Where a study's runs are trained: in processes of this machine, or on a Ray cluster; always by the same commands.

Several processes may carry out one plan: a run is taken by whoever locks its folder, and the others see it finished.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from hkd.errors import RequestError, Stopped
from hkd.runtime.parent import ENDS_WITH_PARENT
from hkd.runtime.run_folder import RunState
from hkd.studies.plan import Plan, PlannedRun, launched

POLL_SECONDS = 0.2
RETRIES = 2
"""How often a run whose process was lost is started again."""
PATIENCE_SECONDS = 60
"""How long processes that are asked to stop may take to save where they are."""


class Handle(ABC):
    """A run's process."""

    @abstractmethod
    def poll(self) -> int | None:
        """Its exit status, negative where it was lost; None while it runs."""

    @abstractmethod
    def stop(self) -> None:
        """Asks it to save and end."""

    @abstractmethod
    def kill(self) -> None: ...


class Engine(ABC):
    """Starts commands.

    Attributes:
        slots: how many runs may be under way at the same time.
    """

    slots: int

    @abstractmethod
    def start(self, command: Sequence[str], log: Path) -> Handle: ...

    def close(self) -> None:  # noqa: B027  (not every engine holds something)
        """Releases what it holds."""


class LocalHandle(Handle):
    def __init__(self, process: subprocess.Popen[bytes], release: Callable[[], None]) -> None:
        self.process = process
        self.release: Callable[[], None] | None = release

    def poll(self) -> int | None:
        status = self.process.poll()
        if status is not None and self.release is not None:
            self.release()
            self.release = None
            if self.process.stdin is not None:
                self.process.stdin.close()
        return status

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()


class LocalEngine(Engine):
    """Processes on this machine, spread over its GPUs and cores.

    Args:
        jobs: runs at the same time; None is one for each GPU, or one.
        threads: of each run on the CPU; None shares the cores out.
        gpus_per_run: a fraction lets runs share a GPU; None is one, where there are any.
        use_gpus: whether runs are meant for GPUs at all.
    """

    def __init__(
        self,
        jobs: int | None = None,
        threads: int | None = None,
        gpus_per_run: float | None = None,
        use_gpus: bool = True,
    ) -> None:
        gpus = torch.cuda.device_count() if use_gpus else 0
        each = gpus_per_run or 1.0
        self._gpus = list(range(gpus))
        self._per_gpu = max(1, int(1 / each)) if each <= 1 else 1
        self._gpus_each = max(1, int(each))
        self.slots = jobs or max(1, int(gpus / each))
        self.threads = threads or max(1, (os.cpu_count() or 1) // self.slots)
        self._load: Counter[int] = Counter()

    def start(self, command: Sequence[str], log: Path) -> LocalHandle:
        chosen = sorted(self._gpus, key=lambda gpu: self._load[gpu])[: self._gpus_each]
        self._load.update(chosen)
        environment = child_environment(self.threads)
        if chosen:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, _visible(chosen)))
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        return LocalHandle(process, lambda: self._load.subtract(chosen))


def _visible(chosen: list[int]) -> list[str]:
    """The devices by the names that this process itself was given them under."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(n) for n in range(torch.cuda.device_count())]
    return [names[n] for n in chosen]


def child_environment(threads: int) -> dict[str, str]:
    """Of a run's process: the same code, so many threads, and an end together with its parent."""
    environment = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    }
    paths = [str(Path(__file__).parents[2]), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    return environment | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        ENDS_WITH_PARENT: "1",
    }


class RayHandle(Handle):
    def __init__(self, ray: Any, reference: Any) -> None:
        self.ray, self.reference = ray, reference
        self.cancelled = False

    def poll(self) -> int | None:
        done, _ = self.ray.wait([self.reference], timeout=0)
        if not done:
            return None
        try:
            return int(self.ray.get(self.reference))
        except self.ray.exceptions.RayError:
            return -1  # its worker or machine was lost, more often than Ray retries

    def stop(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            self.ray.cancel(self.reference)

    def kill(self) -> None:
        self.ray.cancel(self.reference, force=True)


class RayEngine(Engine):
    """A Ray cluster: the one at ``RAY_ADDRESS``, or one that is started on this machine. Ray decides what runs where.

    Args:
        jobs: runs at the same time; None lets Ray fill what it has.
        threads: CPU cores of each run; None is one.
        gpus_per_run: GPUs of each; None is one where the cluster has any.
        folder: of the study, for the temporary files of a cluster that is started.
    """

    def __init__(self, jobs: int | None, threads: int | None, gpus_per_run: float | None, folder: Path) -> None:
        try:
            import ray
            import ray.exceptions
        except ImportError as error:
            raise RequestError("engine: ray is not installed; pip install 'hkd[ray]'") from error
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        self.ray = ray
        self._started = not ray.is_initialized()
        self.threads = threads or 1
        if self._started:
            address = os.environ.get("RAY_ADDRESS")
            local: dict[str, Any] = {} if address else {
                "num_cpus": (jobs or 0) * self.threads or os.cpu_count(), "include_dashboard": False,
                "_temp_dir": _short(folder / "ray"),
            }  # fmt: skip
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
        gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
        self.gpus = gpus_per_run if gpus_per_run is not None else (1.0 if gpus else 0.0)
        self.slots = jobs or 4096
        self._run = ray.remote(max_retries=RETRIES, num_cpus=self.threads, num_gpus=self.gpus)(run_command)

    def start(self, command: Sequence[str], log: Path) -> RayHandle:
        environment = {name: value for name, value in child_environment(self.threads).items() if _travels(name)}
        return RayHandle(self.ray, self._run.remote(list(command), str(log), environment))

    def close(self) -> None:
        if self._started:
            self.ray.shutdown()


def _short(folder: Path) -> str:
    """Ray puts sockets below its folder, whose paths the system limits to 107 characters."""
    if len(str(folder)) <= 40:
        return str(folder)
    import tempfile

    return tempfile.mkdtemp(prefix="hkd-ray-")


def _travels(name: str) -> bool:
    """Whether a variable of this machine means the same on another."""
    return name in ("PYTHONPATH", "OMP_NUM_THREADS", "PYTHONUNBUFFERED", ENDS_WITH_PARENT) or name.startswith("HKD_")


def run_command(command: list[str], log: str, environment: dict[str, str]) -> int:
    """On a machine of the cluster: the command's exit status. Its process ends with the worker."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=os.environ | environment
        )
    try:
        return process.wait()
    except BaseException:  # cancelled
        process.terminate()
        process.wait(PATIENCE_SECONDS)
        raise


# -- the loop ---------------------------------------------------------------------------------------------------------


class _Stop:
    """While it is entered, a signal to stop is noted instead of ending the program."""

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        main = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
        before = {number: signal.signal(number, self._note) for number in self.SIGNALS} if main else {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number


def carry_out(  # noqa: PLR0912  (one loop, read from top to bottom)
    plan: Plan,
    engine: Engine,
    on_change: Callable[[PlannedRun], None],
    *,
    retry_failed: bool = False,
    watch: Callable[[PlannedRun, Handle], None] | None = None,
) -> None:
    """Trains what is missing of a plan, and returns when every run has a result or has failed.

    A run that another process is training is waited for. A run whose process is lost is started again, twice.

    Args:
        plan: what to train.
        engine: where.
        on_change: called with each run that has come to an end.
        retry_failed: whether runs that failed in an earlier start are tried again.
        watch: called with each run under way, now and then.

    Raises:
        Stopped: a signal asked to stop; all processes of this call have ended and saved where they were.
    """
    if retry_failed:
        for run in plan.runs:
            if run.folder.failure is not None:
                run.folder.forget_failure()
    stop, lost = _Stop(), Counter[tuple[str, int]]()
    handles: dict[tuple[str, int], tuple[PlannedRun, Handle]] = {}
    open_runs = {run.identity: run for run in plan.runs if not _has_ended(run)}
    with stop.watching():
        try:
            while open_runs:
                if stop.signal is not None:
                    raise Stopped(
                        f"stopped; {len(open_runs)} runs to go; the same command continues", 128 + stop.signal
                    )
                for identity, (run, handle) in list(handles.items()):
                    if watch is not None:
                        watch(run, handle)
                    if (status := handle.poll()) is not None:
                        del handles[identity]
                        _settle(run, status, lost)
                for identity, run in list(open_runs.items()):
                    if identity not in handles and _has_ended(run):
                        del open_runs[identity]
                        on_change(run)
                for identity, run in open_runs.items():
                    if len(handles) < engine.slots and identity not in handles and _is_ready(run):
                        handles[identity] = (
                            run,
                            engine.start(launched(run.command, plan.processes), run.folder.log_file),
                        )
                time.sleep(POLL_SECONDS)
        finally:
            _end([handle for _, handle in handles.values()])


def _has_ended(run: PlannedRun) -> bool:
    """Whether a run has a result, or will not get one."""
    if run.folder.state in (RunState.FINISHED, RunState.FAILED, RunState.PRUNED):
        return True
    if run.needs is not None and run.needs.folder.state is RunState.FAILED:
        run.folder.fail(RunState.FAILED, f"its teacher failed: {run.needs.folder.path}", 1)
        return True
    return False


def _is_ready(run: PlannedRun) -> bool:
    """Whether a run can be started: its teacher is there, and nobody else is training it."""
    return (run.needs is None or run.needs.folder.state is RunState.FINISHED) and not run.folder.is_locked


def _settle(run: PlannedRun, status: int, lost: Counter[tuple[str, int]]) -> None:
    """What a process's end means for its run."""
    folder = run.folder
    if folder.state in (RunState.FINISHED, RunState.PRUNED) or folder.is_locked:  # or another process took it
        return
    if status < 0 or status > 128:  # a signal: the machine's fault or somebody's wish, not the run's
        lost[run.identity] += 1
        if lost[run.identity] <= RETRIES:
            print(f"{run.title}: its process was lost, it is started again", file=sys.stderr, flush=True)
            return
    folder.fail(RunState.FAILED, _last_line(folder.log_file), status)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_bytes()[-20_000:].decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    ours = [line for line in lines if line.startswith("hkd: ")]
    line = (ours or lines or ["it printed nothing"])[-1]
    return line.removeprefix("hkd: ").removeprefix("failed: ")[:500]


def _end(handles: list[Handle]) -> None:
    """Ends processes: first by asking, then by force."""
    for handle in handles:
        handle.stop()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and any(handle.poll() is None for handle in handles):
        time.sleep(POLL_SECONDS)
    for handle in handles:
        if handle.poll() is None:
            handle.kill()


def make_engine(config: Any, folder: Path) -> Engine:
    """The engine that a study's options ask for."""
    if config.engine == "ray":
        return RayEngine(config.jobs, config.threads, config.gpus_per_run, folder)
    return LocalEngine(config.jobs, config.threads, config.gpus_per_run, use_gpus=config.device in ("auto", "cuda"))

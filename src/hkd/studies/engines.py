"""Where a study's runs are trained: each is a process that runs its command, on this machine or on a Ray cluster."""

from __future__ import annotations

import os
import signal
import subprocess
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from hkd.config import StudyOptions
from hkd.files import appending
from hkd.runtime.parent import ENDS_WITH_PARENT

PATIENCE_SECONDS = 60
"""How long a process that is asked to stop may take to save where it is."""


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
    def start(self, command: Sequence[str], log: Path) -> Handle:
        """Starts a command whose output goes to the end of a file."""

    def close(self) -> None:  # noqa: B027  (not every engine holds something)
        """Releases what it holds."""


class LocalHandle(Handle):
    """A process of this machine. It stops when its standard input is closed, however this process ends."""

    def __init__(self, process: subprocess.Popen[bytes], release: Callable[[], None]) -> None:
        self._process = process
        self._release: Callable[[], None] | None = release

    def poll(self) -> int | None:
        status = self._process.poll()
        if status is not None and self._release is not None:
            self._release()
            self._release = None
            assert self._process.stdin is not None
            self._process.stdin.close()
        return status

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()


class LocalEngine(Engine):
    """Processes on this machine, spread over its GPUs and cores.

    Args:
        jobs: runs at the same time; None is as many as the GPUs take, or one.
        threads: of each process on the CPU; None is ``OMP_NUM_THREADS``, else the cores are shared out.
        gpus_per_run: a fraction lets runs share a GPU; None is one for each process of a run.
        processes: of each run.
        use_gpus: whether runs are meant for GPUs at all.
    """

    def __init__(
        self,
        jobs: int | None = None,
        threads: int | None = None,
        gpus_per_run: float | None = None,
        *,
        processes: int = 1,
        use_gpus: bool = True,
    ) -> None:
        self._gpus = _gpus() if use_gpus else []
        share = gpus_per_run or float(processes)
        self._gpus_each = max(1, int(share))
        self.slots = jobs or max(1, int(len(self._gpus) / share))
        self.threads = threads or _given_threads() or max(1, cores() // (self.slots * processes))
        self._load: Counter[str] = Counter()

    def start(self, command: Sequence[str], log: Path) -> LocalHandle:
        gpus = sorted(self._gpus, key=lambda gpu: self._load[gpu])[: self._gpus_each]
        self._load.update(gpus)
        environment = os.environ | child_environment(self.threads)
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        process = start_process(command, log, environment)
        return LocalHandle(process, lambda: self._load.subtract(gpus))


def start_process(command: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Starts a command in a session of its own: Ctrl-C reaches the study alone, which asks its runs to stop."""
    for launcher in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(launcher, None)
    with appending(log) as output:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment, start_new_session=True
        )


def child_environment(threads: int) -> dict[str, str]:
    """What a run's process has beside its machine's environment: this code, its threads, an end with its parent."""
    paths = [str(Path(__file__).parents[2]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        ENDS_WITH_PARENT: "1",
    }


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _given_threads() -> int | None:
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and value != "0" else None


def _gpus() -> list[str]:
    """The GPUs that this process may use, by their names in ``CUDA_VISIBLE_DEVICES``."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]


def make_engine(options: StudyOptions, folder: Path, device: str) -> Engine:
    """The engine that a study's options name.

    Args:
        folder: of the study.
        device: of its runs.
    """
    use_gpus = device in ("auto", "cuda")
    if options.engine == "ray":
        from hkd.studies.ray_engine import RayEngine

        return RayEngine(
            options.jobs, options.threads, options.gpus_per_run, folder,
            processes=options.processes_per_run, use_gpus=use_gpus,
        )  # fmt: skip
    return LocalEngine(
        options.jobs, options.threads, options.gpus_per_run, processes=options.processes_per_run, use_gpus=use_gpus
    )

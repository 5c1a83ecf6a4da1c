"""A study's runs on a Ray cluster. A worker imports this file, so it needs nothing heavy."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hkd.errors import RequestError
from hkd.studies.engines import PATIENCE_SECONDS, Engine, Handle, child_environment, cores, start_process

LONGEST_FOLDER = 40
"""Characters of Ray's folder: below it are sockets, whose paths the system limits to 107."""
LOST = -1


class RayHandle(Handle):
    """A task of the cluster."""

    def __init__(self, ray: Any, task: Any) -> None:
        self._ray, self._task = ray, task
        self._cancelled = False

    def poll(self) -> int | None:
        done, _ = self._ray.wait([self._task], timeout=0)
        if not done:
            return None
        try:
            return int(self._ray.get(self._task))
        except self._ray.exceptions.RayError:
            return LOST  # its worker, or the machine

    def stop(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self._ray.cancel(self._task)

    def kill(self) -> None:
        self._ray.cancel(self._task, force=True)


class RayEngine(Engine):
    """A Ray cluster: the one at ``RAY_ADDRESS``, or one that is started on this machine. Ray decides what runs where.

    Args:
        jobs: runs at the same time; None is as many as the cluster has room for.
        threads: CPU cores of each process; None is one.
        gpus_per_run: GPUs of each run; None is one for each process where the cluster has any.
        folder: of the study, for the temporary files of a cluster that is started.
        processes: of each run.
        use_gpus: whether runs are meant for GPUs at all.
    """

    def __init__(
        self,
        jobs: int | None,
        threads: int | None,
        gpus_per_run: float | None,
        folder: Path,
        *,
        processes: int = 1,
        use_gpus: bool = True,
    ) -> None:
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
            import ray.exceptions
        except ImportError as error:
            raise RequestError("engine: ray is not installed; pip install 'hkd[ray]'") from error
        self._ray: Any = ray
        self.threads = threads or 1
        cpus = self.threads * processes
        self._files: Path | None = None
        self._connected = not ray.is_initialized()
        if self._connected:
            self._connect(max((jobs or 0) * cpus, cpus, cores()), folder)
        resources = self._ray.cluster_resources()
        gpus = 0.0
        if use_gpus and resources.get("GPU", 0):
            gpus = gpus_per_run or float(processes)
        rooms = [resources.get("CPU", 0) / cpus] + ([resources["GPU"] / gpus] if gpus else [])
        self.slots = jobs or max(1, int(min(rooms)))
        # A lost run is started again by the study, once its former process has let go of the folder.
        self._run = self._ray.remote(max_retries=0, num_cpus=cpus, num_gpus=gpus)(run_command)

    def _connect(self, cpus: int, folder: Path) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if "RAY_ADDRESS" not in os.environ:
            folder.mkdir(parents=True, exist_ok=True)
            short = len(str(folder)) + 14 <= LONGEST_FOLDER
            self._files = Path(tempfile.mkdtemp(prefix="ray-", dir=folder if short else None))
            options |= {
                "address": "local", "num_cpus": cpus, "include_dashboard": False, "_temp_dir": str(self._files)
            }  # fmt: skip
        self._ray.init(**options)

    def start(self, command: Sequence[str], log: Path) -> RayHandle:
        task = self._run.remote(list(command), str(log), child_environment(self.threads), os.getcwd())
        return RayHandle(self._ray, task)

    def close(self) -> None:
        if self._connected:
            self._ray.shutdown()
        if self._files is not None:
            shutil.rmtree(self._files, ignore_errors=True)


def run_command(command: list[str], log: str, environment: dict[str, str], folder: str) -> int:
    """On a machine of the cluster: the command's exit status. Its process ends with the worker.

    Args:
        command: the words.
        log: where its output goes.
        environment: what it has beside the machine's.
        folder: where it is started, if that is on this machine.
    """
    if os.path.isdir(folder):
        os.chdir(folder)
    process = start_process(command, Path(log), os.environ | environment)
    try:
        return process.wait()
    except BaseException:  # cancelled
        process.terminate()
        process.wait(PATIENCE_SECONDS)
        raise

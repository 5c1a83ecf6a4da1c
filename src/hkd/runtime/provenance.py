"""Where a run's numbers come from: the command, the code, the versions and the machine of each start."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hkd.outside import printable

GIT_SECONDS = 5.0
"""The longest that a start waits for git."""
LONGEST_COMMAND = 4096
GIT = (
    "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", "--no-optional-locks", "status",
    "--porcelain=v2", "--branch", "--untracked-files=no", "--ignore-submodules=dirty",
)  # fmt: skip
"""One look at commit and changes. It writes nothing, not even the index, and runs no hook and no watcher."""
OTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
"""Of the environment: what would make git look elsewhere than in the working directory."""


def new_entry(device: torch.device, machine: str, data: str, teacher: str | None) -> dict[str, Any]:
    """What is known when a run starts or continues; ``ended`` is None until it does.

    Args:
        device: of the run.
        machine: what computes, in words.
        data: digest of the images.
        teacher: digest of the teacher's weights; None without one.
    """
    commit, clean = git_state()
    return {
        "command": printable(shlex.join(sys.orig_argv), LONGEST_COMMAND),
        "commit": commit,
        "clean": clean,
        "versions": versions(),
        "hardware": printable(machine if device.type == "cuda" else f"{cpu_model()}, {machine}"),
        "data": data,
        "teacher": teacher,
        "started": now(),
        "ended": None,
    }


def now() -> str:
    """The time in UTC to the second, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Of what computes; without what is not installed."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("torchvision", "timm"):  # without importing them
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    if (cudnn := torch.backends.cudnn.version()) is not None:  # type: ignore[no-untyped-call]
        found["cudnn"] = str(cudnn)
    return found


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state() -> tuple[str | None, bool | None]:
    """The commit of the working directory, and whether its tracked files are as committed.

    None outside a repository, before the first commit, without git, and where git does not answer in time. Files that
    are not tracked do not count: the runs themselves may lie there.
    """
    git = shutil.which("git")
    if git is None:
        return None, None
    environment = {name: value for name, value in os.environ.items() if name not in OTHER_REPOSITORY}
    with tempfile.TemporaryFile() as output:  # a pipe would be waited for until all that git started has closed it
        try:
            done = subprocess.run(
                [git, *GIT], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL, env=environment,
                timeout=GIT_SECONDS, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None, None
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines() if done.returncode == 0 else []
    heads = [line.rpartition(" ")[2] for line in lines if line.startswith("# branch.oid ")]
    if not heads or not heads[0].isalnum():  # "(initial)" before the first commit
        return None, None
    return heads[0], all(line.startswith("#") for line in lines)

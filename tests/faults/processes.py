"""Commands that tests kill, and what is left of them. Linux alone: processes are found in /proc."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "OMP_NUM_THREADS": "1"}


def started(argv: list[str], output: Path) -> subprocess.Popen[bytes]:
    """``hkd`` with some arguments, what it prints at the end of a file."""
    with output.open("ab") as file:
        return subprocess.Popen([sys.executable, "-m", "hkd", *argv], stdout=file, stderr=file, env=ENVIRONMENT)


def naming(place: Path) -> set[int]:
    """The processes whose command line has a path: a command, the runs that it starts, the workers of these."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            if os.fsencode(place) in file.read_bytes():
                found.add(int(file.parent.name))
    return found


def kill(*processes: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            os.kill(process, signal.SIGKILL)


def remaining(place: Path, seconds: float = 15.0) -> set[int]:
    """The processes that still name a path after some time."""
    until = time.monotonic() + seconds
    while (left := naming(place)) and time.monotonic() < until:
        time.sleep(0.05)
    return left

"""Who trains a run: of several processes that carry out one study, each run is taken by one before it is started."""

from __future__ import annotations

import contextlib
from pathlib import Path

from filelock import FileLock, Timeout

from hkd.files import inside

CLAIMS = ".claims"


class Claim:
    """A lock in the study's folder, held from before a run's process starts until it has ended.

    The run's process locks the run folder itself only once it has imported everything, seconds later.
    """

    def __init__(self, lock: FileLock) -> None:
        self._lock = lock

    def release(self) -> None:
        with contextlib.suppress(OSError):  # before it is released: whoever waits for this file makes a new one
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()


def claim(folder: Path, key: str, seed: int) -> Claim | None:
    """Takes a run of the study in a folder; None where another process has it."""
    inside(folder, CLAIMS).mkdir(parents=True, exist_ok=True)
    lock = FileLock(inside(folder, CLAIMS, f"{key}-{seed}"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return None
    return Claim(lock)


def any_claimed(folder: Path) -> bool:
    """Whether a process is training a run of the study in a folder."""
    for file in inside(folder, CLAIMS).glob("*"):
        lock = FileLock(inside(file.parent, file.name), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return True
        lock.release()
    return False

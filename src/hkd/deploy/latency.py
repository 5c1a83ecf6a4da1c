"""How long an exported file takes."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkd.data.images import images_at_once

BATCHES = (1, 32)
"""Images a call."""
SECONDS = 1.0
"""After which no more calls are made for a batch size."""
FEWEST, MOST = 5, 100
"""Calls that are timed, after two that are not."""


@dataclass(frozen=True)
class Latency:
    """Of a file on this machine, by images a call.

    Attributes:
        median, p95: in milliseconds.
    """

    median: dict[int, float]
    p95: dict[int, float]

    def describe(self) -> str:
        """In words, without the machine."""
        parts = (
            f"{self.median[n]:.2f} ms (95 %: {self.p95[n]:.2f}) for {n} image{'s' if n > 1 else ''}"
            for n in self.median
        )
        return ", ".join(parts)


def measure(run: Callable[[NDArray[np.uint8]], Any], size: int, seconds: float = SECONDS) -> Latency:
    """Times calls of :data:`BATCHES` images of ``size`` x ``size`` pixels, without those of too large batches."""
    median, p95 = {}, {}
    for batch in (some for some in BATCHES if some <= images_at_once(size)):
        images = np.random.default_rng(0).integers(0, 256, (batch, 3, size, size), dtype=np.uint8)
        for _ in range(2):
            run(images)
        times: list[float] = []
        while len(times) < FEWEST or (len(times) < MOST and sum(times) < 1000 * seconds):
            start = time.perf_counter()
            run(images)
            times.append(1000 * (time.perf_counter() - start))
        median[batch], p95[batch] = float(np.median(times)), float(np.percentile(times, 95))
    return Latency(median, p95)


def conditions(threads: int) -> str:
    """How latencies were measured, for the end of a sentence."""
    return f"{threads} thread{'s' if threads > 1 else ''} of {processor()}"


def processor() -> str:
    """The CPU of this machine, in its maker's words where they can be read."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

"""What the benchmarks share: clocks, turns, files."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

K = TypeVar("K", bound=Hashable)


def seconds(step: Callable[[], Any], count: int = 1, device: torch.device | None = None) -> float:
    """What a call takes, the mean of several."""
    started = time.perf_counter()
    for _ in range(count):
        step()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / count


def in_turns(steps: Mapping[K, Callable[[], Any]], rounds: int, warm: int = 2, count: int = 1) -> dict[K, list[float]]:
    """Seconds of each step in each round; within a round all have their turn, so that a busy machine slows all."""
    for step in steps.values():
        for _ in range(warm):
            step()
    times: dict[K, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, count))
    return times


def machine(threads: int) -> str:
    return f"{threads} threads, torch {torch.__version__}, {platform.processor() or platform.machine()}"


def write(file: str | None, numbers: dict[str, Any]) -> None:
    """Writes the numbers as JSON, where a file was asked for."""
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps(numbers, indent=2) + "\n")

"""What the benchmarks share: clocks, turns, files."""

from __future__ import annotations

import argparse
import json
import platform
import random
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


def in_turns(
    steps: Mapping[K, Callable[[], Any]], rounds: int, count: int = 1, device: torch.device | None = None
) -> dict[K, list[float]]:
    """Seconds of each step in each round; within a round all have their turn, in changing order, so that a busy machine
    slows all alike."""
    for step in steps.values():
        seconds(step, 2, device)
    times: dict[K, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name in random.sample(list(steps), len(steps)):
            times[name].append(seconds(steps[name], count, device))
    return times


def network_options(parser: argparse.ArgumentParser, rounds: int) -> None:
    """The options of what measures steps of two networks."""
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--json", help="write the numbers to this file")


def machine(threads: int) -> str:
    return f"{threads} threads, torch {torch.__version__}, {platform.processor() or platform.machine()}"


def write(file: str | None, numbers: dict[str, Any]) -> None:
    """Writes the numbers as JSON, where a file was asked for."""
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps(numbers, indent=2) + "\n")

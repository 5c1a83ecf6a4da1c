"""What a network costs to run."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from hkd.errors import RequestError
from hkd.models import create_model

REPETITIONS = 15


@dataclass(frozen=True)
class Cost:
    """Parameters, floating-point operations of one image, and its latency in milliseconds on this machine's CPU."""

    parameters: int
    flops: int
    latency_ms: float


@lru_cache(maxsize=64)
def cost_of(name: str, classes: int, size: int) -> Cost | None:
    """Measures a network by its name; None for one that this package cannot build."""
    try:
        model = create_model(name, classes).eval()
    except RequestError:
        return None
    image = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            model(image)
        seconds = []
        for _ in range(REPETITIONS):
            started = time.perf_counter()
            model(image)
            seconds.append(time.perf_counter() - started)
    parameters = sum(p.numel() for p in model.parameters())
    return Cost(parameters, counter.get_total_flops(), 1e3 * statistics.median(seconds))

"""The cost of running a network."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from hkd.errors import RequestError
from hkd.models import create_model
from hkd.models.names import names_code

REPETITIONS = 15


@dataclass(frozen=True)
class Cost:
    """Parameters, floating-point operations of one image, and its latency in milliseconds on this machine's CPU."""

    parameters: int
    flops: int
    latency_ms: float


@lru_cache(maxsize=64)
def cost_of(name: str, classes: int, size: int) -> Cost | None:
    """Measures a network by its name; None for one that cannot be built.

    The name comes from a file, so a factory (``module:callable``), whose module would be imported, is not built, and
    no name of a hub, from which something would be downloaded.
    """
    if names_code(name):
        return None
    try:
        model = create_model(name, classes, image_size=size).eval()
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
    return Cost(model.info_at(size).parameters, counter.get_total_flops(), 1e3 * statistics.median(seconds))

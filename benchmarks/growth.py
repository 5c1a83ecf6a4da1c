"""How HolisticLoss grows: with the batch B, the negatives K, the images N, the width d, and the type of the banks.

    python -m benchmarks growth [--rounds 15] [--plot FILE] [--json FILE]

One of them varies at a time from B=64, K=16384, N=50,000, d=128, shared sampling. The last line is
ImageNet's N = 1,281,167 with bfloat16 banks beside N = 50,000 with the same.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.common import in_turns, machine, write
from hkd.holistic import HolisticLoss

START = {"B": 64, "K": 16384, "N": 50_000, "d": 128}
VALUES = {
    "B": (16, 64, 256, 512),
    "K": (1024, 4096, 16384, 32768),
    "N": (50_000, 200_000, 600_000),
    "d": (32, 64, 128, 256),
}
IMAGENET = 1_281_167
CLASSES, FEATURES = 100, 256


def setting(bank_dtype: str = "float32", **size: int) -> tuple[Callable[[], None], int]:
    """A step, and the bytes of its banks."""
    torch.manual_seed(0)
    batch, negatives, samples, dim = (size[name] for name in START)
    labels = torch.randint(0, CLASSES, (samples,))
    loss = HolisticLoss(
        FEATURES, FEATURES, samples, labels, num_negatives=negatives, embedding_dim=dim, bank_dtype=bank_dtype
    )  # fmt: skip
    f_s = torch.randn(batch, FEATURES, requires_grad=True)
    f_t, l_s, l_t = torch.randn(batch, FEATURES), torch.randn(batch, CLASSES), torch.randn(batch, CLASSES)

    def step() -> None:
        loss(f_s, l_s, f_t, l_t, torch.randint(0, samples, (batch,))).backward()
        loss.zero_grad()

    return step, loss.student.bank.rows.nbytes + loss.teacher.bank.rows.nbytes


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--plot", help="draw the points into this file")
    parser.add_argument("--json", help="write the numbers to this file")
    asked = parser.parse_args(argv)
    torch.set_num_threads(asked.threads)

    points = [(name, value) for name, values in VALUES.items() for value in values]
    median: dict[Any, float] = {}
    print(f"HolisticLoss shared; {', '.join(f'{n}={v:,}' for n, v in START.items())}; {machine(asked.threads)}\n")
    print(f"{'varied':<8} {'value':>10} {'ms':>8} {'to the first':>13} {'value to it':>12}")
    for name, values in VALUES.items():
        steps = {(name, value): setting(**START | {name: value})[0] for value in values}
        times = in_turns(steps, asked.rounds)
        median |= {point: statistics.median(taken) for point, taken in times.items()}
        for value in values:
            ratio = statistics.median(a / b for a, b in zip(times[name, value], times[name, values[0]], strict=True))
            print(
                f"{name:<8} {value:>10,} {1e3 * median[name, value]:>8.1f} {ratio:>12.2f}x {value / values[0]:>11.1f}x"
            )

    small, small_bytes = setting(**START, bank_dtype="bfloat16")
    large, large_bytes = setting(**START | {"N": IMAGENET}, bank_dtype="bfloat16")
    times = in_turns({"small": small, "large": large}, 2 * asked.rounds)
    ratio = statistics.median(a / b for a, b in zip(times["large"], times["small"], strict=True))
    print(f"\nbfloat16 banks: N=50,000 {1e3 * statistics.median(times['small']):.1f} ms, {small_bytes / 1e6:,.0f} MB; "
          f"N={IMAGENET:,} {1e3 * statistics.median(times['large']):.1f} ms, {large_bytes / 1e6:,.0f} MB; "
          f"ratio {ratio:.3f}")  # fmt: skip
    numbers = [{"varied": name, "value": value, "seconds": median[name, value]} for name, value in points]
    write(asked.json, {"start": START, "points": numbers, "bfloat16": times, "bytes": [small_bytes, large_bytes]})
    if asked.plot:
        draw(median, asked.plot)


def draw(median: dict[Any, float], file: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.9), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(VALUES)), VALUES.items(), strict=True):
        axes.plot(values, [1e3 * median[name, value] for value in values], marker="o", color="#3b82c4")
        axes.set(xlabel=name, ylim=(0, None), xlim=(0, None))
        axes.grid(color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("ms a step of the loss")
    figure.savefig(file, dpi=140)

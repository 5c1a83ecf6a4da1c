"""What rounding changes in what is learnt: the table's float16, and bfloat16 factors in the loss.

    python -m benchmarks rounding [--dataset folder:cifar100.zip] [--classes 20] [--epochs 5] [--seeds 3] [--json FILE]

One pair of networks learns by HKD+KD from the same seeds in each way, and the table gives the test accuracies of the
last epoch and the mean difference to the exact way, with its standard error over seeds:

table, float32 and float16
    beside the teacher itself, in float32;
bfloat16 factors
    of the products with the memory banks beside float32 factors, where the networks compute in bfloat16.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import benchmarks.noise  # noqa: F401  (registers the data set)
import hkd
import hkd.holistic.loss
from benchmarks.common import machine, write
from hkd.config import DistillConfig, TrainConfig

EXACT = mock.patch.object(hkd.holistic.loss, "product_dtype", return_value=torch.float32)
"""The loss as it is without autocast."""


def accuracies(asked: Any, folder: Path, name: str, context: Any = None, **changes: Any) -> list[float]:
    """Top-1 in percent of the last epoch, for each seed."""
    top1 = []
    for seed in range(asked.seeds):
        config = DistillConfig(
            dataset=asked.dataset, limit_classes=asked.classes, teacher=asked.teacher, student=asked.student,
            teacher_checkpoint=str(folder / "teacher"), method="hkd+kd", epochs=asked.epochs, seed=seed,
            run=str(folder / f"{name}-{seed}"), tensorboard=False, **changes,
        )  # fmt: skip
        with contextlib.redirect_stderr(io.StringIO()), context or contextlib.nullcontext():
            top1.append(hkd.distill(config).summary["top1_last"])
    return top1


def show(title: str, exact: list[float], others: dict[str, list[float]]) -> None:
    print(f"{title:<34} {' '.join(f'{value:6.2f}' for value in exact)}")
    for name, values in others.items():
        gains = [own - base for own, base in zip(values, exact, strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5
        shown = " ".join(f"{value:6.2f}" for value in values)
        print(f"{name:<34} {shown}   {statistics.fmean(gains):+.2f} ± {error:.2f}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write the numbers to this file")
    asked = parser.parse_args(argv)
    torch.set_num_threads(asked.threads)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        teacher = TrainConfig(
            dataset=asked.dataset, limit_classes=asked.classes, role="teacher", teacher=asked.teacher,
            epochs=asked.epochs, run=str(folder / "teacher"), tensorboard=False,
        )  # fmt: skip
        with contextlib.redirect_stderr(io.StringIO()):
            hkd.train(teacher)
        top1 = {
            "the teacher itself": accuracies(asked, folder, "live"),
            "a table of float32": accuracies(
                asked, folder, "float32", teacher_cache="auto", teacher_cache_dtype="float32"
            ),
            "a table of float16": accuracies(asked, folder, "float16", teacher_cache="auto"),
            "bf16, float32 factors in the loss": accuracies(asked, folder, "exact", EXACT, precision="bf16"),
            "bf16, bfloat16 factors in the loss": accuracies(asked, folder, "rounded", precision="bf16"),
        }

    print(f"{asked.teacher} -> {asked.student} by hkd+kd, {asked.dataset}, {asked.epochs} epochs, "
          f"{machine(asked.threads)}\n")  # fmt: skip
    print("top-1 of the last epoch, seeds 0, 1, ...; mean difference to the exact way ± its standard error\n")
    names = list(top1)
    show(names[0], top1[names[0]], {name: top1[name] for name in names[1:3]})
    print()
    show(names[3], top1[names[3]], {names[4]: top1[names[4]]})
    write(asked.json, {"settings": vars(asked), "top1": top1})

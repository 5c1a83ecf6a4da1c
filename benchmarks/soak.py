"""Many short epochs, as days of training have: memory, open files and the checkpoints' folder must not grow.

    python -m benchmarks soak [--epochs 3000] [--json FILE]

HKD+KD on digits, four steps an epoch, each with its evaluation, its checkpoint and its logs. Linux only: the numbers
come from /proc.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hkd
from benchmarks.common import write
from hkd import trainer


def now(run: Path, started: float, epoch: int) -> dict[str, Any]:
    kept = [file for file in (run / "checkpoints").iterdir() if file.is_file()]
    return {
        "epoch": epoch,
        "seconds": time.perf_counter() - started,
        "memory_mb": int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6,
        "open_files": len(os.listdir("/proc/self/fd")),
        "checkpoint_files": len(kept),
        "checkpoints_mb": sum(file.stat().st_size for file in kept) / 1e6,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3000)
    parser.add_argument("--json", help="write the numbers to this file")
    asked = parser.parse_args(argv)
    seen: list[dict[str, Any]] = []
    every = max(1, asked.epochs // 10)
    with tempfile.TemporaryDirectory() as folder:
        run, started = Path(folder) / "run", time.perf_counter()

        def epoch(self: Any, row: dict[str, Any], *_: Any) -> None:
            if row["epoch"] % every == 0 and self.title.startswith("run "):
                seen.append(now(run, started, row["epoch"]))

        trainer.Progress.epoch = epoch  # type: ignore[method-assign]
        hkd.save_model(hkd.create_model("resnet8", 10), Path(folder) / "teacher.safetensors")
        hkd.distill(
            hkd.DistillConfig(
                run=str(run), student="resnet8", teacher_checkpoint=f"{folder}/teacher.safetensors", limit_train=25,
                epochs=asked.epochs, device="cpu",
            )
        )  # fmt: skip
    print(f"{'epochs':>7} {'minutes':>8} {'memory MB':>10} {'open files':>11} {'checkpoint files':>17} {'their MB':>9}")
    for found in seen:
        files = f"{found['open_files']:>11} {found['checkpoint_files']:>17} {found['checkpoints_mb']:>9.2f}"
        print(f"{found['epoch']:>7,} {found['seconds'] / 60:>8.1f} {found['memory_mb']:>10.1f} {files}")
    write(asked.json, {"epochs": asked.epochs, "seen": seen})

"""What the teacher's table saves in a whole comparison: ``--teacher-cache auto`` beside ``off``.

    python -m benchmarks comparison [--dataset folder:cifar100.zip] [--teacher resnet56] [--student resnet8]
                                     [--precision fp32] [--json FILE]

Eight methods of logits and embeddings, two trials of three epochs, 20 classes; the teacher is trained beforehand and
given to both. Each comparison is the command that a person types, in a folder of its own, from its start to its end:
plans, imports, evaluations and the filling of the table are part of the time. Memory is the largest of any process so
far, mapped pages of the table included; the table's megabytes are those on disk. The data set is a folder or archive of
class folders; without one, noise of the same size.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import machine, write

METHODS = ("kd", "dkd", "dist", "rkd+kd", "pkt+kd", "sp+kd", "crd+kd", "hkd+kd")
"""All of which need logits and embeddings only."""
NOISE = "noise100"


def hkd_command(command: str, options: dict[str, Any]) -> float:
    """Seconds that a command takes, with two threads."""
    words = [sys.executable, "-m", "hkd", command]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    started = time.perf_counter()
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default=NOISE)
    parser.add_argument("--teacher", default="resnet56")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--json", help="write the numbers to this file")
    asked = parser.parse_args(argv)

    plugin = {"plugin": "benchmarks.noise"} if asked.dataset == NOISE else {}
    common = {"dataset": asked.dataset, "limit-classes": asked.classes, "precision": asked.precision, **plugin}
    taken, top1, memory = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        teacher = f"{folder}/teacher"
        hkd_command("train", {"teacher": asked.teacher, "role": "teacher", "epochs": 1, "run": teacher, **common})
        options = {"pairs": f"{asked.teacher}->{asked.student}", "teacher-checkpoints": f"{asked.teacher}={teacher}",
                   "methods": ",".join(asked.methods), "epochs": asked.epochs, "trials": asked.trials}  # fmt: skip
        for cache in ("off", "auto"):
            run = f"{folder}/{cache}"
            taken[cache] = hkd_command("compare", {**options, "teacher-cache": cache, "run": run, **common})
            memory[cache] = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            rows = json.loads(Path(run, "comparison.json").read_text())["pairs"][0]["methods"]
            top1[cache] = {row["method"]: row["top1_last"] for row in rows}
        size = sum(file.stat().st_blocks * 512 for file in Path(folder, "auto", "teacher-cache").rglob("*.bin"))

    runs = len(asked.methods) * asked.trials
    print(f"{runs} runs of {asked.epochs} epochs, {asked.teacher} -> {asked.student}, {asked.dataset}, "
          f"{asked.classes} classes, {asked.precision}, {machine(2)}\n")  # fmt: skip
    print(f"{'--teacher-cache':<18} {'seconds':>9} {'ratio':>7} {'peak memory MB':>16} {'table MB':>9}")
    for cache, seconds in taken.items():
        disk = size / 1e6 if cache == "auto" else 0
        print(f"{cache:<18} {seconds:>9.0f} {seconds / taken['off']:>6.2f}x {memory[cache] / 1e6:>16.0f} {disk:>9.0f}")
    numbers = {"seconds": taken, "bytes": size, "memory": memory, "top1": top1}
    write(asked.json, {"settings": vars(asked), **numbers})

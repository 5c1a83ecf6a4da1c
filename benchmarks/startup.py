"""How long it takes until something happens: help, import, the first step of a run.

    python -m benchmarks startup [--rounds 5] [--json FILE]

Each is a process of its own, from its start to its end; of the run, until the first epoch's line is there. That run is
`hkd train` on four images of each digit, so the epoch itself is a single step.

Of the paper's table 1 (`hkd compare --config cifar100-table1`, 720 runs of students) the plan is timed, over noise in
CIFAR-100's format and size: until it is printed in an empty folder, and where all runs are there but one.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import write

HKD = [sys.executable, "-m", "hkd"]
WHAT = {
    "python, nothing else": [sys.executable, "-c", ""],
    "import torch": [sys.executable, "-c", "import torch"],
    "import hkd": [sys.executable, "-c", "import hkd"],
    "hkd --help": [*HKD, "--help"],
    "hkd distill --help": [*HKD, "distill", "--help"],
    "hkd distill --method hkd --help": [*HKD, "distill", "--method", "hkd", "--help"],
}
RUN = [*HKD, "train", "--limit-train", "4", "--epochs", "1", "--no-tensorboard", "--device", "cpu", "--run"]


def until_the_first_epoch() -> float:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        process = subprocess.Popen(
            [*RUN, f"{folder}/run"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch" in line:
                break
        taken = time.perf_counter() - started
        process.communicate()
        return taken


def whole(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - started


def cifar100(root: Path) -> None:
    """Noise as CIFAR-100's official files have it."""
    random = np.random.default_rng(0)
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for split, count in (("train", 50_000), ("test", 10_000)):
        pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {"data": pixels, "fine_labels": (np.arange(count) % 100).tolist()}
        (folder / split).write_bytes(pickle.dumps(content))
    names = {"fine_label_names": [f"class {n:03d}" for n in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names))


def finish(plan: str) -> None:
    """Makes the runs of a printed plan finished, but for the last."""
    commands = [shlex.split(line) for line in plan.splitlines() if " -m hkd " in line]
    for command in commands[:-1]:
        spec = as_resolved(command[4:])
        folder = RunFolder(spec.run)
        folder.path.mkdir(parents=True)
        spec.save(folder.config)
        folder.save_predictions(torch.zeros(10_000, dtype=torch.int64), torch.arange(10_000) % 100)
        row = {"top1_last": 1.0, "top1_best": 1.0, "best_epoch": 1, "seconds": 60.0, "images_per_second": 9.0}
        folder.finish(row)


def plan_table1() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        cifar100(Path(folder) / "data")
        command = [
            *HKD,
            "compare",
            "--config",
            "cifar100-table1",
            "--data-root",
            f"{folder}/data",
            "--dry-run",
            "--run",
            f"{folder}/table1",
        ]
        whole(command)  # the operating system reads the files
        times = {"plan of table 1": whole(command)}
        return times


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the numbers to this file")
    asked = parser.parse_args(argv)
    times: dict[str, list[float]] = {name: [] for name in [*WHAT, "hkd train, first step"]}
    for _ in range(asked.rounds):
        for name, command in WHAT.items():
            times[name].append(whole(command))
        times["hkd train, first step"].append(until_the_first_epoch())
    print(f"{asked.rounds} rounds, Python {sys.version.split()[0]}\n\n{'what':<34} {'median s':>9}")
    for name, taken in times.items():
        print(f"{name:<34} {statistics.median(taken):>9.2f}")
    write(asked.json, {"seconds": times})

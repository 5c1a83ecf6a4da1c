"""How long it takes until something happens: help, import, the first step of a run.

    python -m benchmarks startup [--rounds 5] [--json FILE]

Each is a process of its own, from its start to its end; of the run, until the first epoch's line is there. That run is
`hkd train` on four images of each digit, so the epoch itself is a single step.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

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

"""One process and two: images a second of the loop, with one thread for each process.

    python -m benchmarks scaling [--processes 1,2] [--teacher resnet32x4] [--student resnet8x4] [--json FILE]

Every number of processes shares the same batches of 64; gloo carries gradients and embeddings on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from benchmarks.common import machine, network_options, seconds, write

LABELS = ("kd", "hkd+kd")


def measure(asked: SimpleNamespace, file: str) -> None:
    """What each of the processes does; the first writes seconds a step."""
    import torch

    from benchmarks.step import noise, stepper
    from hkd.runtime.engine import Engine

    torch.set_num_threads(1)
    engine, data = Engine(asked.device, asked.precision), noise()
    steps = {label: stepper(label, asked, engine, data) for label in LABELS}
    for step in steps.values():
        seconds(step, 2, engine.device)
    times: dict[str, list[float]] = {label: [] for label in LABELS}
    for _, label in itertools.product(range(asked.rounds), LABELS):
        engine.wait()
        times[label].append(seconds(steps[label], 1, engine.device))
    if engine.is_main:
        Path(file).write_text(json.dumps(times))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", default="1,2")
    network_options(parser, rounds=7)
    parser.add_argument(
        "--repeats", type=int, default=2, help="how often each number of processes is started, in turns"
    )
    asked = parser.parse_args(argv)
    counts = [int(n) for n in asked.processes.split(",")]
    times: dict[int, dict[str, list[float]]] = {n: {label: [] for label in LABELS} for n in counts}
    settings = json.dumps(vars(asked))
    for _, count in itertools.product(range(asked.repeats), counts):
        with tempfile.TemporaryDirectory() as folder:
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
            command = [*launch, "-m", "benchmarks.scaling", settings, f"{folder}/times"]
            subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            for label, taken in json.loads(Path(f"{folder}/times").read_text()).items():
                times[count][label] += taken

    where = f"{asked.device}, {asked.precision}, {machine(1)} for each process"
    print(f"{asked.teacher} -> {asked.student}, batch {asked.batch} of all processes together, {where}\n")
    print(f"{'method':<10} {'processes':>10} {'images/s':>10} {'times faster':>13}")
    for label in LABELS:
        base = statistics.median(times[counts[0]][label])
        for count in counts:
            median = statistics.median(times[count][label])
            print(f"{label:<10} {count:>10} {asked.batch / median:>10.1f} {base / median:>12.2f}x")
    write(asked.json, {"settings": vars(asked), "seconds": times})


if __name__ == "__main__":
    measure(SimpleNamespace(**json.loads(sys.argv[1])), sys.argv[2])

"""How long it takes until something happens: help, import, the first step of a run, the first run of a study.

    python -m benchmarks startup [--rounds 5] [--json FILE]

Each is a process of its own, from its start to its end; of the run, until the first epoch's line is there. That run is
`hkd train` on four images of each digit, so the epoch itself is a single step.

Of the paper's table 1 (`hkd compare --config cifar100-table1`) two things are timed, over noise of CIFAR-100's size:
its plan, until it is printed in an empty folder; and a restart where all runs are finished but the last, until that one
is started.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import benchmarks.noise  # noqa: F401  (registers the data set)
from benchmarks.common import write
from hkd.config import CompareConfig
from hkd.files import read_yaml
from hkd.recipes import find_recipe
from hkd.runtime.run_folder import RunFolder
from hkd.studies.compare import plan_comparison

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
TABLE1 = [*HKD, "compare", "--config", "cifar100-table1", "--plugin", "benchmarks.noise", "--dataset", "noise100"]
TABLE1 += ["--device", "cpu", "--run"]


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
    subprocess.run(command, capture_output=True, check=True, env=environment())
    return time.perf_counter() - started


def environment() -> dict[str, str]:
    """One in which the data set's module is found."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def finish_all_but_the_last(study: Path) -> tuple[int, RunFolder]:
    """Makes the folders of table 1 as finished runs leave them; returns how many there are, and the missing one."""
    recipe = {
        name: tuple(v) if isinstance(v, list) else v for name, v in read_yaml(find_recipe("cifar100-table1")).items()
    }
    config = CompareConfig(**recipe | {"dataset": "noise100", "device": "cpu", "run": str(study)})
    plan = plan_comparison(config, fresh=False).plan
    label = torch.arange(10_000) % 100
    for number, run in enumerate(plan.runs[:-1]):
        folder = run.folder
        folder.path.mkdir(parents=True)
        run.resolved.save(folder.config)
        folder.weights.write_bytes(b"")
        wrong = torch.rand(10_000, generator=torch.Generator().manual_seed(number)) < 0.3
        folder.save_predictions(torch.where(wrong, (label + 1) % 100, label), label)
        top1 = 100 * (1 - wrong.float().mean().item())
        numbers = {"top1_last": top1, "top1_best": top1, "best_epoch": 240, "teacher_top1": 79.4}
        folder.finish(numbers | {"epochs": 240, "seconds": 3600.0, "images_per_second": 3333.0})
    return len(plan.runs), plan.runs[-1].folder


def until_the_last_run(study: Path, last: RunFolder) -> float:
    """Seconds until a comparison whose other runs are finished has started the last."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [*TABLE1, str(study)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    while not last.log_file.is_file() and process.poll() is None:
        time.sleep(0.01)
    taken = time.perf_counter() - started
    process.send_signal(signal.SIGTERM)
    if process.wait() != 128 + signal.SIGTERM:
        raise RuntimeError("the comparison ended by itself")
    last.log_file.unlink()
    return taken


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the numbers to this file")
    options = parser.parse_args(argv)
    times: dict[str, list[float]] = {name: [] for name in [*WHAT, "hkd train, first step"]}
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "finished"
        count, last = finish_all_but_the_last(study)
        plan, restart = f"plan of table 1, {count} runs", "restart of table 1, until its last run starts"
        times |= {plan: [], restart: []}
        for _ in range(options.rounds):
            for name, command in WHAT.items():
                times[name].append(whole(command))
            times["hkd train, first step"].append(until_the_first_epoch())
            times[plan].append(whole([*TABLE1, f"{folder}/empty", "--dry-run"]))
            times[restart].append(until_the_last_run(study, last))
    print(f"{options.rounds} rounds, Python {sys.version.split()[0]}\n\n{'what':<46} {'median s':>9}")
    for name, taken in times.items():
        print(f"{name:<46} {statistics.median(taken):>9.2f}")
    write(options.json, {"seconds": times})

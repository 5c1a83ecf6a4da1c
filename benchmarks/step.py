"""What a training step costs with each method, beside the step with classical distillation.

    python benchmarks/step.py [--teacher resnet32x4] [--student resnet8x4] [--batch 64] [--threads 2] [--json FILE]

A step is the loop's: batch from the in-memory loader, teacher forward, student forward, loss, backward, SGD. The kinds
take turns within a round, in changing order, and the table gives the median over rounds of the ratio to the KD step of
the same round: a busy machine slows a whole round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable

import torch

import hkd
from hkd.data import ArrayDataset, DatasetInfo, make_loader
from hkd.methods import Weights
from hkd.training.engine import Engine
from hkd.training.loop import train_epoch
from hkd.training.objective import LABELS_ALONE, Objective

KINDS = {
    "student alone": ("kd", LABELS_ALONE),
    "KD": ("kd", Weights(ce=1.0, kd=1.0, method=0.0)),
    "HKD": ("hkd", Weights(ce=1.0, kd=0.0, method=3.0)),
    "HKD+KD": ("hkd", Weights(ce=1.0, kd=1.0, method=3.0)),
}
SAMPLES, CLASSES = 50_000, 100


def stepper(kind: str, asked: argparse.Namespace, engine: Engine, data: ArrayDataset) -> Callable[[], None]:
    method_name, weights = KINDS[kind]
    torch.manual_seed(0)
    student, teacher = hkd.create_model(asked.student, CLASSES), hkd.create_model(asked.teacher, CLASSES)
    method = hkd.create_method(
        method_name,
        student=student,
        teacher=teacher,
        num_samples=SAMPLES,
        labels=data.labels.repeat(SAMPLES // len(data)),
    )
    for network in (student, teacher):
        network.to(engine.device, memory_format=torch.channels_last)
    teacher.eval().requires_grad_(False)
    objective = Objective(student, method, weights)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    objective, optimizer = engine.prepare(objective, optimizer)
    loader = make_loader(data, asked.batch, engine.device, train=True)
    batches = itertools.chain.from_iterable(map(loader.epoch, itertools.count()))

    def step() -> None:
        # A pass of the loop over one batch; its closing sums are read once a step here, in every kind alike.
        train_epoch(objective, teacher if weights.kd or weights.method else None, [next(batches)], optimizer, engine)

    return step


def seconds(step: Callable[[], None], device: torch.device, count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=1, help="steps of each kind in a round")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--json", help="write the numbers to this file")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)

    engine = Engine(asked.device, asked.precision)
    images = torch.randint(0, 256, (5000, 3, 32, 32), dtype=torch.uint8)
    data = ArrayDataset(images, torch.arange(5000) % CLASSES, DatasetInfo("noise", tuple(map(str, range(CLASSES)))))
    steps = {kind: stepper(kind, asked, engine, data) for kind in KINDS}
    for step in steps.values():
        seconds(step, engine.device, 2)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(asked.rounds):
        for kind in random.sample(list(KINDS), len(KINDS)):
            times[kind].append(seconds(steps[kind], engine.device, asked.steps))

    print(f"{asked.teacher} -> {asked.student}, batch {asked.batch}, {engine.device}, {asked.precision}, "
          f"{asked.threads} threads, torch {torch.__version__}, {asked.rounds} rounds\n")  # fmt: skip
    print(f"{'step':<16} {'median ms':>10} {'over the KD step':>18} {'quartiles':>16}")
    for kind, values in times.items():
        ratios = [own / base for own, base in zip(values, times["KD"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{kind:<16} {1e3 * statistics.median(values):>10.1f} {middle:>17.3f}x {low:>8.3f}-{high:.3f}")
    if asked.json:
        with open(asked.json, "w") as file:
            json.dump({"settings": vars(asked), "seconds": times}, file, indent=2)


if __name__ == "__main__":
    main()

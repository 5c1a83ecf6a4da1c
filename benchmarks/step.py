"""What a training step costs with each method, beside the step with classical distillation.

    python -m benchmarks step [--methods all | ce kd "crd(sampling=per_sample)" hkd+kd ...]
                               [--teacher resnet32x4] [--student resnet8x4] [--batch 64] [--threads 2] [--json FILE]

A step is the loop's: batch from the in-memory loader, teacher forward, student forward, loss, backward, SGD. The
methods take turns within a round, in changing order, and the table gives the median over rounds of the ratio to the KD
step of the same round: a busy machine slows a whole round. Of a method that is an initialisation before a plain
training (ab, fsp) a step of the initialisation is measured.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

import hkd
from benchmarks.common import in_turns, machine, network_options, write
from hkd.config import PLUS_KD, Entry
from hkd.data import ArrayDataset, DatasetInfo, make_loader
from hkd.distiller import LABELS_ALONE, Objective
from hkd.methods import methods
from hkd.models.fold import fold_batch_norms
from hkd.runtime.engine import Engine
from hkd.trainer import train_epoch

SAMPLES, CLASSES = 50_000, 100
USUAL = ["ce", "kd", "hkd", "hkd+kd"]
AS_PUBLISHED = "crd(sampling=per_sample)"


def noise() -> ArrayDataset:
    """Images that say nothing and take as long as others."""
    images = torch.randint(0, 256, (5000, 3, 32, 32), dtype=torch.uint8)
    return ArrayDataset(images, torch.arange(5000) % CLASSES, DatasetInfo("noise", tuple(map(str, range(CLASSES)))))


def stepper(label: str, asked: Any, engine: Engine, data: ArrayDataset) -> Callable[[], None]:
    entry = Entry.parse(label)
    name = "kd" if entry.method == "ce" else entry.method.removesuffix(PLUS_KD)
    weights = LABELS_ALONE if entry.method == "ce" else methods[name].weights
    if entry.method.endswith(PLUS_KD):
        weights = weights._replace(kd=1.0)
    torch.manual_seed(0)
    student, teacher = hkd.create_model(asked.student, CLASSES), hkd.create_model(asked.teacher, CLASSES)
    method = hkd.create_method(
        name,
        student=student,
        teacher=teacher,
        num_samples=SAMPLES,
        labels=data.labels.repeat(SAMPLES // len(data)),
        **entry.settings,
    )
    for network in (student, teacher):
        network.to(engine.device, memory_format=torch.channels_last)
    teacher.eval().requires_grad_(False)
    fold_batch_norms(teacher, 32)
    objective = Objective(student, method, weights)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    prepared, optimizer = engine.prepare(objective, optimizer, objective.uses_all_parameters)
    initialising = not (weights.method or weights.kd) and entry.method != "ce"
    needed = teacher if initialising or objective.needs_teacher else None
    loader = make_loader(data, asked.batch, engine.device, train=True, share=engine.share)
    batches = itertools.chain.from_iterable(map(loader.epoch, itertools.count()))

    def step() -> None:
        # a pass of the loop over one batch
        train_epoch(prepared, needed, [next(batches)], optimizer, engine, initialising=initialising)

    return step


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=USUAL, help="as in a comparison, or all")
    network_options(parser, rounds=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1, help="steps of each method in a round")
    asked = parser.parse_args(argv)
    torch.set_num_threads(asked.threads)

    engine, data = Engine(asked.device, asked.precision), noise()
    others = [name for name in hkd.list_methods() if name not in USUAL]
    labels = (
        [*USUAL, *others, AS_PUBLISHED] if asked.methods == ["all"] else list(dict.fromkeys(["kd", *asked.methods]))
    )
    steps = {label: stepper(label, asked, engine, data) for label in labels}
    times = in_turns(steps, asked.rounds, asked.steps, engine.device)

    print(f"{asked.teacher} -> {asked.student}, batch {asked.batch}, {engine.device}, {asked.precision}, "
          f"{machine(asked.threads)}, {asked.rounds} rounds\n")  # fmt: skip
    print(f"{'step':<26} {'median ms':>10} {'over the KD step':>18} {'quartiles':>16}")
    for label, values in times.items():
        ratios = [own / base for own, base in zip(values, times["kd"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{label:<26} {1e3 * statistics.median(values):>10.1f} {middle:>17.3f}x {low:>8.3f}-{high:.3f}")
    write(asked.json, {"settings": vars(asked), "seconds": times})

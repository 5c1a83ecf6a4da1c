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
from hkd.config import MethodRequest
from hkd.data import ArrayDataset, DatasetInfo, make_loader
from hkd.methods.spec import MethodSpec
from hkd.metrics import Sums, hits, ranked
from hkd.models import Model
from hkd.models.fold import fold_batch_norms
from hkd.runtime.engine import Engine
from hkd.spec import RunSpec, resolve_method

SAMPLES, CLASSES = 50_000, 100
USUAL = ["ce", "kd", "hkd", "hkd+kd"]
AS_PUBLISHED = "crd(sampling=per_sample)"


def noise() -> ArrayDataset:
    """Images that say nothing and take as long as others."""
    images = torch.randint(0, 256, (5000, 3, 32, 32), dtype=torch.uint8)
    return ArrayDataset(images, torch.arange(5000) % CLASSES, DatasetInfo("noise", tuple(map(str, range(CLASSES)))))


def stepper(label: str, asked: Any, engine: Engine, data: ArrayDataset) -> Callable[[], None]:
    request = MethodRequest.parse(label)
    torch.manual_seed(0)
    student, teacher = hkd.create_model(asked.student, CLASSES), hkd.create_model(asked.teacher, CLASSES)
    for network in (student, teacher):
        network.to(engine.device, memory_format=torch.channels_last)
    fold_batch_norms(teacher.eval(), 32)
    distiller = distiller_of(request, student, teacher, data.labels.repeat(SAMPLES // len(data)))
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    prepared, optimizer = engine.prepare(distiller, optimizer, distiller.trains_all_parameters)
    if request.options is not None and not (distiller.weights.method or distiller.weights.kd):
        distiller.set_epoch(-1, 1)
    loader = make_loader(data, asked.batch, engine.device, train=True, share=engine.share)
    batches = itertools.chain.from_iterable(map(loader.epoch, itertools.count()))
    sums = Sums()
    prepared.train()

    def step() -> None:
        batch = next(batches)
        with engine.autocast():
            out = prepared(batch)
        engine.backward(out.loss)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            sums.add({name: len(batch.label) * value for name, value in {"loss": out.loss, **out.terms}.items()})
            if out.logits is not None:
                sums.add(hits(ranked(out.logits), batch.label))

    return step


def distiller_of(request: MethodRequest, student: Model, teacher: Model, labels: torch.Tensor) -> hkd.Distiller:
    """What a line of a comparison trains."""
    if request.options is None:
        return hkd.Distiller(student)
    spec = RunSpec.from_flat(request.options)
    method = resolve_method(spec.method or MethodSpec())
    return hkd.Distiller(
        student, teacher, method.name, num_samples=len(labels), labels=labels, ce_weight=method.ce_weight,
        kd_weight=method.kd_weight, method_weight=method.weight, kd_temperature=method.kd_temperature,
        **({} if method.settings is None else vars(method.settings)),
    )  # fmt: skip


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

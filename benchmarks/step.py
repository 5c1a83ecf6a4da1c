"""What a training step costs with each method, beside the step with cross-entropy alone.

    python -m benchmarks step [--methods all | ce kd "crd(sampling=per_sample)" hkd+kd ...] [--table]
                               [--teacher resnet32x4] [--student resnet8x4] [--batch 64] [--threads 2] [--json FILE]

A step is the loop's: batch from the in-memory loader, teacher forward, student forward, loss, backward, SGD. The
methods take turns within a round, in changing order, and the table gives the median over rounds of the ratio to the
cross-entropy step of the same round: a busy machine slows a whole round. Of a method that is an initialisation before a
plain training (ab, fsp) a step of the initialisation is measured.

With --table each method that can is measured a second time with a full table of the teacher's outputs in the teacher's
place, as in a comparison: the table holds every view that the measured steps show, float16, in a file.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
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
from hkd.runtime.teacher_cache import CacheRequest, TeacherCache, cacheable, table_key
from hkd.spec import RunSpec, resolve_method

SAMPLES, CLASSES = 50_000, 100
BASE = "ce"
USUAL = [BASE, "kd", "hkd", "hkd+kd"]
AS_PUBLISHED = "crd(sampling=per_sample)"


def noise() -> ArrayDataset:
    """Images that say nothing and take as long as others."""
    images = torch.randint(0, 256, (5000, 3, 32, 32), dtype=torch.uint8)
    return ArrayDataset(images, torch.arange(5000) % CLASSES, DatasetInfo("noise", tuple(map(str, range(CLASSES)))))


def stepper(
    label: str, asked: Any, engine: Engine, data: ArrayDataset, tables: Path | None = None
) -> Callable[[], None] | None:
    """A step of a method, with the teacher or, where a folder of tables is given, with a table that is filled first.

    None where the method needs more of the teacher than a table holds.
    """
    request = MethodRequest.parse(label)
    torch.manual_seed(0)
    student, teacher = hkd.create_model(asked.student, CLASSES), hkd.create_model(asked.teacher, CLASSES)
    for network in (student, teacher):
        network.to(engine.device, memory_format=torch.channels_last)
    distiller = distiller_of(request, student, teacher, data.labels.repeat(SAMPLES // len(data)))
    loader = make_loader(
        data, asked.batch, engine.device, train=True, share=engine.share, strong=distiller.needs_strong
    )
    if tables is not None and (not distiller.needs_teacher or distiller.initialisation or cacheable(distiller)):
        return None
    cache_request = CacheRequest(tables or Path(), precision=asked.precision)
    key = table_key(teacher.eval(), loader, cache_request, 32) if tables else None
    fold_batch_norms(teacher, 32)
    cache = TeacherCache(key, teacher, loader, engine, cache_request) if key else None
    # All methods are shown the same few batches, so that a table of them is soon full.
    batches = itertools.cycle(list(itertools.islice(loader.epoch(0), asked.batches)))
    if cache is not None:
        for _ in range(asked.batches):
            with engine.autocast():
                cache(next(batches))
        cache.teacher = None
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    prepared, optimizer = engine.prepare(distiller, optimizer, distiller.trains_all_parameters)
    initialises = request.options is not None and not (distiller.weights.method or distiller.weights.kd)
    distiller.set_epoch(-1 if initialises else 0, 240)
    fresh = itertools.chain.from_iterable(map(loader.epoch, itertools.count()))
    sums = Sums()
    prepared.train()

    def step() -> None:
        next(fresh)  # its cost is a part of the step
        batch = next(batches)
        with engine.autocast():
            out = prepared(batch, teacher=None if cache is None else cache(batch))
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
        kd_standardise=method.kd_standardise, **({} if method.settings is None else vars(method.settings)),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=USUAL, help="as in a comparison, or all")
    network_options(parser, rounds=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1, help="steps of each method in a round")
    parser.add_argument("--table", action="store_true", help="each method with a table of the teacher's outputs, too")
    parser.add_argument("--batches", type=int, default=8, help="different batches that the steps show")
    asked = parser.parse_args(argv)
    torch.set_num_threads(asked.threads)

    engine, data = Engine(asked.device, asked.precision), noise()
    others = [name for name in hkd.list_methods() if name not in USUAL]
    labels = (
        [*USUAL, *others, AS_PUBLISHED] if asked.methods == ["all"] else list(dict.fromkeys([BASE, *asked.methods]))
    )
    with tempfile.TemporaryDirectory() as folder:
        steps = {(label, where): stepper(label, asked, engine, data, Path(folder) if where == "table" else None)
                 for label in labels for where in ("teacher", "table")[: 1 + asked.table]}  # fmt: skip
        times = in_turns({key: step for key, step in steps.items() if step}, asked.rounds, asked.steps, engine.device)

    print(f"{asked.teacher} -> {asked.student}, batch {asked.batch}, {engine.device}, {asked.precision}, "
          f"{machine(asked.threads)}, {asked.rounds} rounds\n")  # fmt: skip
    print(f"{'':<26} {'with the teacher':^38}" + f" {'with a full table of its outputs':^48}" * asked.table)
    columns = f"{'median ms':>10} {'over the CE step':>26}"
    print(f"{'step':<26} {columns}" + f"  {columns} {'faster':>8}" * asked.table)
    for label in labels:
        line = f"{label:<26} {_cell(times[label, 'teacher'], times[BASE, 'teacher'])}"
        if (label, "table") in times:
            faster = statistics.median(_ratios(times[label, "teacher"], times[label, "table"]))
            line += f"  {_cell(times[label, 'table'], times[BASE, 'teacher'])} {faster:>7.2f}x"
        print(line)
    write(asked.json, {"settings": vars(asked), "seconds": {" ".join(key): value for key, value in times.items()}})


def _ratios(times: list[float], base: list[float]) -> list[float]:
    return [own / other for own, other in zip(times, base, strict=True)]


def _cell(times: list[float], base: list[float]) -> str:
    """The median in ms, and that of the ratios with its quartiles."""
    low, middle, high = statistics.quantiles(_ratios(times, base), n=4)
    return f"{1e3 * statistics.median(times):>10.1f} {middle:>10.3f}x ({low:.3f}-{high:.3f})"

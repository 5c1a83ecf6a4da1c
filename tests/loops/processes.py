"""What each of two processes does in ``test_processes.py``: loops of one's own, right and wrong.

torchrun --nproc-per-node 2 -m tests.loops.processes FOLDER [SCRIPT]
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hkd
from hkd.distiller import Distiller
from hkd.numerics.gather import agree
from tests.loops.setting import LABELS, B, C, N, images, optimizer_of
from tests.models.test_external import Own

Found = dict[str, Any]
SCENARIOS: list[Callable[[], Found]] = []


def build(method: str = "hkd", start: int = 0, student: nn.Module | None = None, **options: Any) -> Distiller:
    torch.manual_seed(start)
    student = student or hkd.create_model("resnet8", C)
    options = {"num_samples": N, "labels": LABELS, "image_size": 16, "kd_weight": 1.0} | options
    return hkd.Distiller(student, hkd.create_model("wrn_16_1", C), method, **options)


def batches(size: int = 16) -> Iterator[tuple[torch.Tensor, ...]]:
    """This process's half of each batch."""
    image, label = images().tensors
    image = nn.functional.interpolate(image, size=(size, size))
    for index in torch.arange(N).split(B):
        mine = index.tensor_split(2)[dist.get_rank()]
        yield image[mine], label[mine], mine


def train(called: nn.Module, distiller: Distiller, accumulate: int = 1, size: int = 16) -> tuple[int, str]:
    """How many calls went well, and what the next one raised."""
    optimizer = optimizer_of(distiller)
    for call, batch in enumerate(batches(size)):
        try:
            out = called(*batch, strong=batch[0].flip(3))
        except RuntimeError as error:
            return call, str(error)
        out.loss.backward()
        if (call + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return N // B, ""


def scenario(run: Callable[[], Found]) -> Callable[[], Found]:
    SCENARIOS.append(run)
    return run


@scenario
def banks_of_another_seed() -> Found:
    distiller = build(start=dist.get_rank())
    return {"generator": train(DistributedDataParallel(distiller, broadcast_buffers=False), distiller)}


@scenario
def draws_of_another_seed() -> Found:
    distiller = build(seed=dist.get_rank())
    return {"seed": train(DistributedDataParallel(distiller), distiller)}


@scenario
def labels_of_another_order() -> Found:
    distiller = build(labels=LABELS.roll(dist.get_rank()))
    return {"labels": train(DistributedDataParallel(distiller, broadcast_buffers=False), distiller)}


@scenario
def parameters_outside() -> Found:
    found = {}
    inside = build()
    inside.student = DistributedDataParallel(inside.student)  # type: ignore[assignment]
    found["the zoo's student alone"] = train(inside, inside)
    foreign = build(student=DistributedDataParallel(Own(C)), image_size=32)
    found["a foreign student alone"] = train(foreign, foreign, size=32)
    neither = build()
    found["neither"] = train(neither, neither)
    beside = build()
    DistributedDataParallel(beside.student)
    found["beside"] = train(beside, beside)
    accumulated = build()
    found["accumulated"] = train(accumulated, accumulated, accumulate=2)
    from_the_start = build("rkd", start=dist.get_rank())
    found["from the start"] = train(from_the_start, from_the_start)
    sharded = build("rkd", start=dist.get_rank())
    sharded.compares_processes = False
    found["not compared"] = train(sharded, sharded)
    alone = build("kd", start=dist.get_rank())
    found["kd shares nothing"] = train(alone, alone)
    return found


@scenario
def every_method_with_moving_batch_norms() -> Found:
    """Running statistics are each process's own; parameters and banks are not."""
    found = {}
    for name in hkd.list_methods():
        for broadcast in (False, True):
            weight = None if name == "kd" else 0.01
            distiller = build(name, method_weight=weight)
            distiller.set_epoch(0, 1)
            ddp = DistributedDataParallel(
                distiller, broadcast_buffers=broadcast, find_unused_parameters=not distiller.trains_all_parameters
            )
            calls = train(ddp, distiller)
            banks = [b for n, b in distiller.named_buffers() if "bank" in n]
            found[f"{name} {broadcast}"] = [*calls, agree(*distiller.parameters()) and agree(*banks)]
    return found


@scenario
def evaluation_in_one_process() -> Found:
    distiller = build()
    ddp = DistributedDataParallel(distiller, broadcast_buffers=False)
    optimizer, losses = optimizer_of(distiller), []
    for batch in batches():
        ddp.train()
        out = ddp(*batch)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if dist.get_rank() == 0:
            ddp.eval()
            with torch.no_grad():
                losses += [distiller(*batch).loss.item(), ddp(*batch).loss.item()]
    return {"losses": losses, "agree": agree(*distiller.parameters(), *distiller.method.buffers())}


@scenario
def what_agrees() -> Found:
    rank = dist.get_rank()
    value = torch.tensor([1.0, torch.nan, -0.0, 3.0])
    return {
        "the same": agree(value, torch.arange(5), torch.tensor([True, False]), value.bfloat16(), torch.tensor(2j)),
        "another value": agree(torch.full((2**22 + 3,), 1.0).index_fill(0, torch.tensor(2**22 + 1), 1.0 + rank)),
        "another order": agree(torch.tensor([1.0, 2.0]).roll(rank)),
        "another shape": agree(torch.zeros(2, 3 + rank)),
        "another number": agree(*[torch.zeros(2)] * (1 + rank)),
        "tensors in another order": agree(*[torch.zeros(2), torch.ones(2)][:: 1 - 2 * rank]),
        "strided": agree(torch.arange(6.0).view(2, 3).T if rank else torch.arange(6.0).view(2, 3).T.contiguous()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    names: dict[str, Any] = {}
    exec((folder / "script.py").read_text(), names)  # which starts the processes' group
    learnt = {
        "agree": agree(*names["distiller"].parameters(), *names["distiller"].method.loss.student.bank.buffers()),
        "seen": int(names["distiller"].method.loss.student.bank.seen.sum()),
        "loss": names["loss"].item(),
    }
    done = {run.__name__: run() for run in SCENARIOS} | {"script": learnt}
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(done))
    dist.destroy_process_group()

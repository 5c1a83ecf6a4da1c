"""What each of two processes does in ``test_distributed.py``, which also runs it in a process alone.

torchrun --nproc-per-node 2 -m tests.runtime.two_processes FOLDER
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import hkd
from hkd.config import MethodRequest
from hkd.distiller import Distiller
from hkd.runtime.engine import Engine
from hkd.spec import RunSpec
from hkd.types import Batch

N, C, B, STEPS = 64, 4, 16, 3


class Case(NamedTuple):
    """A line of a comparison, in an epoch below 0 for the method's initialisation."""

    line: str
    epoch: int = 0


CASES = [
    *(Case(name) for name in hkd.list_methods() if name != "sskd"),
    *(Case(name, -1) for name in ("ab", "fsp", "ft")),
    *(Case(f"{name}(init_epochs=0)") for name in ("ab", "fsp", "ft")),
    Case("hkd+kd"), Case("hkd(hops=2,layers=2,k=5)"), Case("hkd(negatives=same,bank_start=random)"),
    Case("hkd(sampling=all)"), Case("hkd(sampling=per_sample,num_negatives=20)"), Case("hkd(bank_dtype=bfloat16)"),
    Case("crd(sampling=per_sample,num_negatives=20)"), Case("cc(kernel=rbf)"),
]  # fmt: skip
LOCAL = [Case("sskd"), Case("sskd", -1), Case("sskd(init_epochs=0)")]
"""Its relations are those of each process's images."""


def plain(num_classes: int) -> nn.Module:
    """A network without batch statistics, in which a batch is the sum of its images."""
    flat = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), flat)


def build(line: str) -> Distiller:
    """The module that a line stands for, with all its terms at weight 1."""
    method = RunSpec.from_flat(MethodRequest.parse(line).options or {}).method
    assert method is not None
    return hkd.Distiller(
        hkd.create_model("resnet8", C),
        hkd.create_model("resnet14", C),
        method.name,
        num_samples=N,
        labels=torch.arange(N) % C,
        ce_weight=1.0,
        kd_weight=1.0,
        method_weight=None if method.name == "kd" else 1.0,
        image_size=16,
        **({} if method.settings is None else vars(method.settings)),
    )


def learn(case: Case, engine: Engine) -> dict[str, Tensor]:
    """Trains three steps on this process's part of each batch. Returns the last gradients, and the method's buffers."""
    torch.manual_seed(0)
    distiller = build(case.line)
    distiller.set_epoch(case.epoch, 1)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3)
    prepared, optimizer = engine.prepare(distiller, optimizer, distiller.trains_all_parameters)
    for module in distiller.modules():  # each process normalises by its own images, which is another matter
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.eval()

    random = torch.Generator().manual_seed(1)
    images, labels = torch.randn(N, 3, 16, 16, generator=random), torch.arange(N) % C
    left: dict[str, Tensor] = {}
    for _ in range(STEPS):
        index = engine.share.of(torch.randint(N, (B,), generator=random))  # some images twice
        engine.backward(prepared(Batch(images[index], labels[index], index, strong=images[index].flip(3))).loss)
        left = {f"gradient of {n}": p.grad.clone() for n, p in distiller.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    assert distiller.method is not None or case.line == "kd"
    buffers = [] if distiller.method is None else distiller.method.named_buffers()
    return left | {name: buffer.clone() for name, buffer in buffers}


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = Engine("cpu", seed=0)
    learnt = [learn(case, here) for case in CASES + LOCAL]
    torch.save(learnt, Path(sys.argv[1]) / f"{here.share.rank}.pt")

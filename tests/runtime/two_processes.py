"""What each of two processes does in ``test_distributed.py``, which also runs it in a process alone.

torchrun --nproc-per-node 2 -m tests.runtime.two_processes FOLDER
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import hkd
from hkd.config import PLUS_KD, Entry
from hkd.distiller import Objective
from hkd.methods import methods
from hkd.runtime.engine import Engine
from hkd.types import Batch

N, C, B, STEPS = 64, 4, 16, 3
LABELS = [
    *(name for name in hkd.list_methods() if name != "sskd"),  # its relations are those of each process's images
    "hkd+kd", "hkd(hops=2,layers=2,k=5)", "hkd(negatives=same,bank_start=random)", "hkd(sampling=all)",
    "hkd(sampling=per_sample,num_negatives=20)", "hkd(bank_dtype=bfloat16)",
    "crd(sampling=per_sample,num_negatives=20)",
    "cc(kernel=adjacent)",
]  # fmt: skip


def learn(label: str, engine: Engine) -> dict[str, Tensor]:
    """Trains three steps on this process's part of each batch. Returns the last gradients, and the method's buffers."""
    torch.manual_seed(0)
    student, teacher = hkd.create_model("resnet8", C), hkd.create_model("resnet14", C)
    teacher.eval().requires_grad_(False)
    entry = Entry.parse(label)
    name = entry.method.removesuffix(PLUS_KD)
    labels = torch.arange(N) % C
    method = hkd.create_method(
        name, student=student, teacher=teacher, num_samples=N, labels=labels, image_size=16, **entry.settings
    )
    objective = Objective(student, method, methods[name].weights._replace(kd=1.0, method=1.0))
    stage = objective.initialisation is not None and name in ("ab", "fsp")
    optimizer: torch.optim.Optimizer = torch.optim.SGD(objective.parameters(), lr=1e-3)
    prepared, optimizer = engine.prepare(objective, optimizer, objective.uses_all_parameters)
    for module in objective.modules():  # the statistics of a batch are each process's own, which is another matter
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.eval()

    random = torch.Generator().manual_seed(1)
    images = torch.randn(N, 3, 16, 16, generator=random)
    left: dict[str, Tensor] = {}
    for _ in range(STEPS):
        index = engine.share.of(torch.randint(N, (B,), generator=random))  # some images twice
        batch = Batch(images[index], labels[index], index)
        step = prepared(batch, teacher(batch.image), stage)
        engine.backward(step.total)
        left = {f"gradient of {n}": p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    return left | {name: buffer.clone() for name, buffer in method.named_buffers()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = Engine("cpu", seed=0)
    torch.save({label: learn(label, here) for label in LABELS}, Path(sys.argv[1]) / f"{here.share.rank}.pt")

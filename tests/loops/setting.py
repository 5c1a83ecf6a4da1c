"""What the loops of this folder have in common: a small training set, a distiller for it, and the losses it gave."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import hkd
from hkd.distiller import Distiller, DistillerOutput

EXAMPLES = Path(__file__).parents[2] / "examples"
N, C, B = 48, 4, 16
LABELS = torch.arange(N) % C


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A file of ``examples``, imported as its neighbours import it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


def images() -> TensorDataset:
    image = torch.randn(N, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return TensorDataset(image + LABELS[:, None, None, None], LABELS)


def build(method: str = "hkd", **options: Any) -> Distiller:
    torch.manual_seed(0)
    student, teacher = hkd.create_model("resnet8", C), hkd.create_model("wrn_16_1", C)
    options = {"num_samples": N, "labels": LABELS, "image_size": 16, "kd_weight": 1.0} | options
    return hkd.Distiller(student, teacher, method, **options)


def optimizer_of(distiller: Distiller) -> torch.optim.Optimizer:
    return torch.optim.SGD(distiller.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


class Losses:
    """The loss of every training step of a distiller, whoever runs it."""

    def __init__(self, distiller: Distiller) -> None:
        self.values: list[float] = []
        distiller.register_forward_hook(self._note)

    def _note(self, distiller: torch.nn.Module, _: Any, out: DistillerOutput) -> None:
        if distiller.training:
            self.values.append(out.loss.item())


def plain_loop(distiller: Distiller, data: Any, epochs: int) -> list[float]:
    """The losses of a plain loop over the images in order."""
    optimizer, losses = optimizer_of(distiller), Losses(distiller)
    for epoch in range(distiller.first_epoch, epochs):
        distiller.train()
        distiller.set_epoch(epoch, epochs)
        for image, label, index in DataLoader(data, B):
            distiller(image, label, index).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return losses.values

"""A few digits' runs that the analyses share."""

from __future__ import annotations

from pathlib import Path

import pytest

import hkd

SMALL = {"epochs": 1, "limit_train": 20, "tensorboard": False, "device": "cpu"}


def distill(run: Path, **changes: object) -> None:
    settings = {"run": str(run), "method": "kd", "teacher": "resnet14", "student": "resnet8"} | SMALL | changes
    hkd.distill(hkd.DistillConfig(**settings))  # type: ignore[arg-type]


@pytest.fixture(scope="package")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student alone, and two distilled students that differ in seed, each with its teacher."""
    folder = tmp_path_factory.mktemp("runs")
    hkd.train(hkd.TrainConfig(run=str(folder / "alone"), student="resnet8", **SMALL))  # type: ignore[arg-type]
    for seed in (0, 1):
        distill(folder / f"kd-{seed}", seed=seed)
    return folder

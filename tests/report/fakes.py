"""Run folders as training leaves them, without the training."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import hkd
from hkd.data.spec import DataSpec
from hkd.runtime.run_folder import RunFolder
from hkd.spec import RunSpec, resolve_method, resolve_teacher

CLASSES = [str(n) for n in range(10)]
IMAGES = 50


def fake_spec(content: str = "", **flat: Any) -> RunSpec:
    """A resolved specification from flat options; the digest of its data is made up.

    Args:
        content: another one stands for other images under the same options.
    """
    spec = RunSpec.from_flat({"student": "resnet8", "epochs": 2} | flat)
    if spec.data.revision == 0:
        return spec
    return replace(
        spec,
        data=replace(spec.data, digest=data_digest(spec.data, content)),
        teacher=None if spec.teacher is None else resolve_teacher(spec.teacher),
        more_teachers=tuple(map(resolve_teacher, spec.more_teachers)),
        method=None if spec.method is None else resolve_method(spec.method),
    )


def data_digest(data: DataSpec, content: str = "") -> str:
    options = (data.dataset, data.limit_classes, data.limit_train, data.train_fraction, data.holdout, content)
    return hashlib.sha256(repr(options).encode()).hexdigest()[:16]


def fake_run(
    folder: Path, accuracy: float = 0.5, *, content: str = "", classes: list[str] = CLASSES, hits: int | None = None,
    **flat: Any,
) -> Path:  # fmt: skip
    """A finished run of 50 test images, of which the first are classified correctly and the others as the next class.

    Args:
        folder: to write it to.
        accuracy: the part of the images that is classified correctly.
        content: see :func:`fake_spec`.
        classes: names beside the weights.
        hits: of 100 images, whose teacher's output a table gave; None for a run without one.
        flat: options of the run; one with a ``method`` is a distillation.
    """
    spec = fake_spec(content, **flat, run=str(folder))
    folder.mkdir(parents=True)
    spec.save(folder / "config.yaml")
    run = RunFolder(folder)
    label = torch.arange(IMAGES) % len(classes)
    wrong = torch.arange(IMAGES) >= round(accuracy * IMAGES)
    run.save_predictions((label + wrong) % len(classes), label)
    top1 = 100 * round(accuracy * IMAGES) / IMAGES
    epochs = range(1, spec.optimisation.epochs + 1)
    run.log([{"epoch": n, "loss": 2.0 / n, "train_top1": top1, "test_top1": top1 * n / epochs[-1]} for n in epochs])
    model = hkd.create_model(str(spec.student.name), len(classes))
    about = {"classes": classes, "mean": [0.3] * 3, "std": [0.4] * 3, "image_size": 8, "dataset": spec.data.dataset}
    hkd.save_model(model, run.weights, **about)
    run.finish(
        {"top1_last": top1, "top1_best": top1, "top5_last": 100.0, "seconds": 60.0, "images_per_second": 1000.0}
        | {"parameters": 78_042, "hkd": hkd.__version__, "torch": "2", "python": "3", "machine": "a CPU"}
        | (
            {}
            if hits is None
            else {"teacher_cache": {"hits": hits, "misses": 100 - hits, "bytes": 1, "dtype": "float16"}}
        )
    )
    return folder


OLD = {
    "dataset": "digits", "data_root": "data", "image_size": None, "limit_classes": None, "limit_train": None,
    "train_fraction": 1.0, "flip": True, "student": "resnet8", "student_pretrained": False, "epochs": 2,
    "batch_size": 64, "scale_with_processes": False, "lr": 0.05, "lr_decay": 0.1, "milestones": [0.625, 0.75, 0.875],
    "momentum": 0.9, "weight_decay": 0.0005, "seed": 0, "device": "cpu", "precision": "fp32", "compile": False,
    "workers": None, "tensorboard": False, "save_minutes": 10.0, "skip_bad_steps": 0, "bad_images": "stop",
}  # fmt: skip
OLD_DISTILLATION = OLD | {
    "teacher": "resnet14", "teacher_pretrained": False, "teacher_checkpoint": None, "teacher_lr": None,
    "method": "kd", "method_weight": 0.0, "kd_weight": 0.9, "ce_weight": 0.1, "kd_temperature": 4.0,
}  # fmt: skip
"""The configuration of a run of version 0.1, in format 1."""

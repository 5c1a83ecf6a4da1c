"""Run folders as version 0.1 left them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import hkd

TRAINING: dict[str, Any] = {
    "dataset": "digits", "data_root": "data", "image_size": None, "limit_classes": None, "limit_train": 4,
    "train_fraction": 1.0, "flip": True, "student_pretrained": False, "teacher_pretrained": False, "epochs": 2,
    "batch_size": 64, "scale_with_processes": False, "lr": 0.05, "lr_decay": 0.1, "milestones": [0.625, 0.75, 0.875],
    "momentum": 0.9, "weight_decay": 0.0005, "seed": 0, "device": "cpu", "precision": "fp32", "compile": False,
    "workers": None, "tensorboard": False, "save_minutes": 10.0, "skip_bad_steps": 0, "bad_images": "stop",
}  # fmt: skip
DISTILLATION: dict[str, Any] = TRAINING | {
    "student": "resnet8", "teacher": "resnet14", "teacher_checkpoint": None, "method": "hkd", "method_weight": 3.0,
    "kd_weight": 1.0, "ce_weight": 1.0, "teacher_lr": None, "kd_temperature": 4.0,
    "holistic": {
        "embedding_dim": 128, "k": 8, "hops": 1, "layers": 1, "num_negatives": 16384, "temperature": 0.07,
        "momentum": 0.9, "smoothing": 0.75, "negatives": "opposite", "sampling": "shared", "bank_start": "first",
        "bank_dtype": "float32", "graph": "global",
    },
}  # fmt: skip
OF_TEACHER: dict[str, Any] = TRAINING | {"student": None, "teacher": "resnet14", "role": "teacher"}
NAMES = ("individual_student", "individual_teacher", "holistic_student", "holistic_teacher")


def write_run(run: Path, *, finished: bool = True) -> None:
    """A distillation with the training of its teacher, in the files and keys of version 0.1.

    Args:
        run: its folder.
        finished: whether the student's run has its result.
    """
    _write(run / "teacher", OF_TEACHER, "model.safetensors", {})
    terms = {"kd": 0.04, **dict.fromkeys(NAMES, 4.1)}
    _write(run, DISTILLATION, "student.safetensors", terms, finished=finished)


def _write(run: Path, config: dict[str, Any], weights: str, terms: dict[str, float], *, finished: bool = True) -> None:
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"run": str(run)} | config, sort_keys=False))
    torch.manual_seed(0)
    student = config["student"] or config["teacher"]
    model = hkd.create_model(student, 10).eval()
    predicted, label = _predictions(model)
    top1 = 100 * float((predicted == label).mean())
    rows = [
        {
            "epoch": epoch, "lr": 0.05, "loss": 2.4, "ce": 2.36, **terms, "train_top1": 10.0, "seconds": 0.5,
            "images_per_second": 80.0, "test_top1": top1, "test_top5": 50.0, "test_loss": 2.3,
        }
        for epoch in (1, 2)
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    state = {
        "epoch": 2, "step": 0, "sums": {}, "epoch_seconds": 0.0, "rows": rows, "best_top1": top1, "best_epoch": 1,
        "seconds": 1.0, "images": 80, "skipped_steps": 0,
    }  # fmt: skip
    checkpoint = {
        "state": state, "origin": {"dataset": 64 * "a", "batch_size": "64"}, "student": model.state_dict(),
        "method": {}, "optimizer": {"state": {}, "param_groups": []}, "scaler": {}, "random": {},
    }  # fmt: skip
    for name in ("last.pt", "previous.pt"):
        torch.save(checkpoint, run / "checkpoints" / name)
    beside = {
        "classes": list("0123456789"), "mean": [0.305] * 3, "std": [0.376] * 3, "image_size": 8, "dataset": "digits",
        "epoch": 2, "top1": top1,
    }  # fmt: skip
    hkd.save_model(model, run / "checkpoints" / "best.safetensors", **beside)
    if not finished:
        return
    hkd.save_model(model, run / weights, **beside)
    np.savez_compressed(run / "predictions.npz", predicted=predicted, label=label)
    summary = {
        "top1_last": top1, "top1_best": top1, "best_epoch": 1, "top5_last": 50.0, "epochs": 2, "seconds": 1.0,
        "images_per_second": 80.0, "skipped_steps": 0, **({"teacher_top1": 10.1} if terms else {}), "student": student,
        "parameters": 78042, "train_images": 40, "test_images": 355, "device": "cpu",
        "machine": "x86_64 CPU, 1 threads", "torch": "2.11.0+cpu", "python": "3.11.7", "hkd": "0.1.0",
    }  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def _predictions(model: hkd.models.Model) -> tuple[np.ndarray, np.ndarray]:
    data = hkd.load_dataset("digits", "test")
    pixels = torch.stack([data[n][0] for n in range(len(data))]).float() / 255
    with torch.no_grad():
        return model((pixels - 0.305) / 0.376).logits.argmax(1).numpy(), data.labels.numpy()

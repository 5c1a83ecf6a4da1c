"""A small run that the tests of faults break, and what it must come to."""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

import hkd
from hkd.runtime.run_folder import RunFolder


def asked(run: Path, **changes: Any) -> hkd.DistillConfig:
    """HKD+KD on digits, six epochs of four steps, saved every 30 ms; the teacher is somebody's file."""
    fields: dict[str, Any] = {
        "run": str(run), "student": "resnet8", "epochs": 6, "batch_size": 64, "limit_train": 25, "device": "cpu",
        "tensorboard": False, "teacher_checkpoint": str(run.parent / "teacher.safetensors"),
        "settings": {"num_negatives": 50}, "save_minutes": 0.0005,
    }  # fmt: skip
    return hkd.DistillConfig(**fields | changes)


def teacher(folder: Path) -> None:
    """Writes it; that it has learnt nothing does not matter here."""
    folder.mkdir(parents=True, exist_ok=True)
    hkd.save_model(hkd.create_model("resnet8", 10), folder / "teacher.safetensors")


def outcome(run: Path) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    """What a finished run has come to: its weights, its metrics, its result.

    Without the times and the starts, and without what was found in a teacher's table, which depends on what ran before.
    """
    digest = weights_digest(safetensors.torch.load_file(RunFolder(run).weights))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    return digest, [_timeless(row) for row in rows], _timeless(summary)


def checkpoints(run: Path) -> tuple[str, str]:
    """The weights of the best epoch, and those of the checkpoint that a run with ``keep_checkpoints`` keeps."""
    last = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["student"]
    return weights_digest(safetensors.torch.load_file(run / "checkpoints" / "best.safetensors")), weights_digest(last)


def weights_digest(weights: dict[str, Tensor]) -> str:
    parts = (name.encode() + weights[name].contiguous().numpy().tobytes() for name in sorted(weights))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _timeless(numbers: dict[str, Any]) -> dict[str, Any]:
    aside = ("teacher_cache", "provenance")
    return {name: value for name, value in numbers.items() if "second" not in name and name not in aside}

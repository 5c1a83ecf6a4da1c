"""What runs are called, and which of them differ only in their seed."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hkd.config import PLUS_KD
from hkd.jobs import Trained, find_trained
from hkd.methods import methods


def label_of(found: Trained) -> str:
    """A network as a table names it: "resnet8 alone", "resnet8, hkd(k=4)+kd". Runs that differ in seed share it."""
    asked = found.asked
    if "method" not in asked:
        return f"{found.name} alone" if asked.get("role") == "student" else found.name
    return f"{found.name}, {method_label(asked)}"


def method_label(asked: dict[str, Any]) -> str:
    """The method of a run's configuration as a line of a comparison writes it."""
    name = asked["method"]
    kind = methods[name]
    own = kind.weights
    changed = {}
    plus = PLUS_KD if asked["kd_weight"] == 1 and own.kd != 1 else ""
    usual = own._replace(kd=1.0) if plus else own
    for weight, value in usual._asdict().items():
        if asked[f"{weight}_weight"] != value:
            changed[f"{weight}_weight"] = asked[f"{weight}_weight"]
    if kind.settings:
        defaults = asdict(kind.Config())
        changed |= {key: v for key, v in asked.get(kind.settings, {}).items() if v != defaults.get(key)}
    settings = ",".join(f"{key}={value}" for key, value in changed.items())
    return f"{name}{f'({settings})' if settings else ''}{plus}"


def file_name(text: str) -> str:
    """A name without what file systems and shells trip over."""
    return re.sub(r"[^\w.+=,-]", "_", text).strip("_")


def with_teachers(checkpoints: tuple[str, ...]) -> list[Trained]:
    """The networks of run folders and files, and before them the teachers that they learnt from, each once."""
    students = [find_trained(checkpoint) for checkpoint in checkpoints]
    teachers = []
    for checkpoint, found in zip(checkpoints, students, strict=True):
        if "method" in found.asked:
            given = found.asked.get("teacher_checkpoint") or str(Path(checkpoint) / "teacher")
            if Path(given).exists():
                teachers.append(find_trained(given, found.asked["teacher"]))
    unique = {found.weights.resolve(): replace(found, label=label_of(found)) for found in [*teachers, *students]}
    return list(unique.values())

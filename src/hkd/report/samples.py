"""Test images on which a teacher and its student disagree."""

from __future__ import annotations

import base64
import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hkd.config import EvaluateConfig
from hkd.data import Dataset
from hkd.data.download import no_downloads
from hkd.errors import RequestError
from hkd.files import inside, read_bytes, shown_path
from hkd.outside import printable
from hkd.report.collect import Group, Run
from hkd.report.layout import Part, Section
from hkd.trained import find_trained, open_test

COUNT = 12
LARGEST_PICTURE = 64 * 2**20
"""Bytes of a PNG file that becomes a part of the page."""


def disagreements(groups: list[Group], data_root: str | None) -> Section | None:
    """Some of the images that the first pair of teacher and student classify differently.

    None without such a pair, or where the images cannot be opened: they may be on another machine, and the rest of the
    page does not need them.
    """
    labels = {(run.key, run.seed): group.label for group in groups for run in group.runs}
    pair = next(filter(None, (_pair(run, labels) for group in groups for run in group.runs)), None)
    if pair is None:
        return None
    teacher, student = pair
    try:
        (theirs, label), (ours, same) = teacher.folder.predictions(), student.folder.predictions()
        with no_downloads():
            data = _images(student, data_root)
        if data is None or not len(data) == len(label) == len(same) or not (label == same).all():
            return None
        differing = np.flatnonzero(theirs != ours)
        chosen = sorted(int(n) for n in np.random.default_rng(0).permutation(differing)[:COUNT])
        pictures = [data_url(_png(data[n][0].numpy())) for n in chosen]
    except RequestError:
        return None
    names = dict(enumerate(data.info.classes))
    samples = [
        {"image": picture}
        | {role: names.get(int(classes[n]), "?") for role, classes in
           (("label", label), ("teacher", theirs), ("student", ours))}
        for n, picture in zip(chosen, pictures, strict=True)
    ]  # fmt: skip
    text = (
        f"{len(differing):,} of {len(label):,} test images are classified differently by "
        f"{labels[teacher.key, teacher.seed]} and {labels[student.key, student.seed]} (seed {student.seed}); "
        f"{len(samples)} of them, drawn at random."
    )
    return Section("samples", "Where teacher and student disagree", [Part(text=text, samples=samples)])


def _pair(student: Run, shown: dict[tuple[str, int], str]) -> tuple[Run, Run] | None:
    """A student's teacher and the student, if both have predictions and both are shown."""
    teacher = next(iter(student.teachers), None)
    if teacher is None or (teacher.key, teacher.seed) not in shown:
        return None
    return (teacher, student) if teacher.has_predictions and student.has_predictions else None


def _images(run: Run, data_root: str | None) -> Dataset | None:
    """The test images of a run; None where its folder of data sets does not exist."""
    if data_root is None and not os.path.isdir(run.spec.data.data_root) and run.spec.data.dataset != "digits":
        return None
    config = EvaluateConfig(checkpoint=str(run.path), data_root=data_root)
    return open_test(config, find_trained(run.path, "of a run"))


def _png(image: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(png: bytes) -> str:
    """A picture as a part of a page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def picture_in(folder: Path, name: str) -> str:
    """A PNG file of a result as a part of a page; empty where there is none that can be shown."""
    try:
        content = read_bytes(inside(folder, name), LARGEST_PICTURE)
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.verify()
    except FileNotFoundError:
        return ""
    except Exception as error:  # a file from elsewhere may break its reader anywhere
        print(f"note: {shown_path(folder / name)} is not shown ({printable(error)})", file=sys.stderr)
        return ""
    return data_url(content)

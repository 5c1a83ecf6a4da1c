"""Anybody's images, listed in a table: ``csv:FILE`` with the columns path, label and, if there are splits, split."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch

from hkd.data.base import DatasetInfo, FileDataset, NoEvaluationSplitError, check_split
from hkd.data.files import LARGEST_FILE, Files
from hkd.data.folder import EVALUATION, TRAINING, common_size
from hkd.data.formats import readable_suffixes, way_to_read
from hkd.data.walk import MOST_FILES, File
from hkd.errors import RequestError
from hkd.options import shown
from hkd.outside import has_controls, open_regular, printable

NEEDED = ("path", "label")
COLUMNS = (*NEEDED, "split")


class Row(NamedTuple):
    """A line of the table, whose images are at ``name``, relative to its folder or absolute."""

    line: int
    name: str
    label: str
    split: str


def csv_file(path: Path, split: str, image_size: int | None, name: str = "csv") -> FileDataset:
    """The images of a table such as::

        path,label,split
        images/1.jpg,cat,train
        images/2.jpg,dog,val

    Args:
        path: of the table, UTF-8 with a header. Paths in it are absolute or relative to its folder. Other columns are
            not looked at. Without the column ``split`` all images are the training split.
        split: "train" or "val". In the table they have a name of :data:`TRAINING` and of :data:`EVALUATION`, in
            capitals or not; of several evaluation splits the first in that order is taken.
        image_size: see :func:`hkd.data.folder.folder`.
        name: of the data set.

    Returns:
        The images in the order of the table. Classes are the labels of the training images, sorted; labels that are all
        whole numbers by their value.

    Raises:
        NoEvaluationSplitError: the evaluation split is asked for, and there is none.
        RequestError: there is no such table, or a line of it is wrong; names the first.
    """
    split = check_split(name, split, ("train", "val"))
    rows = list(_rows(path))
    splits = {row.split for row in rows}
    training = [row for row in rows if row.split in TRAINING]
    if not training:
        raise RequestError(f"dataset: {path} has no training images; its splits are {', '.join(sorted(splits))}")
    classes = _sorted({row.label for row in training})
    if len(classes) < 2:
        raise RequestError(f"dataset: expected at least two classes in {path}; got {shown(classes[0])} alone")
    evaluation = next((one for one in EVALUATION if one in splits), None)
    if split == "train":
        chosen = training
    elif evaluation is None:
        raise NoEvaluationSplitError(
            f"dataset: {path} has no evaluation split ({', '.join(EVALUATION)} in the column split); "
            "only a training makes one, of a part of its images (--holdout)"
        )
    else:
        chosen = [row for row in rows if row.split == evaluation]
    label_of = {one: label for label, one in enumerate(classes)}
    if strange := next((row for row in chosen if row.label not in label_of), None):
        raise RequestError(f"{_place(path, strange.line)}: class {shown(strange.label)} has no training images")
    labels = torch.tensor([label_of[row.label] for row in chosen], dtype=torch.int64)
    info = DatasetInfo(name, tuple(classes), image_size=image_size)
    dataset = FileDataset(Listed(path, rows), [row.name for row in chosen], labels, info)
    return dataset if image_size is not None else common_size(dataset)


class Listed(Files):
    """The files that a table names, in whatever folders.

    Raises:
        RequestError: one is no regular file that can be read; says in which line.
    """

    def __init__(self, table: Path, rows: list[Row]) -> None:
        self.path = table.parent
        self._files: dict[str, File] = {}
        for row in rows:
            place = self.path / row.name
            try:
                status = os.stat(place)
            except OSError as error:
                reason = f"({error.strerror or printable(error)})"
                raise RequestError(f"{_place(table, row.line)}: no file {printable(place, 4096)} {reason}") from error
            if not stat.S_ISREG(status.st_mode):
                raise RequestError(f"{_place(table, row.line)}: {printable(place, 4096)} is not a regular file")
            self._files[row.name] = File(status.st_size, status.st_mtime_ns)
        self.names = sorted(self._files)
        digest = hashlib.sha256(str(self.path.resolve()).encode(errors="surrogateescape"))
        for name in self.names:
            digest.update(f"{name}\0{self._files[name].size}\0{self._files[name].changed}\n".encode())
        self.fingerprint = digest.hexdigest()

    def read(self, name: str) -> bytes:
        with open_regular(self.path / name, "dataset") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise RequestError(f"dataset: {printable(name)} is larger than {LARGEST_FILE // 2**20} MiB")
        return data

    def size(self, name: str) -> int:
        return self._files[name].size

    def empty_folders(self, folder: str = "") -> list[str]:
        return []


def _rows(path: Path) -> Iterator[Row]:
    """The lines of a table after its header.

    Raises:
        RequestError: one is wrong.
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    seen: dict[str, int] = {}
    try:
        columns = _columns(path, next(reader, []))
        count = len(columns)
        for fields in reader:
            if not fields:  # an empty line
                continue
            if len(fields) != count:
                raise RequestError(f"{_place(path, reader.line_num)}: expected {count} fields; got {len(fields)}")
            values = {name: fields[n].strip() for n, name in enumerate(columns) if name in COLUMNS}
            row = _row(path, reader.line_num, values)
            where = os.path.normpath(path.parent / row.name)
            if where in seen:
                raise RequestError(f"{_place(path, row.line)}: {printable(row.name)} is in line {seen[where]}, too")
            seen[where] = row.line
            if len(seen) > MOST_FILES:
                raise RequestError(f"dataset: {path} has more than {MOST_FILES:,} lines")
            yield row
    except csv.Error as error:
        raise RequestError(f"{_place(path, reader.line_num)}: {printable(error)}") from error
    if not seen:
        raise RequestError(f"dataset: {path} has no line below its header")


def _text(path: Path) -> str:
    if not os.path.isfile(path):
        raise RequestError(f"dataset: no file {printable(path, 4096)}")
    with open_regular(path, "dataset") as file:
        data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise RequestError(f"dataset: {path} is larger than {LARGEST_FILE // 2**20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RequestError(f"{_place(path, line)}: expected UTF-8") from error


def _columns(path: Path, header: list[str]) -> list[str]:
    """The names of the columns in small letters."""
    columns = [name.strip().casefold() for name in header]
    if any(columns.count(name) != 1 for name in NEEDED) or columns.count("split") > 1:
        got = printable(",".join(header), 80) or "nothing"
        raise RequestError(f"{_place(path, 1)}: expected a header with the columns path,label or path,label,split; "
                           f"got {got}")  # fmt: skip
    return columns


def _row(path: Path, line: int, values: dict[str, str]) -> Row:
    place = _place(path, line)
    for name, value in values.items():
        if not value or has_controls(value):
            raise RequestError(f"{place}: expected a {name} without control characters; got {shown(value)}")
    suffix = PurePosixPath(values["path"]).suffix.lower()
    if suffix not in readable_suffixes():
        words, way = ", ".join(sorted(readable_suffixes())), way_to_read(suffix)
        raise RequestError(f"{place}: expected an image ({words}); got {printable(values['path'])}{way and f'; {way}'}")
    split = values.get("split", TRAINING[0]).casefold()
    if split not in (*TRAINING, *EVALUATION):
        known = ", ".join((*TRAINING, *EVALUATION))
        raise RequestError(f"{place}: expected a split of {known}; got {shown(values['split'])}")
    return Row(line, values["path"], values["label"], split)


def _place(path: Path, line: int) -> str:
    return f"dataset: {printable(path, 4096)}, line {line}"


def _sorted(labels: set[str]) -> list[str]:
    """Labels in order: whole numbers, if all are, by their value."""
    numbers = all(label.isascii() and label.removeprefix("-").isdigit() and len(label) < 20 for label in labels)
    return sorted(labels, key=lambda label: (int(label), label)) if numbers else sorted(labels)

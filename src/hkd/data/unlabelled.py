"""Images without labels beside a training set: what a student learns from its teacher alone."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import torch

from hkd.data.base import ArrayDataset, Dataset, FileDataset
from hkd.data.decode import fits_in_memory, in_memory
from hkd.data.files import Files, open_files, warn
from hkd.data.folder import EVALUATION
from hkd.data.load import load_dataset
from hkd.errors import RequestError
from hkd.outside import printable

STL10 = "stl10"
"""The data set that has an unlabelled split of its own."""


def with_unlabelled(
    train: Dataset, source: str, first_row: int, *, root: str, cache: Path | None, workers: int, bad_images: str
) -> Dataset:
    """A training set with the images of a folder or archive behind its own, each with the label -1.

    Order, views and the teacher's table know an image by its row, so the rows of these begin at ``first_row``.

    Args:
        train: decoded if it fits into memory; the other images then are, to the same size.
        source: a folder or .zip archive with images anywhere in it, or "stl10" for that data set's own. Where there are
            train/ and an evaluation split beside it, only what is in train/ is taken.
        first_row: images of the whole labelled split.
        root: where stl10 is.
        cache, workers, bad_images: see :func:`hkd.data.decode.in_memory`.

    Raises:
        RequestError: nothing is there, no image is in it, or one cannot be read.
    """
    more = _open(source, root, train)
    if isinstance(train, ArrayDataset):
        if not fits_in_memory(more):
            side = train.images.shape[2]
            raise RequestError(
                f"unlabelled: {len(more):,} images of {side}x{side} beside a data set in memory take more than 4 GiB"
            )
        decoded = in_memory(more, cache, workers, bad_images)
        rows = torch.cat([train.positions, first_row + decoded.positions])
        images, labels = (torch.cat(pair) for pair in ((train.images, decoded.images), (train.labels, decoded.labels)))
        return ArrayDataset(images, labels, train.info, rows)
    if not isinstance(train, FileDataset) or not isinstance(more, FileDataset):
        raise RequestError("unlabelled: expected images in files beside a data set in files")
    rows = torch.cat([train.positions, first_row + more.positions])
    files = JoinedFiles(train.files, more.files)
    names = [*files.of(0, train.names), *files.of(1, more.names)]
    return FileDataset(files, names, torch.cat([train.labels, more.labels]), train.info, rows)


def labelled(train: Dataset) -> Dataset:
    """The images of a training set that have a label."""
    known = (train.labels >= 0).nonzero().flatten()
    return train if len(known) == len(train) else train.select(known, train.info)


def _open(source: str, root: str, train: Dataset) -> Dataset:
    size = train.info.image_size
    if source == STL10:
        return load_dataset(STL10, "unlabeled", root, size)
    path = Path(os.path.expanduser(source.removeprefix("folder:")))
    try:
        files = open_files(path)
    except RequestError as error:
        raise RequestError(f"unlabelled: {str(error).removeprefix('dataset: ')}") from None
    names = files.images()
    if "train" in files.subfolders() and (beside := [one for one in EVALUATION if one in files.subfolders()]):
        names = files.images("train")
        warn(f"of {printable(source)} the images in train/ are taken as unlabelled, not those in {beside[0]}/")
    if not names:
        raise RequestError(f"unlabelled: no images in {printable(path)}")
    info = replace(train.info, name=source)
    return FileDataset(files, names, torch.full((len(names),), -1), info)


class JoinedFiles(Files):
    """Several folders or archives as one: the names of the n-th begin with ``n/``."""

    def __init__(self, *parts: Files) -> None:
        self.parts = parts
        self.path = parts[0].path
        self.names = [name for number, part in enumerate(parts) for name in self.of(number, part.names)]
        joined = "\0".join(part.fingerprint for part in parts)
        self.fingerprint = hashlib.sha256(joined.encode()).hexdigest()

    @staticmethod
    def of(number: int, names: list[str]) -> list[str]:
        """Names in the n-th part, as they are called here."""
        return [f"{number}/{name}" for name in names]

    def _place(self, name: str) -> tuple[Files, str]:
        number, _, rest = name.partition("/")
        return self.parts[int(number)], rest

    def read(self, name: str) -> bytes:
        part, rest = self._place(name)
        return part.read(rest)

    def empty_folders(self, folder: str = "") -> list[str]:
        return []

    def size(self, name: str) -> int:
        part, rest = self._place(name)
        return part.size(rest)

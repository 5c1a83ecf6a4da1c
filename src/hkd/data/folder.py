"""Anybody's images: a folder or a zip archive of class folders, with or without train/ and val/ around them."""

import os
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch

from hkd.data.base import (
    LARGEST_IN_MEMORY,
    DatasetInfo,
    FileDataset,
    NoEvaluationSplitError,
    check_split,
    datasets,
)
from hkd.data.files import Files, open_files, warn
from hkd.data.formats import described, not_read
from hkd.errors import RequestError
from hkd.options import shown
from hkd.outside import has_controls, printable
from hkd.types import IMAGENET_MEAN, IMAGENET_STD

TRAINING = ("train", "training")
EVALUATION = ("val", "test", "valid", "validation", "testing")
"""Names of splits in the order in which they are looked for, in capitals or not."""


def folder(path: Path, split: str, image_size: int | None, name: str = "folder", *, bare: bool = True) -> FileDataset:
    """Images in class folders, such as ``photos/train/cat/1.jpg`` and ``photos/val/cat/2.jpg``.

    Class folders directly in the folder (``photos/cat/1.jpg``) are the training split, and there is no other.

    Args:
        path: of the folder or .zip archive.
        split: "train" or "val". Their folders have a name of :data:`TRAINING` and of :data:`EVALUATION`.
        image_size: resize to squares of this side in pixels. If None, and the images are squares of one size of at most
            96 pixels, they keep it; otherwise their size is left open and training chooses.
        name: of the data set.
        bare: whether the class folders may lie directly in the folder.

    Raises:
        NoEvaluationSplitError: there is a training split alone, and the other one is asked for.
        RequestError: nothing is there, the split or its classes are missing, or the splits' classes differ.
    """
    split = check_split(name, split, ("train", "val"))
    files = open_files(path)
    top = _folders(files)
    splits = _split_folders(files, top)
    training, evaluation = (_split_folder(path, splits, names) for names in (TRAINING, EVALUATION))
    if training is None and (evaluation is not None or not bare or not top):
        listed = printable(", ".join(top[:5])) or "no folders"
        alone = ", or class folders alone" if bare else ""
        raise RequestError(
            f"dataset: {path} needs the folders train/ and val/, with a folder for each class in them{alone}; "
            f"got {listed}"
        )
    classes = _class_folders(files, training or "")
    if len(classes) < 2:
        there = path / training if training else path
        raise RequestError(f"dataset: expected at least two class folders in {there}; got {len(classes)}")
    if odd := next((one for one in classes if has_controls(one)), None):
        raise RequestError(f"dataset: expected class folders without control characters in {path}; got {shown(odd)}")
    if split == "train":
        elsewhere = [one for one in splits if one.casefold() in EVALUATION] if training else []
        _warn_of_strays(files, [n for n in files.images() if n.split("/")[0] not in elsewhere], training or "")
        return _read(files, training or "", classes, image_size, name)
    if evaluation is None:
        raise NoEvaluationSplitError(
            f"dataset: {path} has no evaluation split ({', '.join(f'{one}/' for one in EVALUATION)}); "
            "only a training makes one, of a part of its images (--holdout)"
        )
    differing = set(classes) ^ set(_class_folders(files, evaluation))
    if differing:
        raise RequestError(
            f"dataset: the classes of {training}/ and {evaluation}/ in {path} differ: {shown(min(differing))} is in "
            "one of them"
        )
    _warn_of_strays(files, files.images(evaluation), evaluation)
    return _read(files, evaluation, classes, image_size, name)


def _split_folders(files: Files, top: list[str]) -> list[str]:
    """The folders that are splits by their names. A class may be called so, too: among other folders, a split is one
    that has folders in it."""
    named = [one for one in top if one.casefold() in (*TRAINING, *EVALUATION)]
    return named if len(named) == len(top) else [one for one in named if _folders(files, one)]


def _split_folder(path: Path, splits: list[str], names: tuple[str, ...]) -> str | None:
    """The folder of a split, which has the first of some names that there is.

    Raises:
        RequestError: two differ in capitals alone.
    """
    for name in names:
        found = [one for one in splits if one.casefold() == name]
        if len(found) > 1:
            raise RequestError(f"dataset: expected one of {found[0]}/ and {found[1]}/ in {path}; got both")
        if found:
            return found[0]
    return None


def _class_folders(files: Files, inside: str) -> list[str]:
    """The class folders of a split.

    Raises:
        RequestError: one is empty, so that it is not known whether there is such a class.
    """
    if empty := [one for one in files.empty_folders(inside) if not _is_hidden(one)]:
        more = f", and so are {len(empty) - 1:,} more" if len(empty) > 1 else ""
        raise RequestError(
            f"dataset: class folder {shown(empty[0])} in {files.path / inside} is empty{more}; "
            "put images into it, or delete it"
        )
    return _folders(files, inside)


def _folders(files: Files, inside: str = "") -> list[str]:
    """The folders directly in a folder, without what file managers and notebooks hide there."""
    return [one for one in files.subfolders(inside) if not _is_hidden(one)]


def _warn_of_strays(files: Files, images: list[str], inside: str) -> None:
    """Says how many of the images lie outside the class folders of a folder."""
    depth = 2 if inside else 1
    start = f"{inside}/" if inside else ""
    outside = (one for one in images if not one.startswith(start) or one.count("/") < depth)
    strays = [one for one in outside if not any(map(_is_hidden, one.split("/")))]
    if strays:
        warn(
            f"skipped images in {printable(files.path, 4096)} that lie outside the class folders: {len(strays):,}, "
            f"first {printable(strays[0])}"
        )


def _is_hidden(folder: str) -> bool:
    """Whether file managers and notebooks made it."""
    return folder.startswith(".") or folder == "__MACOSX"


def _read(files: Files, inside: str, classes: list[str], image_size: int | None, name: str) -> FileDataset:
    """The images of one split, whose class folders lie directly in a folder."""
    label_of = {one: label for label, one in enumerate(classes)}
    depth = len(PurePosixPath(inside).parts)
    owners = [(image, PurePosixPath(image).parts) for image in files.images(inside)]
    labelled = [(image, label_of[parts[depth]]) for image, parts in owners if parts[depth] in label_of]
    counts = Counter(label for _, label in labelled)
    unread = [name for name in not_read(files.below(inside)) if name.split("/")[depth] in label_of]
    if empty := [one for one, label in label_of.items() if not counts[label]]:
        theirs = described(name for name in unread if name.split("/")[depth] == empty[0])
        raise RequestError(
            f"dataset: class {shown(empty[0])} has no images in {files.path / inside}{theirs and f'; it has {theirs}'}"
        )
    if pictures := described(unread):
        warn(f"left out of {printable(files.path / inside, 4096)}: {pictures}")
    labels = torch.tensor([label for _, label in labelled], dtype=torch.int64)
    info = DatasetInfo(name, tuple(classes), image_size=image_size)
    dataset = FileDataset(files, [image for image, _ in labelled], labels, info)
    return dataset if image_size is not None else common_size(dataset)


def common_size(dataset: FileDataset) -> FileDataset:
    """The data set, which knows the size of its images now, if they are small squares of one size."""
    dataset.info = replace(dataset.info, image_size=_common_size(dataset))
    return dataset


def _common_size(dataset: FileDataset, looks: int = 16) -> int | None:
    """The side of the images, if a handful of them spread over the data set are squares of one size."""
    step = max(1, len(dataset) // looks)
    sizes = set()
    for index in range(0, len(dataset), step):
        with suppress(RequestError):  # unreadable images are reported when all are decoded
            sizes.add(dataset.decode(index).size)
    if not sizes:
        dataset.decode(0)  # raises, with the reason
    width, height = sizes.pop()
    return width if not sizes and width == height <= LARGEST_IN_MEMORY else None


@datasets.register("imagenet")
def imagenet(split: str, root: Path, image_size: int | None) -> FileDataset:
    """ImageNet as prepared for training: ``imagenet/train/n01440764/*.JPEG``, ``imagenet/val/n01440764/*.JPEG``.

    ``root`` is that folder or its parent. ImageNet cannot be downloaded without an account.
    """
    inner = root / "imagenet"
    dataset = folder(inner if os.path.isdir(inner) else root, split, image_size, "imagenet", bare=False)
    dataset.info = replace(dataset.info, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return dataset

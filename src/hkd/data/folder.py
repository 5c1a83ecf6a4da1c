"""Anybody's images: a folder or a zip archive with train/ and val/, and in each a folder a class."""

from contextlib import suppress
from pathlib import Path, PurePosixPath

import torch

from hkd.data.base import LARGEST_IN_MEMORY, DatasetInfo, FileDataset, check_split, datasets
from hkd.data.files import open_files
from hkd.errors import RequestError

EVALUATION = ("val", "test", "valid", "validation")


def folder(path: Path, split: str, image_size: int | None, name: str = "folder") -> FileDataset:
    """Images in class folders, such as ``photos/train/cat/1.jpg`` and ``photos/val/cat/2.jpg``.

    Args:
        path: of the folder or .zip archive.
        split: "train" or "val"; evaluation images may stand in val/, test/, valid/ or validation/.
        image_size: resize to squares of this size. If None, and the images are squares of one size of at most 96
            pixels, they keep it; otherwise their size is left open and training chooses.

    Raises:
        RequestError: nothing is there, a split or its classes are missing, or the splits' classes differ.
    """
    split = check_split(name, split, ("train", "val"))
    files = open_files(path)
    found = files.subfolders()
    evaluation = next((candidate for candidate in EVALUATION if candidate in found), None)
    if "train" not in found or evaluation is None:
        listed = ", ".join(found[:5]) or "no folders"
        raise RequestError(
            f"dataset: {path} needs the folders train/ and val/, with a folder for each class in them; found {listed}"
        )
    classes = files.subfolders("train")
    if len(classes) < 2:
        raise RequestError(f"dataset: {path}/train needs at least two class folders; found {len(classes)}")
    differing = set(classes) ^ set(files.subfolders(evaluation))
    if differing:
        raise RequestError(
            f"dataset: the classes of train/ and {evaluation}/ in {path} differ: {min(differing)!r} is in one of them"
        )
    names = files.images("train" if split == "train" else evaluation)
    label_of = {name: label for label, name in enumerate(classes)}
    labels = torch.tensor([label_of[PurePosixPath(name).parts[1]] for name in names], dtype=torch.int64)
    dataset = FileDataset(files, names, labels, DatasetInfo(name, tuple(classes), image_size=image_size))
    empty = [
        classes[label] for label in (torch.bincount(labels, minlength=len(classes)) == 0).nonzero().flatten().tolist()
    ]
    if empty:
        raise RequestError(f"dataset: class {empty[0]!r} has no images in the {split} split of {path}")
    if image_size is None:
        dataset.info = DatasetInfo(name, tuple(classes), image_size=_common_size(dataset))
    return dataset


def _common_size(dataset: FileDataset, looks: int = 16) -> int | None:
    """The side of the images, if a handful of them spread over the data set are squares of one size."""
    step = max(1, len(dataset) // looks)
    sizes = set()
    for index in range(0, len(dataset), step):
        with suppress(RequestError):  # what cannot be read is told of when all are
            sizes.add(dataset.decode(index).size)
    if not sizes:
        dataset.decode(0)  # says why
    width, height = sizes.pop()
    return width if not sizes and width == height <= LARGEST_IN_MEMORY else None


@datasets.register("imagenet")
def imagenet(split: str, root: Path, image_size: int | None) -> FileDataset:
    """ImageNet as prepared for training: ``imagenet/train/n01440764/*.JPEG``, ``imagenet/val/n01440764/*.JPEG``.

    ``root`` is that folder or the one that holds it. ImageNet cannot be downloaded without an account.
    """
    inner = root / "imagenet"
    return folder(inner if inner.is_dir() else root, split, image_size, name="imagenet")

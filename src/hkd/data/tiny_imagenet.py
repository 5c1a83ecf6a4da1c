"""TinyImageNet: 200 ImageNet classes at 64x64 pixels, 500 training and 50 validation images each."""

import os
from pathlib import Path, PurePosixPath

import torch

from hkd.data.base import DatasetInfo, FileDataset, check_split, datasets
from hkd.data.download import downloading
from hkd.data.files import Files, open_files
from hkd.errors import RequestError
from hkd.options import shown

URL = "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


@datasets.register("tiny-imagenet")
def tiny_imagenet(split: str, root: Path, image_size: int | None) -> FileDataset:
    """The official archive, read in place, or its folder: ``root`` itself or ``tiny-imagenet-200*`` in it.

    The validation labels come from ``val_annotations.txt``. Downloaded with a checksum where missing. The paper
    down-samples it to 32x32 (``image_size=32``).
    """
    split = check_split("tiny-imagenet", split, ("train", "val"))
    files = _find(root)
    wnids = _once(_text(files, "wnids.txt").split(), "wnids.txt", files)
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    words = dict(line.split("\t", 1) for line in _text(files, "words.txt").splitlines() if "\t" in line)

    if split == "train":
        names = [name for wnid in wnids for name in files.images(f"train/{wnid}")]
        labels = [label_of[PurePosixPath(name).parts[1]] for name in names]
    else:
        rows = [line.split("\t") for line in _text(files, "val/val_annotations.txt").splitlines() if line]
        wrong = next((row for row in rows if len(row) < 2 or row[1] not in label_of), None)
        if wrong is not None:
            raise RequestError(
                f"dataset: expected lines of an image and its class in val_annotations.txt of {files.path}; "
                f"got {shown(' '.join(wrong))}"
            )
        names = [f"val/images/{name}" for name in _once([row[0] for row in rows], "val_annotations.txt", files)]
        labels = [label_of[row[1]] for row in rows]
    info = DatasetInfo(
        "tiny-imagenet",
        tuple(words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids),
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        image_size=image_size or 64,
    )
    return FileDataset(files, names, torch.tensor(labels), info)


def _find(root: Path) -> Files:
    if os.path.isfile(root) or os.path.isfile(root / "wnids.txt"):
        return open_files(root)
    # A folder comes before an archive: it is read faster.
    candidates = sorted(root.glob("tiny-imagenet-200*"), key=lambda path: (path.is_file(), path.name))
    if candidates:
        return open_files(candidates[0])
    from torchvision.datasets.utils import download_url

    with downloading("tiny-imagenet", root) as allowed:
        if not allowed:
            raise FileNotFoundError("no tiny-imagenet-200 there")
        download_url(URL, str(root), md5=MD5)
    return open_files(root / "tiny-imagenet-200.zip")


def _once(names: list[str], file: str, files: Files) -> list[str]:
    """The names; raises :class:`RequestError` where one is listed twice: a short list would make a large data set."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise RequestError(f"dataset: {shown(name)} is listed twice in {file} of {files.path}")
        seen.add(name)
    return names


def _text(files: Files, name: str) -> str:
    if name not in files.names:
        raise RequestError(f"dataset: {files.path} is not TinyImageNet: it has no {name}")
    try:
        return files.read(name).decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"dataset: {name} of {files.path} is not UTF-8") from error

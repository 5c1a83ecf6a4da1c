"""The classes of anybody's image files, as a trained network sees them."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from hkd.config import PredictConfig
from hkd.data.files import LARGEST_FILE, open_files
from hkd.data.images import images_at_once, open_image, unreadable
from hkd.data.open import worker_count
from hkd.data.transform import Transform, transform_of
from hkd.errors import RequestError, TrainingError
from hkd.files import write_text
from hkd.models import read_model
from hkd.options import shown
from hkd.outside import as_path, has_controls, open_regular, printable
from hkd.report.tables import csv_text
from hkd.runtime.engine import Engine
from hkd.trained import find_trained

Prediction = tuple[str, list[tuple[str, float]]]
"""A file, and its likeliest classes with their probabilities, likeliest first."""


@dataclass(frozen=True)
class Predictions:
    """What was predicted.

    Attributes:
        of: each file that could be read, in the order of the request.
        skipped: the files that could not.
    """

    of: list[Prediction] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def as_csv(self, *, escaped: bool = False) -> str:
        """A line for each file and class, with a line of the columns' names: file, rank, class, probability.

        Args:
            escaped: for a terminal, whose cursor a file's name must not move.
        """
        return csv_text(
            [
                {"file": printable(file, 4096) if escaped and has_controls(file) else file, "rank": rank,
                 "class": name, "probability": probability}
                for file, classes in self.of
                for rank, (name, probability) in enumerate(classes, start=1)
            ]
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Writes :meth:`as_csv` to a file, as a whole or not at all.

        Raises:
            TrainingError: it cannot be written.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, self.as_csv())
        except OSError as error:
            raise TrainingError(f"cannot write to {printable(path, 4096)} ({error.strerror or error})") from error


def predict(
    checkpoint: str | Path, images: str | Path | Iterable[str | Path], *, top: int = 5, model: str | None = None,
    device: str = "auto",
) -> list[Prediction]:  # fmt: skip
    """Classifies image files with the preprocessing of the evaluation.

    Args:
        checkpoint: a run folder, or a file that :func:`hkd.save_model` wrote.
        images: files, and folders and zip archives of images.
        top: how many classes a file gets; of fewer classes all.
        model: the network in the file, where the file does not say.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".

    Returns:
        (file, [(class, probability), ...]) for each file in order, likeliest class first. A file that cannot be read
        is told on standard error and left out.

    Raises:
        RequestError: a path leads nowhere, no image can be read, or the network is not one of a run.
    """
    one = isinstance(images, str | os.PathLike)
    if not one and not isinstance(images, Iterable):
        raise RequestError(f"images: expected paths of image files; got {shown(images)}")
    paths: Iterable[str | Path] = [images] if one else images  # type: ignore[list-item, assignment]
    names = tuple(str(as_path(path, "images")) for path in paths)
    checkpoint = str(as_path(checkpoint, "checkpoint"))
    return predict_files(PredictConfig(checkpoint=checkpoint, images=names, top=top, model=model, device=device)).of


def predict_files(config: PredictConfig) -> Predictions:
    """As :func:`predict`, of the command's options."""
    config.check()
    trained = find_trained(config.checkpoint, config.model)
    transform = transform_of(trained.about, str(trained.weights))
    files = [file for path in config.images for file in _found(Path(path))]
    engine = Engine(config.device)
    network, about = read_model(trained.weights, trained.name)
    network.to(engine.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    classes = about.get("classes") or list(map(str, range(about["num_classes"])))
    result, rest = Predictions(), iter(files)
    step = min(config.batch_size, images_at_once(transform.size))
    with ThreadPoolExecutor(max(1, worker_count(config.workers))) as pool:
        while some := list(islice(rest, step)):
            looks = list(zip(some, pool.map(lambda file: _pixels(file, transform), some), strict=True))
            for (name, _), look in looks:
                if isinstance(look, str):
                    print(f"warning: skipped, cannot read {printable(name, 4096)} ({look})", file=sys.stderr)
                    result.skipped.append(name)
            pixels = [look for _, look in looks if isinstance(look, Tensor)]
            if pixels:
                image = transform.normalised(torch.stack(pixels).to(engine.device))
                with torch.no_grad():
                    logits = network(image.contiguous(memory_format=torch.channels_last)).logits
                names = [name for (name, _), look in looks if isinstance(look, Tensor)]
                result.of.extend(zip(names, _likeliest(logits, classes, config.top), strict=True))
    if not result.of:
        raise RequestError(f"images: none of {len(files):,} can be read")
    return result


def _likeliest(logits: Tensor, classes: Sequence[str], top: int) -> Iterator[list[tuple[str, float]]]:
    """The classes of each row of logits (B, C), likeliest first."""
    values, labels = logits.float().softmax(1).cpu().topk(min(top, len(classes)))
    for row, names in zip(values.tolist(), labels.tolist(), strict=True):
        yield [(classes[label], value) for label, value in zip(names, row, strict=True)]


File = tuple[str, Callable[[], bytes]]
"""A file's name as it is reported, and how it is read."""


def _found(path: Path) -> list[File]:
    """The images at a path: a file whatever it is called, or those in a folder or zip archive.

    Raises:
        RequestError: there are none.
    """
    if not os.path.isdir(path):
        with open_regular(path, "images") as file:
            is_archive = zipfile.is_zipfile(file) and path.suffix.lower() == ".zip"
        if not is_archive and path.suffix.lower() != ".zip":
            return [(str(path), partial(_content, path))]
    try:
        files = open_files(path)
    except RequestError as error:
        raise RequestError(f"images: {str(error).removeprefix('dataset: ')}") from error
    names = [name for name in files.images() if not any(map(_is_hidden, name.split("/")))]
    if not names:
        raise RequestError(f"images: no images in {printable(path, 4096)}")
    return [(f"{path}/{files.prefix}{name}", partial(files.read, name)) for name in names]


def _is_hidden(part: str) -> bool:
    """Whether a part of a file's name is one that file managers and archivers make."""
    return part.startswith(".") or part == "__MACOSX"


def _content(path: Path) -> bytes:
    with open_regular(path, "images") as file:
        data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise RequestError(f"images: larger than {LARGEST_FILE // 2**20} MiB")
    return data


def _pixels(file: File, transform: Transform) -> Tensor | str:
    """What the network sees of a file before the normalisation, uint8 (3, S, S); or why it cannot be read."""
    try:
        return transform.pixels(open_image(file[1]()))
    except Exception as error:  # a decoder given a hostile file may raise anything
        return unreadable(error)

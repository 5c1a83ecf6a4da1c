"""Whether a model card's code sees in image files what this package sees in them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from hkd.data.images import open_image
from hkd.data.transform import Transform
from hkd.errors import TrainingError
from hkd.outside import printable

LONGEST_RUN = 300
"""Seconds that the code may take."""


def awkward_files(pictures: Sequence[Image.Image]) -> dict[str, bytes]:
    """Files of the kinds that are easily read in the wrong way, of eight pictures, by their names."""
    turned, clear, palette, inks, deep, grey, large, wide = (picture.convert("RGB") for picture in pictures)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    ramp = np.linspace(0, 255, clear.width * clear.height).astype(np.uint8).reshape(clear.height, clear.width)
    clear.putalpha(Image.fromarray(ramp))
    transparency = bytes(np.linspace(0, 255, 32).astype(np.uint8))
    sixteen = Image.fromarray(np.asarray(deep.convert("L"), dtype=np.uint16) * 257)
    return {
        "exif.jpg": _saved(turned, "JPEG", exif=exif),
        "rgba.png": _saved(clear, "PNG"),
        "palette.png": _saved(palette.quantize(32), "PNG", transparency=transparency),
        "cmyk.jpg": _saved(inks.convert("CMYK"), "JPEG"),
        "sixteen.png": _saved(sixteen, "PNG"),
        "grey.jpg": _saved(grey.convert("L"), "JPEG"),
        "large.jpg": _saved(large.resize((4000, 3000)), "JPEG"),
        "wide.png": _saved(wide.resize((max(4 * wide.height, 40), wide.height)), "PNG"),
    }


def _saved(image: Image.Image, format: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **how)
    return buffer.getvalue()


def check_card(
    code: str, folder: Path, deployed: nn.Module, transform: Transform, classes: Sequence[str],
    images: NDArray[np.uint8],
) -> str:  # fmt: skip
    """Runs a card's code in a process of its own on image files of eight kinds.

    Args:
        code: of the card.
        folder: where ``model.onnx`` is.
        deployed: uint8 (B, 3, S, S) to logits.
        transform: of the network.
        classes: their names.
        images: (N, 3, S, S) of which the files are made, N from 1.

    Returns:
        What was found, a line.

    Raises:
        TrainingError: the code fails, or gives a file another class than the network does.
    """
    pictures = [Image.fromarray(images[n % len(images)].transpose(1, 2, 0)) for n in range(8)]
    files = awkward_files([picture.resize((picture.width + 9, picture.height + 3 * n)) for n, picture in
                           enumerate(pictures)])  # fmt: skip
    with torch.no_grad():
        pixels = torch.stack([transform.pixels(open_image(content)) for content in files.values()])
        expected = [classes[label] for label in deployed(pixels).argmax(1).tolist()]
    with tempfile.TemporaryDirectory() as place:
        for name, content in files.items():
            (Path(place) / name).write_bytes(content)
        # -P: modules in the folder are not imported, whoever put them there.
        command = [sys.executable, "-P", "-c", code, *(str(Path(place) / name) for name in files)]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, encoding="utf-8", timeout=LONGEST_RUN, check=False,
                env=os.environ | {"PYTHONIOENCODING": "utf-8"},
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise TrainingError(f"MODEL_CARD.md: its code cannot be run ({printable(error)})") from error
    said = done.stdout.splitlines()
    if done.returncode or len(said) != len(files):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise TrainingError(f"MODEL_CARD.md: its code fails ({printable(last)})")
    for name, ours, theirs in zip(files, expected, said, strict=True):
        if ours != theirs:
            raise TrainingError(
                f"MODEL_CARD.md: its code says {printable(theirs)} of {name}, where the network says {printable(ours)}"
            )
    kinds = ", ".join(name.partition(".")[0] for name in files)
    return f"MODEL_CARD.md: its code, in a process of its own: same class for {len(files)} image files ({kinds})"

"""The model card of an export: what a network is, and code that runs it without this package."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from hkd.data.formats import FORMATS
from hkd.data.images import CROPS, WIDEST, to_rgb
from hkd.data.load import WITH_PATH
from hkd.deploy.latency import BATCHES, Latency, conditions
from hkd.models.about import LONGEST_DATASET
from hkd.models.base import Model
from hkd.outside import printable
from hkd.trained import Trained, evaluation_split, method_label

CARD = """---
{head}---

# {name}

{parameters:,} parameters, {count} classes, images of {size}x{size} pixels.{trained}

| file | what it is | size | 1 image | 32 images |
|---|---|---|---|---|
{files}

Times are medians, and in parentheses 95th percentiles, in milliseconds, with {conditions}.

Files take uint8 images (batch, 3, {size}, {size}), red first, and return logits (batch, {count}). The normalisation is
inside: mean {mean} and deviation {std} of channels in [0, 1].
{crop} It is turned as its EXIF data says, transparency
becomes white, 16-bit grey is scaled to 8 bits, and colours are taken as they are stored. Scaling is Pillow's, bilinear.

Checked on export:

{checks}

## Classify image files

This is the preprocessing of the evaluation, word for word. Save it beside the files as `classify.py`, and run
`python classify.py photo.jpg`.

```python
{code}
```

## Licences

Of this network: {license}. Of the training images: {data_license}.{teacher_license}

## Classes

{classes}
"""
"""``MODEL_CARD.md``."""

CODE = """import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FORMATS = {formats}
WIDEST = {widest}


{to_rgb}


{crop}


session = onnxruntime.InferenceSession("model.onnx")  # or another of the .onnx files
about = session.get_modelmeta().custom_metadata_map
classes, size = json.loads(about["classes"]), int(about["image_size"])
for file in sys.argv[1:]:
    image = {name}(to_rgb(Image.open(file, formats=FORMATS)), size)
    logits = session.run(None, {{"image": np.asarray(image).transpose(2, 0, 1)[None]}})[0]
    print(classes[logits.argmax()])"""
"""The card's code. It takes image files and prints a class for each."""

IN_WORDS = {
    "fit": "An image of another shape is scaled by its shorter side and cropped in the middle.",
    "centre": "An image of another shape is scaled so that its shorter side is 8/7 of that, and the middle is cut out.",
}
"""The crops, :data:`hkd.data.images.CROPS`."""
KINDS = {
    ".onnx": "ONNX, for onnxruntime and others",
    ".int8.onnx": "the same with 8-bit weights and activations; the code below runs it, too",
    ".pt2": "for `torch.export.load`, in torch without hkd",
    ".safetensors": "weights, for `hkd.load_model`",
}


class Licenses(NamedTuple):
    """Of what a card describes; unknown until somebody tells."""

    network: str = "unknown"
    data: str = "unknown"
    teacher: str = "unknown"


def plain(text: object) -> str:
    """A text from a file as Markdown and HTML show it: no markup, no link, no picture, and on one line."""
    return re.sub(r"([\\`*_{}\[\]#!|~])", r"\\\1", html.escape(printable(text, LONGEST_DATASET), quote=False))


def card_code(crop: str) -> str:
    """The card's code, with the source of the preprocessing that the evaluation runs.

    Args:
        crop: a key of :data:`hkd.data.images.CROPS`.
    """
    sources = {"to_rgb": inspect.getsource(to_rgb).strip(), "crop": inspect.getsource(CROPS[crop]).strip()}
    return CODE.format(formats=FORMATS, widest=WIDEST, name=CROPS[crop].__name__, **sources)


def without_place(dataset: str) -> str:
    """A data set's name, of files without where they lie on somebody's disk."""
    kind, colon, path = dataset.partition(":")
    return f"{kind}:{Path(path).name}" if colon and kind in WITH_PATH else dataset


def _row(file: Path, latency: Latency | None) -> str:
    """A file's line in the card's table."""
    times = [
        f"{latency.median[n]:.2f} ({latency.p95[n]:.2f})" if latency and n in latency.median else "" for n in BATCHES
    ]
    return f"| `{file.name}` | {KINDS[''.join(file.suffixes)]} | {megabytes(file)} | {' | '.join(times)} |"


def megabytes(file: Path) -> str:
    """The size of a file."""
    return f"{file.stat().st_size / 1e6:.2f} MB"


def model_card(
    trained: Trained, model: Model, size: int, crop: str, files: Mapping[Path, Latency | None], threads: int,
    checks: Sequence[str], licenses: Licenses = Licenses(),  # noqa: B008  (immutable)
) -> str:  # fmt: skip
    """``MODEL_CARD.md``.

    Args:
        trained: whose ``about`` has classes, mean, std and image size.
        model: the network.
        size: side in pixels of the images that the files take.
        crop: a key of :data:`hkd.data.images.CROPS`.
        files: that the card describes, with how long they take; None for what does not run by itself.
        threads: with which that was measured.
        checks: what was found when they were compared with the network, a line each.
        licenses: for the head, which is that of a model card of the Hugging Face Hub, and the text.
    """
    about = trained.about
    origin = f" Trained on {plain(without_place(about.get('dataset', 'an unnamed data set')))}"
    if trained.spec is not None and trained.spec.teacher is not None:
        origin += f" with {plain(method_label(trained.spec))} from the teacher {plain(trained.spec.teacher_names)}"
    if "top1" in about:
        origin += f"; top-1 on {evaluation_split(trained)} {about['top1']:.2f} % after epoch {about.get('epoch')}"
    head = {
        "license": licenses.network,
        "library_name": "hkd",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", *(["knowledge-distillation"] if trained.is_distilled else []),
                 *sorted({file.suffix.removeprefix(".") for file in files} & {"onnx", "safetensors"})],
        "metrics": ["accuracy"],
    }  # fmt: skip
    of_teacher = f" Of the teacher's weights: {plain(licenses.teacher)}." if trained.is_distilled else ""
    return CARD.format(
        head=yaml.safe_dump(head, sort_keys=False),
        license=plain(licenses.network),
        data_license=plain(licenses.data),
        teacher_license=of_teacher,
        name=plain(model.name),
        parameters=model.info_at(size).parameters,
        count=about["num_classes"],
        size=size,
        trained=f"{origin}.",
        files="\n".join(_row(file, latency) for file, latency in files.items()),
        conditions=plain(conditions(threads)),
        crop=IN_WORDS[crop],
        code=card_code(crop),
        mean=", ".join(f"{value:.4f}" for value in about["mean"]),
        std=", ".join(f"{value:.4f}" for value in about["std"]),
        checks="\n".join(f"- {plain(check)}" for check in checks) or "- no file that can be run by itself was written",
        classes=", ".join(map(plain, about["classes"])),
    )

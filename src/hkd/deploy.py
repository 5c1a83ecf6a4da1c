"""A trained network as files that others can run: ONNX, torch.export, safetensors, and a model card."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hkd.card import evaluation_split, model_card
from hkd.config import EvaluateConfig, ExportConfig
from hkd.data import make_loader, prepare
from hkd.data.transform import crop_for
from hkd.errors import RequestError, TrainingError
from hkd.files import inside, replacing, write_text
from hkd.models import read_model, save_model
from hkd.models.base import Model
from hkd.models.external import WrappedModel
from hkd.trained import Trained, find_trained, open_test

AT_ONCE = 256
"""Images a call while checking."""
NOISE_IMAGES = 64

Images = NDArray[np.uint8]
Logits = NDArray[np.float32]


class Deployed(nn.Module):
    """What is exported: pixels as decoders give them in, logits out. The normalisation is part of the network.

    Args:
        model: a trained network.
        mean, std: of the channels, for images scaled to [0, 1].
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Model, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # A wrapped network returns logits itself; the features that the wrapper records are not needed here.
        self.network = model.module if isinstance(model, WrappedModel) else model
        centre, spread = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
        self.register_buffer("scale", 1 / (255 * spread))
        self.register_buffer("shift", -centre / spread)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 to (B, C) float32."""
        out = self.network(image.float() * self.scale + self.shift)
        logits: Tensor = out if isinstance(out, Tensor) else out.logits
        return logits


@dataclass(frozen=True)
class Check:
    """A file's logits beside the network's.

    Attributes:
        file: the exported file.
        images: N, how many were compared.
        on: which they were, in words.
        difference: the largest difference between two logits.
        top1: the file's accuracy in percent; None on noise.
    """

    file: Path
    images: int
    on: str
    difference: float
    top1: float | None

    def describe(self) -> str:
        """One line."""
        accuracy = "" if self.top1 is None else f", top-1 {self.top1:.2f} %"
        return (
            f"{self.file.name}: same class for all {self.images:,} images of {self.on}{accuracy}; "
            f"logits differ by {self.difference:.1e} at most"
        )


@dataclass(frozen=True)
class Exported:
    """The files of an export, and the checks of those that can be run."""

    files: list[Path] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


@dataclass(frozen=True)
class _Samples:
    """Images to compare on.

    Attributes:
        images: (N, 3, S, S).
        labels: (N,) their classes; None for noise.
        name: what they are, in words.
    """

    images: Images
    labels: NDArray[np.int64] | None
    name: str


def export(config: ExportConfig) -> Exported:
    """Writes a trained network for use without this package, and checks each file against it.

    ``model.onnx`` and ``model.pt2`` take uint8 images (B, 3, S, S) of any batch size and return logits (B, C); classes
    and image size are in the ONNX file's metadata. ``model.safetensors`` is what :func:`hkd.load_model` reads.
    ``MODEL_CARD.md`` says what the network is and how to use the files.

    Raises:
        RequestError: the checkpoint does not say what it holds, or a package for a format is missing.
        TrainingError: a file gives an image another class than the network does, or cannot be written.
    """
    config.check()
    trained = find_trained(config.checkpoint, config.model)
    about = trained.about
    if missing := [name for name in ("num_classes", "classes", "mean", "std", "image_size") if name not in about]:
        raise RequestError(f"checkpoint: {trained.weights} was not written by hkd, it does not say its {missing[0]}")
    size = config.image_size or int(about["image_size"])
    model, _ = read_model(trained.weights, trained.name)
    deployed = Deployed(model, tuple(about["mean"]), tuple(about["std"])).eval()
    samples = _samples(config, trained, size)
    output = Path(config.output) if config.output else _beside(trained)
    try:
        output.mkdir(parents=True, exist_ok=True)
        result = _write_all(config, trained, model, deployed, samples, output)
    except OSError as error:
        raise TrainingError(f"cannot write to {output} ({error.strerror or error})") from error
    return result


def _write_all(
    config: ExportConfig, trained: Trained, model: Model, deployed: Deployed, samples: _Samples, output: Path
) -> Exported:
    """Each file as a whole or not at all."""
    about, size, result = trained.about, config.image_size or int(trained.about["image_size"]), Exported()
    for name in config.formats:
        if name == "safetensors":
            file = output / "model.safetensors"
            save_model(model, file, **{key: about[key] for key in about if key not in ("model", "num_classes")})
        else:
            write, suffix = {"onnx": (_write_onnx, "onnx"), "torch": (_write_torch, "pt2")}[name]
            file = output / f"model.{suffix}"
            run = write(deployed, file, size, about)
            result.checks.append(_check(deployed, run, samples, file))
        result.files.append(file)
    card = output / "MODEL_CARD.md"
    checks = [check.describe() for check in result.checks]
    write_text(card, model_card(trained, model, size, crop_for(about, size), result.files, checks))
    result.files.append(card)
    return result


def _beside(trained: Trained) -> Path:
    folder = trained.weights.parent
    return inside(folder.parent if folder.name == "checkpoints" else folder, "export")


def _samples(config: ExportConfig, trained: Trained, size: int) -> _Samples:
    """The run's test images; noise where they are missing."""
    evaluation = EvaluateConfig(
        checkpoint=config.checkpoint, dataset=config.dataset, data_root=config.data_root, image_size=size
    )
    try:
        data = prepare(open_test(evaluation, trained))
    except RequestError:
        if config.dataset is not None:
            raise
        noise = np.random.default_rng(0).integers(0, 256, (NOISE_IMAGES, 3, size, size), dtype=np.uint8)
        return _Samples(noise, None, "noise")
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in data.info.normalisation)
    batches = list(make_loader(data, AT_ONCE, torch.device("cpu"), train=False).epoch(0))
    # Loaders normalise; the pixels they started from are whole numbers.
    pixels = torch.cat([((batch.image * std + mean) * 255).round().to(torch.uint8) for batch in batches])
    labels = torch.cat([batch.label for batch in batches])
    name = f"{evaluation_split(trained) if config.dataset is None else 'the test split'} of {data.info.name}"
    return _Samples(pixels.contiguous().numpy(), labels.numpy(), name)


def _check(deployed: Deployed, run: Callable[[Images], Logits], samples: _Samples, file: Path) -> Check:
    """Compares a file with the network it was made of."""
    ours, theirs = [], []
    for start in range(0, len(samples.images), AT_ONCE):
        images = samples.images[start : start + AT_ONCE]
        with torch.no_grad():
            ours.append(deployed(torch.from_numpy(images)).numpy())
        theirs.append(run(images))
    a, b = np.concatenate(ours), np.concatenate(theirs)
    if differing := int((a.argmax(1) != b.argmax(1)).sum()):
        raise TrainingError(f"{file} gives {differing} of {len(a)} images another class than the network does")
    right = None if samples.labels is None else 100 * float((b.argmax(1) == samples.labels).mean())
    return Check(file, len(a), samples.name, float(np.abs(a - b).max()), right)


def _write_onnx(deployed: Deployed, file: Path, size: int, about: dict[str, Any]) -> Callable[[Images], Logits]:
    """Writes an ONNX file. Returns how onnxruntime runs it."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (the exporter needs it and says so less clearly)
    except ImportError as error:
        raise RequestError(f"formats: onnx needs the package {error.name}; pip install 'hkd[export]'") from error
    with _quiet():
        program = torch.onnx.export(
            deployed,
            (_example(size),),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1)}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {"classes": json.dumps(about["classes"]), "image_size": str(size)})
    onnx.checker.check_model(proto)
    with replacing(file) as output:
        output.write(proto.SerializeToString())
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(None, {"image": images})[0])


def _write_torch(deployed: Deployed, file: Path, size: int, about: dict[str, Any]) -> Callable[[Images], Logits]:
    """Writes a torch.export file. Returns how torch runs it."""
    shapes = {"image": {0: torch.export.Dim("batch", min=1)}}
    with _quiet():
        program = torch.export.export(deployed, (_example(size),), dynamic_shapes=shapes)
        content = io.BytesIO()  # torch's own writer ends a full disk otherwise than with an OSError
        torch.export.save(program, content)
        with replacing(file) as output:
            output.write(content.getbuffer())
        loaded = torch.export.load(file).module()

    def run(images: Images) -> Logits:
        with torch.no_grad():
            return np.asarray(loaded(torch.from_numpy(images)).numpy())

    return run


def _example(size: int) -> Tensor:
    return torch.zeros(2, 3, size, size, dtype=torch.uint8)  # two, for a batch of one would be taken as fixed


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of their own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

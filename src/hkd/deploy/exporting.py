"""A trained network as files that others can run: ONNX, torch.export, safetensors, and a model card."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hkd.config import EvaluateConfig, ExportConfig
from hkd.data import Dataset, make_loader, prepare
from hkd.data.open import worker_count
from hkd.data.transform import transform_of
from hkd.deploy.card import Licenses, card_code, megabytes, model_card, without_place
from hkd.deploy.card_check import check_card
from hkd.deploy.latency import Latency, conditions, measure
from hkd.deploy.quantise import quantise
from hkd.errors import RequestError, TrainingError
from hkd.files import inside, replacing, write_text
from hkd.models import read_model, save_model
from hkd.models.base import Model
from hkd.models.external import WrappedModel
from hkd.trained import Trained, evaluation_split, find_trained, open_test, open_training

AT_ONCE = 256
"""Images a call while checking."""
NOISE_IMAGES = 64
CALIBRATION_IMAGES = 256

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
        same: how many images have the class that the network gives them.
        before: the network's own accuracy in percent, where the file may differ.
    """

    file: Path
    images: int
    on: str
    difference: float
    top1: float | None
    same: int
    before: float | None = None

    def describe(self) -> str:
        """One line."""
        which = f"all {self.images:,}" if self.same == self.images else f"{self.same:,} of {self.images:,}"
        accuracy = "" if self.top1 is None else f", top-1 {self.top1:.2f} %"
        accuracy += "" if self.before is None else f" (before: {self.before:.2f} %)"
        return (
            f"{self.file.name}: same class for {which} images of {self.on}{accuracy}; "
            f"logits differ by {self.difference:.1e} at most"
        )


@dataclass(frozen=True)
class Exported:
    """The files of an export, the checks and the latency of those that can be run, and with how many threads.

    Attributes:
        card: what was found when the card's code was run; empty without an ONNX file.
    """

    files: list[Path] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    latency: dict[Path, Latency] = field(default_factory=dict)
    threads: int = field(default_factory=torch.get_num_threads)
    card: str = ""

    def describe(self) -> list[str]:
        """A line for each check, and for each file that runs by itself its size and its latency."""
        times = [f"{file.name}: {megabytes(file)}, {one.describe()}" for file, one in self.latency.items()]
        measured = [f"times are medians with {conditions(self.threads)}"] if times else []
        return [*(check.describe() for check in self.checks), *filter(None, [self.card]), *times, *measured]


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
    and image size are in the ONNX file's metadata. ``model.int8.onnx`` is the same in 8 bits, if it is asked for and
    does not lose more accuracy than it may. ``model.safetensors`` is what :func:`hkd.load_model` reads.
    ``MODEL_CARD.md`` says what the network is and how to use the files.

    Raises:
        RequestError: the checkpoint does not say what it holds, or a package for a format is missing.
        TrainingError: a file, or the card's code, gives an image another class than the network does, or a file cannot
            be written; or the int8 file loses too much, and is the only one that is not written.
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
    calibration = _calibration(config, trained, size) if config.int8 else None
    if config.int8 and samples.labels is None:
        raise RequestError("int8: expected the test images, to measure what it loses; name --dataset or --data-root")
    output = Path(config.output) if config.output else _beside(trained)
    try:
        output.mkdir(parents=True, exist_ok=True)
        return _write_all(config, trained, model, deployed, samples, calibration, output)
    except OSError as error:
        raise TrainingError(f"cannot write to {output} ({error.strerror or error})") from error


def _write_all(
    config: ExportConfig, trained: Trained, model: Model, deployed: Deployed, samples: _Samples,
    calibration: Images | None, output: Path,
) -> Exported:  # fmt: skip
    """Each file as a whole or not at all."""
    about, size, result = trained.about, config.image_size or int(trained.about["image_size"]), Exported()
    refused: TrainingError | None = None
    for name in config.formats:
        if name == "safetensors":
            file = output / "model.safetensors"
            kept = {key: about[key] for key in about if key not in ("model", "num_classes")}
            if "dataset" in kept:
                kept["dataset"] = without_place(kept["dataset"])
            save_model(model, file, **kept)
            result.files.append(file)
            continue
        if name == "onnx":
            proto = onnx_model(deployed, size, about, config.opset)
            file, run = output / "model.onnx", _write_onnx(proto, output / "model.onnx")
        else:
            file, run = output / "model.pt2", _write_torch(deployed, output / "model.pt2", size)
        result.checks.append(_check(deployed, run, samples, file))
        _measured(result, file, run, size)
        if name == "onnx" and calibration is not None:
            file, most = output / "model.int8.onnx", 1.0 if config.max_drop is None else config.max_drop
            try:
                run = _write_int8(proto, calibration, file, deployed, samples, most, result)
                _measured(result, file, run, size)
            except TrainingError as error:
                refused = error
    card, transform = output / "MODEL_CARD.md", transform_of(about, str(trained.weights), size)
    if "onnx" in config.formats:
        code = card_code(transform.crop)
        found = check_card(code, output, deployed, transform, about["classes"], samples.images)
        result = replace(result, card=found)
    checks = [*(check.describe() for check in result.checks), *filter(None, [result.card])]
    licenses = Licenses(config.license, config.data_license, config.teacher_license)
    latency = {file: result.latency.get(file) for file in result.files}
    write_text(card, model_card(trained, model, size, transform.crop, latency, result.threads, checks, licenses))
    result.files.append(card)
    if refused is not None:
        raise refused
    return result


def _measured(result: Exported, file: Path, run: Callable[[Images], Logits], size: int) -> None:
    """Adds a file, and how long it takes."""
    result.files.append(file)
    result.latency[file] = measure(run, size)


def _write_int8(
    proto: Any, calibration: Images, file: Path, deployed: Deployed, samples: _Samples, most: float, result: Exported
) -> Callable[[Images], Logits]:
    """Quantises an ONNX model and writes it, unless it loses too much.

    Raises:
        TrainingError: its accuracy on the test images is more than ``most`` points below the network's.
    """
    content = quantise(proto, calibration).SerializeToString()
    run = _running(content)
    check = _check(deployed, run, samples, file, may_differ=True)
    assert check.top1 is not None and check.before is not None
    if (drop := check.before - check.top1) > most:
        raise TrainingError(
            f"int8: top-1 on {check.on} falls from {check.before:.2f} % to {check.top1:.2f} %, {drop:.2f} points, and "
            f"--max-drop is {most:g}; {file.name} is not written"
        )
    with replacing(file) as output:
        output.write(content)
    result.checks.append(check)
    return run


def _beside(trained: Trained) -> Path:
    folder = trained.weights.parent
    return inside(folder.parent if folder.name == "checkpoints" else folder, "export")


def _samples(config: ExportConfig, trained: Trained, size: int) -> _Samples:
    """The run's test images; noise where they are missing."""
    try:
        data = open_test(_evaluation(config, size), trained)
    except RequestError:
        if config.dataset is not None:
            raise
        noise = np.random.default_rng(0).integers(0, 256, (NOISE_IMAGES, 3, size, size), dtype=np.uint8)
        return _Samples(noise, None, "noise")
    images, labels = _pixels(data, trained)
    name = f"{evaluation_split(trained, config.dataset)} of {without_place(data.info.name)}"
    return _Samples(images, labels, name)


def _calibration(config: ExportConfig, trained: Trained, size: int) -> Images:
    """Some of the training images, evenly spread, as an evaluation shows them."""
    data = open_training(_evaluation(config, size), trained)
    count = min(config.calibration_images or CALIBRATION_IMAGES, len(data))
    return _pixels(data.select(torch.arange(count) * len(data) // count, data.info), trained)[0]


def _evaluation(config: ExportConfig, size: int) -> EvaluateConfig:
    return EvaluateConfig(
        checkpoint=config.checkpoint, dataset=config.dataset, data_root=config.data_root, image_size=size
    )


def _pixels(data: Dataset, trained: Trained) -> tuple[Images, NDArray[np.int64]]:
    """Images (N, 3, S, S) as an evaluation shows them, and their labels."""
    bad_images = "stop" if trained.spec is None else trained.spec.data.bad_images
    data = prepare(data, None, worker_count(None), bad_images)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in data.info.normalisation)
    images, labels = [], []
    for batch in make_loader(data, AT_ONCE, torch.device("cpu"), train=False, bad_images=bad_images).epoch(0):
        # Loaders normalise; the pixels they started from are whole numbers.
        images.append(((batch.image * std + mean) * 255).round().to(torch.uint8))
        labels.append(batch.label)
    return torch.cat(images).contiguous().numpy(), torch.cat(labels).numpy()


def _check(
    deployed: Deployed, run: Callable[[Images], Logits], samples: _Samples, file: Path, *, may_differ: bool = False
) -> Check:
    """Compares a file with the network it was made of.

    Raises:
        TrainingError: it gives an image another class, and may not.
    """
    ours, theirs = [], []
    for start in range(0, len(samples.images), AT_ONCE):
        images = samples.images[start : start + AT_ONCE]
        with torch.no_grad():
            ours.append(deployed(torch.from_numpy(images)).numpy())
        theirs.append(run(images))
    a, b = np.concatenate(ours), np.concatenate(theirs)
    same = int((a.argmax(1) == b.argmax(1)).sum())
    if same < len(a) and not may_differ:
        raise TrainingError(f"{file} gives {len(a) - same} of {len(a)} images another class than the network does")
    before, right = (
        None if samples.labels is None else 100 * float((logits.argmax(1) == samples.labels).mean())
        for logits in (a, b)
    )
    return Check(file, len(a), samples.name, float(np.abs(a - b).max()), right, same, before if may_differ else None)


def onnx_model(deployed: Deployed, size: int, about: dict[str, Any], opset: int | None = None) -> Any:
    """An exported network as an ONNX model, for any batch size, with its classes and image size in the metadata.

    Args:
        deployed: in evaluation mode.
        size: side in pixels of its images.
        about: what stands beside the weights, with ``classes``.
        opset: version of ONNX's operators; None for the exporter's own.

    Raises:
        RequestError: a package is missing, or the network needs operators of a later version.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
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
            opset_version=opset,
        )
    assert program is not None
    proto = program.model_proto
    given = next(entry.version for entry in proto.opset_import if not entry.domain)
    if opset is not None and given != opset:
        raise RequestError(f"opset: expected one that this network can be written in; got {opset}, it needs {given}")
    onnx.helper.set_model_props(proto, {"classes": json.dumps(about["classes"]), "image_size": str(size)})
    onnx.checker.check_model(proto)
    return proto


def _write_onnx(proto: Any, file: Path) -> Callable[[Images], Logits]:
    """Writes an ONNX file. Returns how onnxruntime runs it."""
    with replacing(file) as output:
        output.write(proto.SerializeToString())
    return _running(str(file))


def _running(model: str | bytes) -> Callable[[Images], Logits]:
    """How onnxruntime runs a model, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(None, {"image": images})[0])


def _write_torch(deployed: Deployed, file: Path, size: int) -> Callable[[Images], Logits]:
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

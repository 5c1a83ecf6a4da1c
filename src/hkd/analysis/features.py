"""What a frozen network computes for the images of any data set, extracted once and kept in files."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.analysis.content import content_digest
from hkd.data import STREAM_SIZE, Dataset, make_loader, prepare
from hkd.data.decode import fits_in_memory
from hkd.data.open import worker_count
from hkd.errors import RequestError
from hkd.files import inside, replacing
from hkd.models import create_model, load_checkpoint
from hkd.runtime.engine import Engine
from hkd.runtime.records import read_arrays
from hkd.trained import Trained

FORMAT = 2
"""Raised whenever the same network and images give other features, or the file holds other arrays."""
LARGEST = 2**34
"""Bytes of a file of features."""


@dataclass(frozen=True)
class Features:
    """A data set as a network sees it.

    Attributes:
        embedding: (N, D) float32, the input of the classifier.
        logits: (N, C) float32.
        label: (N,) int64.
    """

    embedding: NDArray[np.float32]
    logits: NDArray[np.float32]
    label: NDArray[np.int64]


def extract(network: Trained, data: Dataset, engine: Engine, cache: Path, batch_size: int = 256) -> Features:
    """Runs a frozen network over a data set, or reads the features that an earlier call saved.

    Images are in the normalisation of the network's training, neither shuffled nor augmented.

    Args:
        network: the network.
        data: the images.
        engine: the device and the precision.
        cache: folder of saved features. A file's name is a digest of the weights, the content of the images, their
            size and normalisation, the precision and :data:`FORMAT`: a change of any is another file.
        batch_size: images a step; does not take part in the name.
    """
    inside(cache.parent, cache.name)
    data = _as_learnt(data, network)
    bad_images = "stop" if network.spec is None else network.spec.data.bad_images
    file = inside(cache, f"features-{_digest(network, data, engine, bad_images)}.npz")
    with suppress(OSError, RequestError):  # a file that is missing or was cut short is computed again
        saved = read_arrays(file, {"embedding": ("f", 2), "logits": ("f", 2), "label": ("i", 1)}, LARGEST)
        if len({len(part) for part in saved.values()}) == 1 and saved["embedding"].dtype == np.float32:
            return Features(**saved)
    features = _run(network, prepare(data, None, worker_count(None), bad_images), engine, batch_size, bad_images)
    cache.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        np.savez(partial, **dataclasses.asdict(features))
    return features


def _as_learnt(data: Dataset, network: Trained) -> Dataset:
    about = network.about
    if "mean" not in about:
        return data
    images = copy.copy(data)  # the caller's object keeps its normalisation
    images.info = dataclasses.replace(images.info, mean=tuple(about["mean"]), std=tuple(about["std"]))
    return images


@torch.no_grad()
def _run(network: Trained, data: Dataset, engine: Engine, batch_size: int, bad_images: str) -> Features:
    model = create_model(
        network.name, network.about.get("num_classes") or data.info.num_classes,
        image_size=network.about.get("image_size") or data.info.image_size,
    )  # fmt: skip
    load_checkpoint(model, network.weights)
    model.to(engine.device).to(memory_format=torch.channels_last).eval()
    loader = make_loader(data, batch_size, engine.device, train=False, bad_images=bad_images)
    parts: dict[str, list[torch.Tensor]] = {"embedding": [], "logits": [], "label": []}
    for batch in loader.epoch(0):
        with engine.autocast():
            out = model(batch.image)
        parts["embedding"].append(out.embedding.float())
        parts["logits"].append(out.logits.float())
        parts["label"].append(batch.label)
    return Features(**{name: torch.cat(values).cpu().numpy() for name, values in parts.items()})


def _digest(network: Trained, data: Dataset, engine: Engine, bad_images: str) -> str:
    """Changes with everything that decides the features but the kind of device."""
    info = data.info
    settings = (
        FORMAT, network.name, info.mean, info.std, info.image_size or STREAM_SIZE, fits_in_memory(data), bad_images,
        str(_precision(engine)), content_digest(data),
    )  # fmt: skip
    digest = hashlib.sha256(network.weights.read_bytes())
    digest.update(repr(settings).encode())
    return digest.hexdigest()[:32]


def _precision(engine: Engine) -> torch.dtype:
    """The type in which the engine lets networks multiply."""
    device = engine.device.type
    with engine.autocast():
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32

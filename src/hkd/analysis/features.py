"""What a frozen network sees in the images of any data set, extracted once."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hkd.data import STREAM_SIZE, ArrayDataset, Dataset, FileDataset, make_loader, prepare
from hkd.jobs import Trained
from hkd.models import create_model, load_checkpoint
from hkd.runtime.engine import Engine


@dataclass(frozen=True)
class Features:
    """A data set as a network sees it.

    Attributes:
        embedding: (N, D) float32, what enters the classifier.
        logits: (N, C) float32.
        label: (N,) int64.
    """

    embedding: NDArray[np.float32]
    logits: NDArray[np.float32]
    label: NDArray[np.int64]


def extract(found: Trained, data: Dataset, engine: Engine, cache: Path, batch_size: int = 256) -> Features:
    """Runs a frozen network over a data set, or reads what an earlier call kept.

    Images are normalised as the network learnt it, and neither shuffled nor augmented.

    Args:
        found: the network.
        data: the images.
        engine: where to compute.
        cache: folder of what is kept; the name of a file tells weights and images apart by their content.
    """
    data = prepare(_as_learnt(data, found), bad_images=found.asked.get("bad_images", "stop"))
    file = cache / f"features-{_digest(found, data)}.npz"
    try:
        with np.load(file, allow_pickle=False) as kept:
            return Features(kept["embedding"], kept["logits"], kept["label"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        pass  # not there yet, or cut short: it can be made again
    features = _run(found, data, engine, batch_size)
    cache.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial.npz")
    np.savez(partial, **dataclasses.asdict(features))
    partial.replace(file)
    return features


def _as_learnt(data: Dataset, found: Trained) -> Dataset:
    about = found.about
    if "mean" not in about:
        return data
    images = copy.copy(data)  # the caller's keeps its own normalisation
    images.info = dataclasses.replace(images.info, mean=tuple(about["mean"]), std=tuple(about["std"]))
    return images


@torch.no_grad()
def _run(found: Trained, data: Dataset, engine: Engine, batch_size: int) -> Features:
    model = create_model(found.name, found.about.get("num_classes") or data.info.num_classes)
    load_checkpoint(model, found.weights)
    model.to(engine.device).to(memory_format=torch.channels_last).eval()
    loader = make_loader(data, batch_size, engine.device, train=False)
    parts: dict[str, list[torch.Tensor]] = {"embedding": [], "logits": [], "label": []}
    for batch in loader.epoch(0):
        with engine.autocast():
            out = model(batch.image)
        parts["embedding"].append(out.embedding.float())
        parts["logits"].append(out.logits.float())
        parts["label"].append(batch.label)
    return Features(**{name: torch.cat(values).cpu().numpy() for name, values in parts.items()})


def _digest(found: Trained, data: Dataset) -> str:
    """A name for what a network sees in a data set: of the weights, the normalisation and the images."""
    sha = hashlib.sha256(found.weights.read_bytes())
    sha.update(repr((found.name, data.info.mean, data.info.std, data.info.image_size or STREAM_SIZE)).encode())
    sha.update(data.labels.numpy().tobytes())
    if isinstance(data, ArrayDataset):
        sha.update(data.images.contiguous().numpy().tobytes())
    elif isinstance(data, FileDataset):
        sha.update(repr((str(data.files.path), data.names)).encode())
    return sha.hexdigest()[:24]

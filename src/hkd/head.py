"""Training of a network's head alone: the features of all images once, then a linear classifier on them."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from hkd.data import make_loader
from hkd.data.open import worker_count
from hkd.errors import RequestError
from hkd.metrics import Evaluation, evaluate_model
from hkd.models import Model
from hkd.models.start import head_layer
from hkd.parts import Parts
from hkd.probe import Array, Labels, best_penalty, fit_logistic
from hkd.runtime.engine import Engine

HOLDOUT = 0.2
"""Of the training images, on which the penalty is chosen."""
USUAL_PENALTY = 1e-3
"""Where there are too few images to choose it."""


@dataclass(frozen=True)
class FittedHead:
    """What the training of a head gives.

    Attributes:
        evaluated: the network on the evaluation images.
        seconds: that it took.
        images: of the training split.
    """

    evaluated: Evaluation
    seconds: float
    images: int

    def summary(self) -> dict[str, float]:
        """As a training of one epoch has it."""
        top1, top5 = self.evaluated.top1, self.evaluated.top5
        numbers = {"top1_last": top1, "top1_best": top1, "best_epoch": 1, "top5_last": top5, "epochs": 1}
        return numbers | {
            "seconds": self.seconds, "images_per_second": self.images / max(self.seconds, 1e-9), "skipped_steps": 0,
        }  # fmt: skip

    def row(self) -> dict[str, float]:
        """As a line of ``metrics.jsonl``."""
        return {"epoch": 1, **self.evaluated.row(), "seconds": self.seconds}


def fit_head(parts: Parts, engine: Engine) -> FittedHead:
    """Fits the head of a run's network, in place; nothing else of it changes.

    The images are as in an evaluation, not augmented. The head is the logistic regression of :mod:`hkd.probe`, whose
    penalty is chosen on a fifth of the training images. Every process does the same work.

    Raises:
        RequestError: the network's logits are not those of a linear layer with a bias.
    """
    started, model, data = time.perf_counter(), parts.student, parts.data
    layer = head_layer(model)
    if layer is None or layer.bias is None:
        raise RequestError(f"student_train: expected a network that classifies with a linear layer; got {model.name}")
    for part in model.modules():
        if isinstance(part, nn.Linear | nn.Conv2d) and part is not layer and part.weight is layer.weight:
            raise RequestError(f"student_train: the head of {model.name} shares its weights with another layer")
    model.to(engine.device).to(memory_format=torch.channels_last).eval()
    features, labels = _features(model, parts, engine)
    seed, classes = parts.spec.seed, data.train.info.num_classes
    try:
        penalty, held = best_penalty(fit_logistic, features, labels, HOLDOUT, seed)
        chosen = f"penalty {penalty:g}, chosen on {100 * HOLDOUT:.0f} % of them with top-1 {held:.2f} %"
    except RequestError:  # too few images of a class
        penalty, chosen = USUAL_PENALTY, f"penalty {USUAL_PENALTY:g}, of too few to choose it"
    if engine.is_main:
        words = f"{len(labels):,} images as {features.shape[1]} features of {model.name}"
        print(f"{words}; a linear head, {chosen}", file=sys.stderr, flush=True)
    fitted = fit_logistic(features, labels, penalty, seed, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(fitted.weight).view(layer.weight.shape))
        layer.bias.copy_(torch.from_numpy(fitted.bias))
    test = make_loader(
        data.test, 256, engine.device, train=False, workers=worker_count(parts.spec.runtime.workers),
        share=engine.share, bad_images=parts.spec.data.bad_images,
    )  # fmt: skip
    evaluated = evaluate_model(model, test, engine)
    return FittedHead(evaluated, time.perf_counter() - started, len(labels))


@torch.no_grad()
def _features(model: Model, parts: Parts, engine: Engine) -> tuple[Array, Labels]:
    """What enters the head for each training image, and its class."""
    runtime = parts.spec.runtime
    train = parts.data.labelled.train
    loader = make_loader(
        train, 256, engine.device, train=False, workers=worker_count(runtime.workers),
        bad_images=parts.spec.data.bad_images,
    )  # fmt: skip
    embedding: list[Tensor] = []
    label: list[Tensor] = []
    count = len(train)
    with tqdm(
        total=count, unit="image", desc=f"{model.name} features", disable=None if engine.is_main else True
    ) as bar:
        for batch in loader.epoch(0):
            with engine.autocast():
                out = model(batch.image)
            embedding.append(out.embedding.float().cpu())
            label.append(batch.label.cpu())
            bar.update(len(batch.label))
    features = torch.cat(embedding).numpy()
    if not np.isfinite(features).all():
        raise RequestError(f"student_train: features of {model.name} are NaN or infinite")
    return features, torch.cat(label).numpy()

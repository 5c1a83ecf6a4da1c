"""Training images that are mixed with others of their batch."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from hkd.data.loader import Loader
from hkd.types import Batch, Mixture


class MixedLoader(Loader):
    r"""The batches of a loader, each image mixed with its partner, the image at the same place from the batch's end.

    Mixup is a sum, :math:`\lambda x + (1 - \lambda) x'`; cutmix puts a box of x' in the place of x's, whose sides are
    :math:`\sqrt{1 - \lambda}` of the image's and whose middle is uniform, cut off at the border, and λ becomes the
    part of the area that is still of x. λ ~ Beta(α, α) is one for the batch; with both, each batch draws one of the two
    with equal chance. Where λ is below 1/2, image and partner change places, which leaves the pairs of the batch as
    they are, so that ``label`` and ``index`` are always those of the larger part.

    What is drawn depends on the seed, the epoch and the step alone. Several processes draw alike, each for its part of
    the batch, in which the partners are. Mixed images have no view, and no place in a table.

    Args:
        loader: for training.
        mixup, cutmix: α, 0 for none; not both 0.
        seed: of the draws.

    Sources: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; Yun et al., "CutMix: Regularization
    Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019; one λ a batch and the partners are
    timm's.
    """

    unrepeated = "--mixup and --cutmix mix other images in every epoch"

    def __init__(self, loader: Loader, mixup: float, cutmix: float, seed: int) -> None:
        self._loader, self._mixup, self._cutmix, self._seed = loader, mixup, cutmix, seed
        self.dataset, self.batches, self.note = loader.dataset, loader.batches, loader.note
        self.view_count, self.augmentation, self.padding = loader.view_count, loader.augmentation, loader.padding

    def used_views(self) -> Tensor:
        return self._loader.used_views()

    def images(self, index: Tensor, view: Tensor) -> Tensor:
        return self._loader.images(index, view)

    def epoch(self, number: int, done: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(self._loader.epoch(number, done), done):
            yield self._mixed(batch, random.Random(f"mix {self._seed} {number} {step}"))

    def _mixed(self, batch: Batch, draw: random.Random) -> Batch:
        cuts = self._cutmix > 0 and (self._mixup == 0 or draw.random() < 0.5)
        alpha = self._cutmix if cuts else self._mixup
        weight = 1 - draw.betavariate(alpha, alpha)
        image, partner = batch.image, batch.image.flip(0)
        if cuts:
            top, bottom, left, right = box(weight, image.shape[2], image.shape[3], draw)
            weight = (bottom - top) * (right - left) / (image.shape[2] * image.shape[3])
            if weight > 0.5:
                image, partner = partner, image
            image = image.clone()
            image[:, :, top:bottom, left:right] = partner[:, :, top:bottom, left:right]
        else:
            image = image.lerp(partner, min(weight, 1 - weight))
        part = torch.full((), min(weight, 1 - weight), device=image.device)
        return replace(batch, image=image, view=None, place=None, mixture=Mixture(batch.label.flip(0), part))


def box(weight: float, height: int, width: int, draw: random.Random) -> tuple[int, int, int, int]:
    """A random box of a part ``weight`` of an image before it is cut off at the border: top, bottom, left, right."""
    ends: list[int] = []
    for side in (height, width):
        half, middle = int(side * math.sqrt(weight)) // 2, draw.randrange(side)
        ends += [max(middle - half, 0), min(middle + half, side)]
    return ends[0], ends[1], ends[2], ends[3]

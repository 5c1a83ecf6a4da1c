"""How stage maps of two networks are paired, whatever their numbers, widths and resolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.errors import IncompatibleError
from hkd.methods.base import Setup
from hkd.numerics.precision import at_least_float32
from hkd.types import ModelOutput

Pairs = tuple[tuple[int, int], ...]


def pair_stages(setup: Setup, method: str, *, stem: bool = False, least: int = 1) -> Pairs:
    """Which stage map of the student is compared with which of the teacher: the deepest with the deepest, and so on
    backwards, until the network with fewer has no more.

    Args:
        setup: of the method.
        method: its name, for the error.
        stem: whether the stems' maps are paired too.
        least: how many pairs the method needs.

    Returns:
        (student, teacher) positions in ``ModelOutput.features``, shallow to deep.

    Raises:
        IncompatibleError: a network has too few stage maps.
    """
    first = 0 if stem else 1
    stages_s, stages_t = len(setup.student.stages), len(setup.teacher.stages)
    count = min(stages_s, stages_t) - first
    if count < least:
        fewest = setup.student if stages_s <= stages_t else setup.teacher
        raise IncompatibleError(
            f"method: {method} compares {least} or more stage maps{'' if stem else ' behind the stem'}, and "
            f"{fewest.name} has {max(len(fewest.stages) - first, 0)}; wrap_model(..., stages=...) names them"
        )
    return tuple((stages_s - n, stages_t - n) for n in range(count, 0, -1))


def channels(setup: Setup, pair: tuple[int, int]) -> tuple[int, int]:
    """The widths of a pair of stage maps, student's first."""
    return setup.student.stages[pair[0]][0], setup.teacher.stages[pair[1]][0]


def to_same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B, c, h, w) at the smaller of their heights and widths, by average pooling."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return tuple(x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size) for x in (a, b))  # type: ignore[return-value]


def paired_maps(pairs: Pairs, student: ModelOutput, teacher: ModelOutput) -> list[tuple[Tensor, Tensor]]:
    """The paired stage maps at one resolution each, student's first."""
    return [to_same_size(student.features[s], teacher.features[t]) for s, t in pairs]


def unit(x: Tensor) -> Tensor:
    """n(x) = x / ||x||₂ over all but the batch axis, flattened: (B, ...) -> (B, n)."""
    return F.normalize(x.flatten(1), dim=1)


def attention(feature: Tensor) -> Tensor:
    """Where a network looks: the mean square over channels as a unit vector, (B, c, h, w) -> (B, h w)."""
    return unit(at_least_float32(feature).square().mean(dim=1))


def summed(terms: list[Tensor]) -> Tensor:
    """The sum of the terms of all stages."""
    return torch.stack(terms).sum()


def regressor(student: int, teacher: int, *, relu: bool = True) -> nn.Sequential:
    """From the student's width to the teacher's: a 1x1 convolution, batch normalisation and, with ``relu``, a ReLU."""
    layers = [nn.Conv2d(student, teacher, 1), nn.BatchNorm2d(teacher)]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)

"""How a student learns from its teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hkd.options import option, recorded

UNLABELLED_SHARE = 0.5
"""The usual part of a batch that has no label, where there are such images."""


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """The objective: ce CE + kd KD + weight (the sum of the method's terms). None is the method's published weight.

    ``settings`` is an instance of the method's own ``Config`` (None for its defaults, or for a method without).
    """

    name: str = option("hkd", "how to learn from the teacher: see `hkd list methods`; NAME+kd adds KD", flat="method")
    weight: float | None = option(None, "β, of the method's terms [the method's: hkd 3]", ge=0, flat="method_weight")
    kd_weight: float | None = option(None, "α, of the KD term [1 with +kd, else the method's, mostly 0; kd .9]", ge=0)
    ce_weight: float | None = option(None, "γ, of the cross-entropy [the method's, mostly 1; kd .1]", ge=0)
    kd_temperature: float = option(4.0, "T of the KD term", gt=0)
    kd_standardise: bool = option(
        False, "compare standardised logits in the KD term (LSKD; there with T 2)", neutral=False
    )
    unlabelled: str | None = option(
        None,
        "images without labels to learn from the teacher: a folder, a zip archive, or stl10 for its own",
        key=False,
    )
    unlabelled_share: float | None = option(
        None, "the part of each batch that has no label; an epoch counts the images that have one [0.5]", gt=0, lt=1,
        neutral=None,
    )  # fmt: skip
    pseudo_labels: float | None = option(
        None, "give an unlabelled image the teacher's class in the memory bank where its probability is at least this, "
        "in [0, 1] [a class of its own]", ge=0, le=1, neutral=None,
    )  # fmt: skip
    settings: Any = None
    revision: int = recorded(1, "method_revision")
    """Of the method's code; 0 for runs of version 0.1."""

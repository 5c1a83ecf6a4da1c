"""The contract between a distillation method and the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from hkd.models.base import ModelInfo
from hkd.registry import Registry
from hkd.types import Batch, ModelOutput


class Weights(NamedTuple):
    """The training objective: ce CE + kd T² KL + method (the sum of the method's terms)."""

    ce: float = 1.0
    """γ, of the cross-entropy with the labels."""
    kd: float = 0.0
    """α, of the classical distillation term."""
    method: float = 1.0
    """β, of the method's own terms."""


@dataclass(frozen=True)
class Setup:
    """What a method may know when it is built.

    Attributes:
        student, teacher: the two networks in numbers, at the image size of the training.
        num_samples: N, how many training images there are.
        labels: (N,) their classes.
        seed: of the run.
    """

    student: ModelInfo
    teacher: ModelInfo
    num_samples: int
    labels: Tensor | None
    seed: int = 0


@dataclass(frozen=True)
class NoConfig:
    """For methods without settings."""


C = TypeVar("C")


class Method(nn.Module, ABC, Generic[C]):
    """A way to learn from a teacher beside the labels and the classical distillation term.

    A method owns whatever it trains; the loop optimises all its parameters, saves all its state, and calls it once a
    step with both networks' outputs. The teacher's carry no gradient.

    Class attributes:
        Config: a frozen dataclass of its settings, written in the same file. They go by ``--<settings>.<field>``.
        settings: the prefix of its settings on the command line.
        weights: the published defaults.
    """

    Config: ClassVar[type[Any]] = NoConfig
    settings: ClassVar[str] = ""
    weights: ClassVar[Weights] = Weights()

    @abstractmethod
    def __init__(self, setup: Setup, config: C) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        """The method's terms: named, unweighted, scalar. Their sum is what its weight multiplies."""


methods: Registry[type[Method[Any]]] = Registry("method")
"""Methods by name. A method registers itself with ``@methods.register("name")``."""

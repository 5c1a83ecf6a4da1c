"""A method with a setting."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hkd.methods import Method, Setup, Weights, methods
from hkd.options import option
from hkd.types import Batch, ModelOutput


@dataclass(frozen=True)
class MarginConfig:
    """The setting of the margin."""

    power: float = option(1.0, "what the difference is raised to", gt=0, le=4)


@methods.register("margin")
class Margin(Method[MarginConfig]):
    """The student's gap between its two highest logits is to be the teacher's."""

    Config = MarginConfig
    settings = "margin"
    weights = Weights(method=0.5)
    needs = frozenset({"logits"})

    def __init__(self, setup: Setup, config: MarginConfig) -> None:
        super().__init__(setup, config)
        self.power = config.power

    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        gaps = [logits.topk(2).values @ logits.new_tensor([1.0, -1.0]) for logits in (student.logits, teacher.logits)]
        return {"margin": (gaps[0] - gaps[1]).abs().pow(self.power).mean()}

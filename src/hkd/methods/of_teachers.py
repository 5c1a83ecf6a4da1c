"""One method, several teachers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hkd.errors import RequestError
from hkd.methods.base import Method, Progress, Setup
from hkd.types import Batch, ModelOutput

READ = frozenset({"logits", "embedding"})
"""What is read of several teachers: what their tables hold, too."""
SEEDS = 2**32
"""How far the seeds of two teachers are apart: further than those of two runs."""


def seed_of(seed: int, teacher: int) -> int:
    """The seed of a teacher's instance: the first has the run's, and no two teachers or runs share one."""
    return seed if teacher == 0 else (seed + teacher * SEEDS) % 2**64


class OfTeachers(Method[Any]):
    r"""An instance of a method for each teacher, with parameters, a memory and draws of its own.

    .. math:: \mathrm{term}(s, t_1 \ldots t_n) = \frac{1}{n} \sum_i \mathrm{term}_i(s, t_i)

    Every instance sees the same student. It is called with the teachers' outputs in their order, where a method of one
    teacher is called with one.

    Args:
        setup: that of the first teacher.
        instances: of one kind and the same settings, in the order of the teachers, two or more.

    Raises:
        RequestError: the method reads more of a teacher than logits and embedding, or has a stage before the training.
    """

    needs = READ

    def __init__(self, setup: Setup, instances: Sequence[Method[Any]]) -> None:
        first = instances[0]
        super().__init__(setup, first.config)
        check_reads(type(first))
        if first.initialisation is not None:
            raise _refused(type(first), "has a stage before the training")
        # On the instance, since they are those of the method: its needs, its published weights and so on.
        of_kind = (
            "settings", "weights", "needs", "revision", "always_trains_all", "follows_progress", "takes_mixed",
            "remembers_classes", "Config",
        )  # fmt: skip
        self.__dict__.update({name: getattr(first, name) for name in (*of_kind, "default_weights", "warmup_epochs")})
        self.instances = nn.ModuleList(instances)

    @property
    def _methods(self) -> list[Method[Any]]:
        return list(self.instances)  # type: ignore[arg-type]

    @property
    def progress(self) -> Progress | None:
        """How far the training is; setting it tells each instance."""
        return self._methods[0].progress

    @progress.setter
    def progress(self, progress: Progress | None) -> None:
        for method in self._methods:
            method.progress = progress

    def begin(self) -> None:
        for method in self._methods:
            method.begin()

    def __call__(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput | Sequence[ModelOutput]
    ) -> dict[str, Tensor]:
        """:meth:`forward`, in which each instance sees to it that no gradient reaches its teacher."""
        terms: dict[str, Tensor] = nn.Module.__call__(self, batch, student, teacher)
        return terms

    def forward(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput | Sequence[ModelOutput]
    ) -> dict[str, Tensor]:
        """The means over teachers of the terms of each name.

        Raises:
            RequestError: there are not as many outputs as teachers.
        """
        taught = (teacher,) if isinstance(teacher, ModelOutput) else tuple(teacher)
        if len(taught) != len(self.instances):
            raise RequestError(f"teacher: expected the outputs of {len(self.instances)} teachers; got {len(taught)}")
        each = [method(batch, student, output) for method, output in zip(self._methods, taught, strict=True)]
        return {name: torch.stack([terms[name] for terms in each]).mean() for name in each[0]}

    def undo_step(self) -> None:
        for method in self._methods:
            method.undo_step()


def check_reads(kind: type[Method[Any]]) -> None:
    """Raises :class:`RequestError` for a method that several teachers cannot serve."""
    if other := sorted(kind.needs - READ):
        raise _refused(kind, f"needs {' and '.join(other)}")


def _refused(kind: type[Method[Any]], why: str) -> RequestError:
    return RequestError(
        f"method: {kind.__name__} {why}; several teachers serve methods of logits and embeddings, without such a stage"
    )

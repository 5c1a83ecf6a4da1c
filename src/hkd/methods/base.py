"""The contract between a distillation method and the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from hkd.errors import RequestError
from hkd.models.base import Model, ModelInfo
from hkd.registry import Registry
from hkd.types import Batch, ModelOutput


class Weights(NamedTuple):
    """The training objective: ce CE + kd T² KL + method (the sum of the method's terms)."""

    ce: float = 1.0
    """γ, of the cross-entropy with the labels."""
    kd: float = 0.0
    """α, of the classical distillation term."""
    method: float = 1.0
    """β, of the method's terms."""


@dataclass(frozen=True)
class Setup:
    """What a method is built from.

    Attributes:
        student, teacher: widths and stages of the two networks, at the image size of the training.
        num_samples: N, how many training images there are.
        labels: (N,) their classes.
        seed: of the run.
        networks: the student and the teacher, for a method that shows them other images than the batch, or classifies
            other vectors.
    """

    student: ModelInfo
    teacher: ModelInfo
    num_samples: int
    labels: Tensor | None
    seed: int = 0
    networks: tuple[Model, Model] | None = None


@dataclass(frozen=True)
class Initialisation:
    """A stage before the training, in which the sum of ``terms`` alone is minimised.

    Attributes:
        epochs: its length.
        terms: a function of the batch, the student's output and the teacher's; without the student's where
            ``with_student`` is False.
        with_student: whether the student is run and trained in it; if not, only parts of the method are.
        lr: its learning rate; None is the run's at the start.
        milestones: when, as parts of the stage, the rate is divided by 10.
    """

    epochs: int
    terms: Callable[..., dict[str, Tensor]]
    with_student: bool = True
    lr: float | None = None
    milestones: tuple[float, ...] = ()

    def __call__(self, batch: Batch, student: ModelOutput | None, teacher: ModelOutput) -> dict[str, Tensor]:
        """The terms, with no way for a gradient to the teacher."""
        outputs = (student, teacher.detach()) if self.with_student else (teacher.detach(),)
        return self.terms(batch, *outputs)

    def lr_at(self, epoch: int, lr: float) -> float:
        """The learning rate of an epoch of the stage, counted from 0, in a run that starts with ``lr``."""
        start = lr if self.lr is None else self.lr
        return float(start * 0.1 ** sum(epoch >= round(m * self.epochs) for m in self.milestones))


class Progress(NamedTuple):
    """How far the training is."""

    epoch: int
    """Counted from 0; below 0 in the method's initialisation."""
    epochs: int
    """Of the whole training, without the initialisation."""


@dataclass(frozen=True)
class NoConfig:
    """For methods without settings."""


C = TypeVar("C")


NEEDS = frozenset({"logits", "embedding", "features", "preactivations", "images", "strong", "classifier"})
"""What a method may need of the teacher: parts of its output for the batch; its output for other images, which the
method makes ("images") or which are the strong view (:attr:`hkd.Batch.strong`); its classifier for other vectors."""
SHOWS = frozenset({"images", "strong"})
"""The needs for which a method shows the networks other images than the batch's."""


class Method(nn.Module, ABC, Generic[C]):
    """A way to learn from a teacher beside the labels and the classical distillation term.

    A method owns all that it trains; the loop optimises all its parameters, saves all its state, and calls it once a
    step with both networks' outputs. The teacher's carry no gradient (:meth:`__call__` sees to it).

    Class attributes:
        Config: a frozen dataclass of its settings, written in the same file, each with its range. On the command line
            they are ``--<settings>.<field>``.
        settings: the prefix of its settings on the command line.
        weights: the published defaults.
        needs: which of :data:`NEEDS` it reads of the teacher. What is not needed may be missing from the
            :class:`ModelOutput` that it is called with; without :data:`SHOWS` the teacher need not be run at all where
            its outputs are known. The strong view is made for methods that name "strong" alone. "preactivations" beside
            "features" are read where a network has them; "features" include the pooled map. "classifier" is that of
            ``Setup.networks``, of equal classes (:meth:`hkd.models.Model.classify`, or its weights, which are final
            when the first step is taken, not before).
        revision: raised by one whenever the method learns something else than before from the same settings. Part of a
            run's key.
        always_trains_all: whether each of its parameters gets a gradient in every step of the training in which its
            weight is not 0. False where parts are trained in its initialisation alone.
        remembers_classes: whether it has a memory of the training images and their classes, ``Setup.labels``.
        follows_progress: whether its terms or their gradients change with ``progress``.
        takes_mixed: whether it learns from mixed images (:attr:`hkd.Batch.mixture`), which are of two classes and no
            row of a data set: of a method of logits that reads neither ``label`` nor ``index``.

    Attributes:
        initialisation: the stage before the training, of a method that has one.
        warmup_epochs: over how many epochs its weight rises to β, in equal steps.
        progress: how far the training is, set before each epoch, also where a run continues; None where a loop does not
            say it. No part of the state.
        predictor: the network that takes the student's place, in the training and for good: it is what sees the
            images, and what is evaluated, saved, exported and counted. It holds the student, and all that is trained
            beside it. None where that is the student itself.
        pairs: which stage maps are compared, (student's, teacher's) positions in ``ModelOutput.features``.
    """

    Config: ClassVar[type[Any]] = NoConfig
    settings: ClassVar[str] = ""
    weights: ClassVar[Weights] = Weights()
    needs: ClassVar[frozenset[str]] = NEEDS - {"strong"}
    revision: ClassVar[int] = 1
    always_trains_all: ClassVar[bool] = True
    remembers_classes: ClassVar[bool] = False
    follows_progress: ClassVar[bool] = False
    takes_mixed: ClassVar[bool] = False

    initialisation: Initialisation | None = None
    warmup_epochs: int = 0
    progress: Progress | None = None
    pairs: tuple[tuple[int, int], ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if wrong := sorted(cls.needs - NEEDS):
            raise TypeError(f"{cls.__name__}.needs: expected some of {', '.join(sorted(NEEDS))}; got {wrong[0]!r}")

    def __init__(self, setup: Setup, config: C) -> None:
        super().__init__()
        self.config = config
        # In a tuple, since they are no parts of the method; not kept in vain, so that a teacher can be let go of.
        self.networks = setup.networks if self.needs & (SHOWS | {"classifier"}) else None
        self._predictors: tuple[Model, ...] = ()

    @classmethod
    def default_weights(cls, config: C) -> Weights:
        """The published weights, which may depend on the settings."""
        return cls.weights

    @property
    def predictor(self) -> Model | None:
        return self._predictors[0] if self._predictors else None

    def begin(self) -> None:
        """Is called once before the first step of each start, when both networks have their weights."""

    @property
    def ramp(self) -> float:
        """The part of its weight that the warm-up has reached; 1 in the initialisation and where no progress is set."""
        if self.progress is None or self.progress.epoch < 0 or not self.warmup_epochs:
            return 1.0
        return min(1.0, (self.progress.epoch + 1) / self.warmup_epochs)

    def __call__(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        """:meth:`forward`, with no way for a gradient to the teacher, whatever loop calls it."""
        terms: dict[str, Tensor] = super().__call__(batch, student, teacher.detach())
        return terms

    @abstractmethod
    def forward(self, batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        """The method's terms: named, unweighted, scalar. Their sum is what its weight multiplies."""

    def student_sees(self, image: Tensor, *, keep_statistics: bool = False) -> ModelOutput:
        """The student's output for other images than the batch's, (n, 3, H, W), by a forward pass after the batch's.

        With ``keep_statistics`` its batch norms normalise by these images, but do not count them for the evaluation.
        """
        student = None if self.networks is None else self.networks[0]
        with nullcontext() if student is None or not keep_statistics else frozen_running_statistics(student):
            return self._shown(0, image)

    def teacher_sees(self, image: Tensor) -> ModelOutput:
        """The teacher's output for other images than the batch's, (n, 3, H, W), without a way for a gradient."""
        with torch.no_grad():
            return self._shown(1, image).detach()

    def _shown(self, role: int, image: Tensor) -> ModelOutput:
        if self.networks is None:
            raise ValueError("networks: expected the student and the teacher, which see other images; got none")
        output: ModelOutput = self.networks[role](image)
        return output

    @staticmethod
    def strong_of(batch: Batch) -> Tensor:
        """The batch's strong view, (B, 3, H, W).

        Raises:
            RequestError: it has none.
        """
        if batch.strong is None or batch.strong.shape != batch.image.shape:
            got = "none" if batch.strong is None else str(tuple(batch.strong.shape))
            raise RequestError(f"strong: expected a second view of the images, {tuple(batch.image.shape)}; got {got}")
        return batch.strong

    def undo_step(self) -> None:
        """Takes back what the last call in training mode changed beside gradients, for a step that is skipped.

        A method with a memory overrides it, so that a skipped step leaves no trace in it; without waiting for the
        device. A second call does nothing.
        """


def mixing_refused(kind: Method[Any] | type[Method[Any]], name: str) -> str:
    """Why a method cannot learn from mixed images: an empty string where it can."""
    if kind.takes_mixed:
        return ""
    if kind.remembers_classes:
        return f"{name} has a memory of images, which mixed images have no place in"
    if others := sorted(kind.needs - {"logits"}):
        return f"{name} reads the teacher's {' and '.join(others)}, and mixed images are for methods of logits alone"
    return f"{name} does not take mixed images, which are of two classes each"


def check_unused(config: Any, names: Iterable[str], beside: str) -> None:
    """Refuses settings that have no effect beside another, so that two names never stand for one computation.

    Raises:
        ValueError: one of them is not its default.
    """
    usual = type(config)()
    for name in names:
        if getattr(config, name) != getattr(usual, name):
            raise ValueError(f"{name}: expected {getattr(usual, name)} beside {beside}; got {getattr(config, name)}")


@contextmanager
def frozen_running_statistics(network: nn.Module) -> Iterator[None]:
    """Batch normalisation by the batch, as in training, that leaves the running statistics alone."""
    tracking = [part for part in network.modules() if getattr(part, "track_running_stats", False)]
    for part in tracking:
        part.track_running_stats = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for part in tracking:
            part.track_running_stats = True  # type: ignore[assignment]


methods: Registry[type[Method[Any]]] = Registry("method", package="hkd.methods", entry_points="hkd.methods")
"""Methods by name. A method registers itself with ``@methods.register("name")``."""

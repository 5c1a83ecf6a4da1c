"""Student, method and teacher as one module: the whole training step, for any loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkd.errors import RequestError
from hkd.methods import create_method, methods
from hkd.methods.base import Initialisation, Method, Weights
from hkd.methods.kd import kd_loss
from hkd.models import wrap_model
from hkd.models.base import CifarModel, Model
from hkd.numerics.gather import agree, world_size
from hkd.types import Batch, ModelOutput

NO_LABEL = -1
"""The label of an image without one; the cross-entropy ignores it."""
D = TypeVar("D", bound="Distiller")


class DistillerOutput(NamedTuple):
    """What a batch gives.

    Attributes:
        loss: the scalar to minimise.
        terms: its named, unweighted parts, scalars; see :meth:`Distiller.weighted`.
        logits: (B, C) of the student; None in a method's initialisation, which may not run the student.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    logits: Tensor | None


class Distiller(nn.Module):
    r"""What a student is trained for, as one module.

    .. math:: \gamma\, \mathrm{CE}(l_s, y) + \alpha\, T^2\, \mathrm{KL}(\mathrm{softmax}(l_t / T) \,\|\,
        \mathrm{softmax}(l_s / T)) + \beta \sum \text{method's terms}

    A term of weight 0 is not computed, but for the cross-entropy, which is always worth logging. The parameters are
    exactly what is trained: the student's and the method's own. The teacher follows ``.to()``, stays frozen and in
    evaluation mode, and is in neither ``parameters()`` nor ``state_dict()``.

    In evaluation mode a call gives the logits and the cross-entropy; nothing is gathered from other processes, no
    memory changes, and the index is not needed. Where several processes train together, wrap this module
    (``DistributedDataParallel(distiller, broadcast_buffers=False)``) and build it with the same seed in each: the first
    two steps check that banks and parameters agree.

    Args:
        student: the network to train: a :class:`hkd.models.Model` or any classifier that :func:`hkd.wrap_model` takes.
        teacher: the trained network to learn from; None learns from labels alone.
        method: a name of :func:`hkd.list_methods`, or a method built for these networks; None is cross-entropy alone.
        num_samples: N, the number of training images, which ``index`` counts. Methods with a memory need it.
        labels: (N,) class of each training image.
        ce_weight, kd_weight, method_weight: γ, α, β; what is None is the method's published weight.
        kd_temperature: T.
        image_size: side of the training images in pixels; the networks' usual sizes if not given.
        seed: of the method's own draws.
        settings: of the method, by the names of its ``Config``.

    Raises:
        RequestError: a name, a setting or a weight is not accepted, or method and networks do not fit.

    Example::

        distiller = hkd.Distiller(student, teacher, method="hkd", num_samples=len(data), labels=labels, kd_weight=1.0)
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05, momentum=0.9)
        for image, label, index in loader:
            out = distiller(image, label, index)
            out.loss.backward()
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        method: str | Method[Any] | None = "hkd",
        *,
        num_samples: int | None = None,
        labels: Tensor | None = None,
        ce_weight: float | None = None,
        kd_weight: float | None = None,
        method_weight: float | None = None,
        kd_temperature: float = 4.0,
        image_size: int | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.student: Model = wrap_model(student, image_size=image_size)
        if teacher is None:
            if isinstance(method, Method):
                raise RequestError("teacher: a method needs a teacher to learn from")
            method = None
        taught = () if teacher is None else (wrap_model(teacher, image_size=image_size).eval().requires_grad_(False),)
        self.teachers: tuple[Model, ...] = taught  # in a tuple: no part of this module's parameters and state
        if self.teachers and self.teachers[0] is self.student:
            raise RequestError("student: the same network is passed as student and as teacher")
        if isinstance(method, str) and method != "kd" and self.teachers:
            if num_samples is None and labels is None:
                raise RequestError("num_samples: name the number of training images, or pass their labels")
            method = create_method(
                method,
                student=self.student,
                teacher=self.teachers[0],
                num_samples=len(labels) if num_samples is None and labels is not None else num_samples or 0,
                labels=labels,
                image_size=image_size,
                seed=seed,
                **settings,
            )
        self.method: Method[Any] | None = method if isinstance(method, Method) else None
        if isinstance(method, Method):
            usual = method.default_weights(method.config)
        else:
            usual = Weights(method=0.0) if method is None else methods["kd"].weights
        self.weights = Weights(
            ce=usual.ce if ce_weight is None else ce_weight,
            kd=usual.kd if kd_weight is None else kd_weight,
            method=usual.method if method_weight is None else method_weight,
        )
        self.kd_temperature = kd_temperature
        self.epoch, self.epochs = 0, 1
        self._ramp = 1.0  # the part of the method's weight that a warm-up has reached
        self._unchecked_steps = 2 if self.method is not None else 0

    # -- the teacher --------------------------------------------------------------------------------------------------

    @property
    def teacher(self) -> Model | None:
        """The first teacher, or None."""
        return self.teachers[0] if self.teachers else None

    def _apply(self: D, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> D:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for teacher in self.teachers:
            teacher._apply(fn)  # type: ignore[no-untyped-call]
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether the present epoch looks at the teacher."""
        return self.in_initialisation or bool(self.teachers and (self.weights.kd or self._uses_method))

    @property
    def _uses_method(self) -> bool:
        return self.method is not None and self.weights.method > 0

    # -- progress -----------------------------------------------------------------------------------------------------

    @property
    def initialisation(self) -> Initialisation | None:
        """The method's stage before the training, of ``initialisation.epochs`` epochs, or None."""
        stage = None if self.method is None else self.method.initialisation
        return stage if stage is not None and stage.epochs else None

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """Tells how far the training is.

        Args:
            epoch: counted from 0; those below 0 train the method's initialisation.
            epochs: of the whole training.
        """
        self.epoch, self.epochs = epoch, epochs
        warmup = 0 if self.method is None else self.method.warmup_epochs
        self._ramp = min(1.0, (epoch + 1) / warmup) if warmup and epoch >= 0 else 1.0

    @property
    def in_initialisation(self) -> bool:
        return self.epoch < 0 and self.initialisation is not None

    @property
    def trains_all_parameters(self) -> bool:
        """Whether every parameter gets a gradient in every step; DDP has to search for those that do not."""
        idle = self.method is not None and not (
            self._uses_method and self.method.initialisation is None and self.method.always_trains_all
        )
        return not idle and isinstance(self.student, CifarModel)

    # -- the step -----------------------------------------------------------------------------------------------------

    def forward(
        self,
        image: Tensor | Batch,
        label: Tensor | None = None,
        index: Tensor | None = None,
        teacher: ModelOutput | None = None,
    ) -> DistillerOutput:
        """The loss of a batch.

        Args:
            image: (B, 3, H, W) float, normalised; or a whole :class:`Batch`, which has labels and indices.
            label: (B,) int64 classes; -1 where there is none.
            index: (B,) int64 positions in the training set, by which memories recognise an image.
            teacher: the teacher's output, where it is known already; if not given, the teacher is run.
        """
        if isinstance(image, Batch):
            batch = image
        elif label is None or (index is None and self.training and self.method is not None):
            raise RequestError("label: pass (image, label, index); the index says which training images these are")
        else:
            batch = Batch(image, label, torch.zeros_like(label) if index is None else index)
        if not self.training:
            return self._evaluated(batch)
        if self._unchecked_steps:
            self._check_processes()
        if teacher is None and self.needs_teacher:
            with torch.no_grad():
                teacher = self.teachers[0](batch.image)
        if self.in_initialisation:
            return self._initialise(batch, teacher)
        weights = self.weights
        student: ModelOutput = self.student(batch.image)
        logits = student.logits.float()
        terms = {"ce": cross_entropy(logits, batch.label)}
        loss = weights.ce * terms["ce"]
        if teacher is not None and weights.kd:
            terms["kd"] = kd_loss(logits, teacher.logits, self.kd_temperature)
            loss = loss + weights.kd * terms["kd"]
        if teacher is not None and self.method is not None and weights.method:
            own: dict[str, Tensor] = self.method(batch, student, teacher)
            loss = loss + self._ramp * weights.method * sum(own.values())
            terms |= own
        return DistillerOutput(loss, terms, logits)

    def _initialise(self, batch: Batch, teacher: ModelOutput | None) -> DistillerOutput:
        """A step of the method's initialisation, which minimises the sum of its own terms."""
        stage = self.initialisation
        assert stage is not None and teacher is not None
        terms = stage(batch, self.student(batch.image) if stage.with_student else None, teacher)
        return DistillerOutput(torch.stack(list(terms.values())).sum(), terms, None)

    def _evaluated(self, batch: Batch) -> DistillerOutput:
        logits = self.student(batch.image).logits.float()
        loss = cross_entropy(logits, batch.label)
        return DistillerOutput(loss, {"ce": loss}, logits)

    def weighted(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms as they enter the loss: their sum is the loss of a step of the training."""
        known = {"ce": self.weights.ce, "kd": self.weights.kd}
        own = self._ramp * self.weights.method
        return {name: known.get(name, own) * value for name, value in terms.items()}

    def undo_step(self) -> None:
        """Takes back what the last call left in the method's memories, for a step that is skipped."""
        if self.method is not None:
            self.method.undo_step()

    def _check_processes(self) -> None:
        """Notices what would let several processes drift apart, in the first two steps.

        Raises:
            RuntimeError: memories differ (built with other seeds), or parameters do (trained outside DDP).
        """
        self._unchecked_steps -= 1
        if world_size() == 1 or self.method is None:
            return
        first = self._unchecked_steps == 1
        if not agree(*self.method.buffers()):
            raise RuntimeError(
                "the method's memory banks differ between the processes; build the Distiller with the same seed in "
                "each, and wrap it with broadcast_buffers=False"
            )
        if not agree(*self.parameters()):
            when = "from the start; load the same weights in each" if first else (
                "after the first step; wrap the whole Distiller in DistributedDataParallel, not the student alone"
            )  # fmt: skip
            raise RuntimeError(f"parameters differ between the processes {when}")


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """The mean cross-entropy over the images that have a label, a scalar; 0 where none has.

    Args:
        logits: (B, C).
        label: (B,) classes, -1 for none.
    """
    total = F.cross_entropy(logits, label, ignore_index=NO_LABEL, reduction="sum")
    return total / (label != NO_LABEL).sum().clamp(min=1)

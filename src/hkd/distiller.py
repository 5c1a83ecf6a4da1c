"""Student, method and teacher as one module: the whole training step, for any loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from hkd.errors import RequestError
from hkd.methods import create_method, methods
from hkd.methods.base import Initialisation, Method, Progress, Weights, mixing_refused
from hkd.methods.kd import KD, NO_LABEL, batch_cross_entropy, cross_entropy, kd_loss_of_teachers
from hkd.methods.of_teachers import OfTeachers
from hkd.methods.spec import MethodSpec
from hkd.models import wrap_model
from hkd.models.base import CifarModel, Model
from hkd.numerics.gather import agree, checksum, world_size
from hkd.numerics.precision import at_least_float32
from hkd.options import check_fields, shown
from hkd.types import Batch, ModelOutput

CHECKED_STEPS = 16
"""The parameters of several processes are compared until a step has changed them, in so many steps at most."""
D = TypeVar("D", bound="Distiller")
M = TypeVar("M", bound=Callable[..., Any])
Value = TypeVar("Value", Tensor, float)


def eager(method: M) -> M:
    """Keeps a method out of the graphs of ``torch.compile``."""
    return torch.compiler.disable(method)  # type: ignore[no-any-return, no-untyped-call]


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

    A term of weight 0 is not computed, except the cross-entropy, which is always worth logging. The parameters are
    what is trained: the student's and the method's. The teacher follows ``.to()``, stays frozen and in
    evaluation mode, and is in neither ``parameters()`` nor ``state_dict()``. The state is that of the student and the
    method, memory banks included.

    In evaluation mode a call gives the logits and the cross-entropy; nothing is gathered from other processes, no
    memory changes, and the index is ignored.

    Some methods have a stage before the training (:attr:`initialisation`), a warm-up of their weight, or terms that
    change with the epoch. A loop has all of that with ``for epoch in range(distiller.first_epoch, epochs):
    distiller.set_epoch(epoch, epochs)``, and none of it if it never calls ``set_epoch``.

    With gradient accumulation each call is a batch: relations, graphs and the updates of memories are those of the
    micro-batch. Where several processes train together, build this module with the same seeds in each and wrap it as a
    whole, ``DistributedDataParallel(distiller, broadcast_buffers=False)``; the first steps check that. Compile it in
    place, with ``distiller.compile()``: the networks become graphs, the methods stay as they are.

    Args:
        student: the network to train: a :class:`hkd.models.Model` or any classifier that :func:`hkd.wrap_model` takes.
        teacher: the trained network to learn from, which is frozen in place; None learns from labels alone. Of a list
            of several, the KD term learns from their :func:`hkd.methods.kd.mean_logits`, and each has an instance of
            the method, of which the terms are averaged (:class:`hkd.methods.of_teachers.OfTeachers`). They serve
            methods of logits and embeddings.
        method: a name of :func:`hkd.list_methods`, or a method built for these networks. None is the cross-entropy,
            with the KD term if ``kd_weight`` says so.
        num_samples: N, the number of training images, which ``index`` counts. Methods with a memory need it.
        labels: (N,) class of each training image; N is their number, where ``num_samples`` is not given.
        ce_weight, kd_weight, method_weight: γ, α, β; what is None is the method's published weight.
        kd_temperature: T.
        kd_standardise: whether the KD term is of standardised logits, :func:`hkd.methods.kd.standardised`.
        class_weights: (C,) by which the cross-entropy of each class's images is multiplied, see
            :func:`hkd.methods.kd.cross_entropy`; other terms stay as they are.
        label_smoothing: of the cross-entropy in training, see :func:`hkd.methods.kd.cross_entropy`; in [0, 1).
        image_size: side of the training images in pixels; the networks' usual sizes if not given.
        seed: of the method's draws.
        settings: of the method, by the names of its ``Config``.

    Attributes:
        student, method: what is trained; the method is None where there is none beside KD. The student is
            :attr:`hkd.methods.Method.predictor` where the method has one.
        teachers: the frozen networks, none, one or several.
        weights: γ, α and β.
        in_initialisation: whether the present epoch is one of the method's initialisation.
        compares_processes: whether the first steps compare the parameters of several processes. Turn it off where each
            process holds a part of them only (FSDP).

    Raises:
        RequestError: a name, a setting or a weight is not accepted, or method and networks do not fit.

    Example::

        distiller = hkd.Distiller(student, teacher, method="hkd", num_samples=len(data), labels=labels, kd_weight=1.0)
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05, momentum=0.9)
        for image, label, index in loader:
            distiller(image, label, index).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Sequence[nn.Module] | None = None,
        method: str | Method[Any] | None = "hkd",
        *,
        num_samples: int | None = None,
        labels: Tensor | None = None,
        ce_weight: float | None = None,
        kd_weight: float | None = None,
        method_weight: float | None = None,
        kd_temperature: float = 4.0,
        kd_standardise: bool = False,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        image_size: int | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        given = MethodSpec(
            weight=method_weight,
            kd_weight=kd_weight,
            ce_weight=ce_weight,
            kd_temperature=kd_temperature,
            kd_standardise=kd_standardise,
        )
        check_fields(given)
        if not 0 <= label_smoothing < 1:
            raise RequestError(f"label_smoothing: expected a number in [0, 1); got {shown(label_smoothing)}")
        given_teachers = as_teachers(teacher)
        if not given_teachers:
            if method is not None and (method != "hkd" or num_samples is not None or labels is not None):
                raise RequestError("teacher: expected the network that the method learns from; got none")
            if kd_weight:
                raise RequestError("teacher: expected the network that the KD term learns from; got none")
            method = None
        self.num_samples, labels = _training_set(num_samples, labels)
        self.seed = seed
        self.student: Model = wrap_model(student, image_size=image_size)
        # In a tuple, so that a teacher is no part of this module's parameters and state.
        self.teachers: tuple[Model, ...] = tuple(_frozen(one, student, image_size) for one in given_teachers)
        self._outputs = len(self.teachers)  # of teachers in a call, also when they are released
        self.method = self._built(method, labels, image_size, settings)
        if self.method is not None and self.method.predictor is not None:
            self.student = self.method.predictor
        self.weights = _weights(given, method, self.method)
        self.kd_temperature, self.kd_standardise = kd_temperature, kd_standardise
        self.label_smoothing = label_smoothing
        self._classes = self._head(image_size)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", _checked_weights(class_weights, self._classes), persistent=False)
        self.compares_processes = True
        self.epoch, self.epochs = 0, 1
        self.in_initialisation = False
        self._steps = 0  # of training, while they are counted
        self._first_parameters: int | None = None  # their checksum in the first step
        self.train()

    def _built(
        self, method: str | Method[Any] | None, labels: Tensor | None, image_size: int | None, settings: dict[str, Any]
    ) -> Method[Any] | None:
        """The method; None for KD, which is a term of every objective."""
        if settings and (method in ("kd", None) or isinstance(method, Method)):
            raise RequestError(
                f"{next(iter(settings))}: expected with a method that has settings; T of KD is kd_temperature"
            )
        if method in ("kd", None):
            return None
        if isinstance(method, KD):
            raise RequestError("method: expected kd by its name, since it is a term of every objective")
        if isinstance(method, Method):
            built_for = len(method.instances) if isinstance(method, OfTeachers) else 1
            if built_for != self._outputs:
                raise RequestError(
                    f"method: expected one for as many teachers, {self._outputs}; got one for {built_for}"
                )
            return method
        if not isinstance(method, str):
            raise RequestError(f"method: expected a name or a method that is built; got {shown(method)}")
        built = create_method(
            method,
            student=self.student,
            teacher=self.teachers,
            num_samples=self.num_samples or 0,
            labels=labels,
            image_size=image_size,
            seed=self.seed,
            **settings,
        )
        return built.to(next(self.student.parameters()).device)

    def _head(self, image_size: int | None) -> int:
        """How many classes the student's head has; where logits are compared, the teacher's has to have as many."""
        classes = [
            network.info_at(image_size or network.image_size).num_classes for network in (self.student, *self.teachers)
        ]
        needs = frozenset() if self.method is None else self.method.needs
        on_logits = self.weights.kd or needs - {"strong"} == {"logits"} or "classifier" in needs
        if on_logits and (others := [count for count in classes if count != classes[0]]):
            raise RequestError(f"teacher: has a {others[0]}-class head, and the student a {classes[0]}-class head")
        return classes[0]

    # -- the teacher --------------------------------------------------------------------------------------------------

    @property
    def teacher(self) -> Model | None:
        """The first teacher, or None."""
        return self.teachers[0] if self.teachers else None

    def _apply(self: D, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> D:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if recurse:
            for teacher in self.teachers:
                teacher._apply(fn)  # type: ignore[no-untyped-call]
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether the present epoch looks at the teacher."""
        return self.in_initialisation or bool(self.teachers and (self.weights.kd or self._uses_method))

    @property
    def needs_strong(self) -> bool:
        """Whether the method reads a strong view of each image, :attr:`Batch.strong`."""
        return self.method is not None and self._uses_method and "strong" in self.method.needs

    @property
    def _uses_method(self) -> bool:
        return self.method is not None and self.weights.method > 0

    def release_teachers(self) -> None:
        """Lets go of the teachers, where every call is given their outputs; ``needs_teacher`` is false from then on."""
        self.teachers = ()

    def _taught(self, image: Tensor, given: ModelOutput | Sequence[ModelOutput] | None) -> tuple[ModelOutput, ...]:
        """Each teacher's output: what is given, else what it says of the images where the epoch looks at it."""
        if given is None:
            return tuple(self._run_teacher(teacher, image) for teacher in self.teachers if self.needs_teacher)
        taught = (given,) if isinstance(given, ModelOutput) else tuple(given)
        if len(taught) != max(self._outputs, 1):
            raise RequestError(f"teacher: expected the outputs of {self._outputs} teachers; got {len(taught)}")
        return taught

    def _run_teacher(self, teacher: Model, image: Tensor) -> ModelOutput:
        if teacher.training:  # somebody's module holds it, too, and was put into training mode
            teacher.eval()
        with torch.no_grad():
            output: ModelOutput = teacher(image)
        return output

    # -- progress -----------------------------------------------------------------------------------------------------

    @property
    def initialisation(self) -> Initialisation | None:
        """The method's stage before the training, of ``initialisation.epochs`` epochs, or None.

        hkd's loop trains it with the rates of :meth:`hkd.methods.Initialisation.lr_at`, and forgets the optimiser's
        momentum after it.
        """
        stage = None if self.method is None else self.method.initialisation
        return stage if stage is not None and stage.epochs else None

    @property
    def first_epoch(self) -> int:
        """Where a loop starts: 0, or below it by the epochs of the initialisation."""
        return 0 if self.initialisation is None else -self.initialisation.epochs

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """Sets how far the training is, for the method too.

        Args:
            epoch: counted from 0; those from ``first_epoch`` to -1 train the method's initialisation.
            epochs: of the whole training, without the initialisation.

        Raises:
            RequestError: the epoch is before the first one.
        """
        if epoch < self.first_epoch:
            raise RequestError(f"epoch: expected {self.first_epoch} or more; got {epoch}")
        self.epoch, self.epochs = epoch, epochs
        self.in_initialisation = epoch < 0
        if self.method is not None:
            self.method.progress = Progress(epoch, epochs)

    @property
    def trains_all_parameters(self) -> bool:
        """Whether every parameter gets a gradient in every step; DDP has to search for those that do not."""
        if not isinstance(self.student, CifarModel) or self.initialisation is not None:
            return False
        if self.method is None or not any(True for _ in self.method.parameters()):
            return True
        return self._uses_method and self.method.always_trains_all

    # -- the step -----------------------------------------------------------------------------------------------------

    def forward(
        self,
        image: Tensor | Batch,
        label: Tensor | None = None,
        index: Tensor | None = None,
        teacher: ModelOutput | Sequence[ModelOutput] | None = None,
        strong: Tensor | None = None,
    ) -> DistillerOutput:
        """The loss of a batch.

        Args:
            image: (B, 3, H, W) float, normalised; or a whole :class:`Batch`, which has labels and indices.
            label: (B,) integers, the classes; -1 where there is none.
            index: (B,) integers, positions in the training set, by which memories recognise an image.
            teacher: the teacher's output, where it is known already, or those of several; if not given, they are run.
            strong: (B, 3, H, W) float, a second, stronger view of the images, where :attr:`needs_strong`.

        Raises:
            RequestError: an argument is missing or has another shape or type.
        """
        batch = image if isinstance(image, Batch) else self._batch(image, label, index, strong)
        if not self.training:
            logits = at_least_float32(self.student(batch.image).logits)
            loss = cross_entropy(logits, batch.label)
            return DistillerOutput(loss, {"ce": loss}, logits)
        if batch.mixture is not None and self.method is not None:
            self._check_mixed(self.method)
        self._before_step(batch)
        taught = self._taught(batch.image, teacher)
        if self.in_initialisation:
            return self._initialise(batch, taught)
        student: ModelOutput = self.student(batch.image)
        logits = at_least_float32(student.logits)
        terms = {"ce": batch_cross_entropy(logits, batch, self.class_weights, self.label_smoothing)}
        if taught and self.weights.kd:
            theirs = [output.logits for output in taught]
            if strange := [tuple(one.shape) for one in theirs if one.shape != logits.shape]:
                raise RequestError(f"teacher: expected logits of shape {tuple(logits.shape)}; got {strange[0]}")
            terms["kd"] = kd_loss_of_teachers(logits, theirs, self.kd_temperature, standardise=self.kd_standardise)
        if taught and self._uses_method:
            terms |= self._method_terms(batch, student, taught)
        return DistillerOutput(self._total(terms), terms, logits)

    @staticmethod
    def _check_mixed(method: Method[Any]) -> None:
        if why := mixing_refused(method, type(method).__name__):
            raise RequestError(f"method: {why}")

    def _batch(self, image: Tensor, label: Tensor | None, index: Tensor | None, strong: Tensor | None) -> Batch:
        if not image.is_floating_point():
            raise RequestError(f"image: expected floats, normalised; got {image.dtype}")
        if label is None:
            raise RequestError("label: expected (B,) classes beside the images; got none")
        if index is None and self.training and self.method is not None:
            raise RequestError("index: expected (B,) positions of the images in the training set; got none")
        if index is None or not self.training:
            index = label
        for name, value in (("label", label), ("index", index)):
            if value.shape != image.shape[:1] or value.is_floating_point():
                raise RequestError(
                    f"{name}: expected {len(image)} integers, one for each image; got {value.dtype} of shape "
                    f"{tuple(value.shape)}"
                )
        return Batch(image, label.long(), index, strong=strong)

    @eager
    def _method_terms(self, batch: Batch, student: ModelOutput, taught: tuple[ModelOutput, ...]) -> dict[str, Tensor]:
        """The method's terms. No part of a compiled graph: draws, memories and counters change in each step."""
        assert self.method is not None
        several = isinstance(self.method, OfTeachers)
        terms: dict[str, Tensor] = self.method(batch, student, taught if several else taught[0])  # type: ignore[arg-type]
        if taken := terms.keys() & {"ce", "kd"}:
            raise RequestError(
                f"method: {type(self.method).__name__} has a term {min(taken)}, which is the objective's"
            )
        return terms

    @eager
    def _initialise(self, batch: Batch, taught: tuple[ModelOutput, ...]) -> DistillerOutput:
        """A step of the method's initialisation, which minimises the sum of the stage's terms."""
        stage = self.initialisation
        assert stage is not None and taught
        terms = stage(batch, self.student(batch.image) if stage.with_student else None, taught[0])
        return DistillerOutput(self._total(terms), terms, None)

    @eager
    def _total(self, terms: dict[str, Tensor]) -> Tensor:
        """No part of a compiled graph, which would be another one for each weight of a warm-up."""
        first, *others = self.weighted(terms).values()
        return sum(others, first)

    def weighted(self, terms: dict[str, Value]) -> dict[str, Value]:
        """The terms of a training step as they enter its loss, which is their sum."""
        if self.in_initialisation:
            return dict(terms)
        weights = {"ce": self.weights.ce, "kd": self.weights.kd}
        method = self.weights.method * (1.0 if self.method is None else self.method.ramp)
        return {name: weights.get(name, method) * value for name, value in terms.items()}

    def parts(self, terms: dict[str, float], method: str) -> dict[str, tuple[float, float]]:
        """What a loss is the sum of, as a person reads it: cross-entropy, KD and the method's terms as one, under its
        name, each with its weight and its unweighted value; without those of weight 0.

        Args:
            terms: by their names, all those of a step, or their means.
            method: its name.
        """
        found: dict[str, tuple[float, float]] = {}
        for name, weight in self.weighted(dict.fromkeys(terms, 1.0)).items():
            own = name if name in ("ce", "kd") else method
            found[own] = (weight, found.get(own, (0.0, 0.0))[1] + terms[name])
        return {name: part for name, part in found.items() if part[0]}

    def undo_step(self) -> None:
        """Takes back what the last call left in the method's memories, for a step that is skipped."""
        if self.method is not None:
            self.method.undo_step()

    # -- the first steps ----------------------------------------------------------------------------------------------

    @eager
    def _before_step(self, batch: Batch) -> None:
        """Checks that make the host wait for the device, and the method's beginning, in the first steps only."""
        if self._steps >= CHECKED_STEPS:
            return
        self._steps += 1
        if self._steps == 1:
            self._check_values(batch)
            self._check_progress()
            if self.method is not None:
                self.method.begin()
        if self.method is not None and world_size() > 1:
            self._check_processes()

    def _check_values(self, batch: Batch) -> None:
        bounds = [("label", batch.label, NO_LABEL, self._classes)]
        if self.method is not None and self.num_samples is not None:
            bounds.append(("index", batch.index, 0, self.num_samples))
        for name, value, least, above in bounds:
            low, high = (int(end) for end in value.aminmax())
            if low < least or high >= above:
                raise RequestError(f"{name}: expected {least} to {above - 1}; got {low if low < least else high}")

    def _check_progress(self) -> None:
        if self.method is None or self.method.progress is not None:
            return
        stages = {
            f"an initialisation of {-self.first_epoch} epochs": self.first_epoch,
            f"a warm-up of {self.method.warmup_epochs} epochs": self.method.warmup_epochs,
            "terms that change with the epoch": self.method.follows_progress,
        }
        for stage, exists in stages.items():
            if exists:
                warnings.warn(
                    f"{type(self.method).__name__} has {stage}, and set_epoch was not called: "
                    "for epoch in range(distiller.first_epoch, epochs): distiller.set_epoch(epoch, epochs)",
                    stacklevel=2,
                )

    def _check_processes(self) -> None:
        """Notices what would let several processes drift apart.

        Raises:
            RuntimeError: memories differ from the start (other seeds), or parameters do, from the start or after the
                first step that changed them (not all of them are in DDP).
        """
        assert self.method is not None
        first = self._steps == 1
        if first and not agree(torch.tensor(self.seed, device=next(self.parameters()).device), *self.method.buffers()):
            raise RuntimeError(
                "the method's memory banks or seeds differ between the processes; call torch.manual_seed with the same "
                "number in each before the Distiller is built, and pass the same num_samples, labels and seed"
            )
        if not self.compares_processes:
            return
        if not agree(*self.parameters()):
            cause = "from the start; load the same weights in each" if first else (
                "after the first step; wrap the whole Distiller in DistributedDataParallel, not the student alone"
            )  # fmt: skip
            raise RuntimeError(f"parameters differ between the processes {cause}")
        now = checksum(*self.parameters())
        if first:
            self._first_parameters = now
        elif now != self._first_parameters:
            self._steps = CHECKED_STEPS


def _checked_weights(weights: Tensor | None, classes: int) -> Tensor | None:
    if weights is None:
        return None
    if (
        not isinstance(weights, Tensor)
        or weights.shape != (classes,)
        or not (weights.isfinite() & (weights >= 0)).all()
    ):
        got = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
        raise RequestError(f"class_weights: expected ({classes},) numbers from 0; got {got}")
    return weights.float()


def _training_set(num_samples: int | None, labels: Any) -> tuple[int | None, Tensor | None]:
    """The number of training images, and their labels as a tensor."""
    if num_samples is not None and (not isinstance(num_samples, int) or num_samples < 1):
        raise RequestError(f"num_samples: expected 1 or more; got {num_samples}")
    if labels is None:
        return num_samples, None
    labels = torch.as_tensor(labels)
    if labels.ndim != 1 or num_samples not in (None, len(labels)):
        count = "N" if num_samples is None else num_samples
        raise RequestError(f"labels: expected shape ({count},); got {tuple(labels.shape)}")
    return len(labels), labels


def as_teachers(teacher: nn.Module | Sequence[nn.Module] | None) -> tuple[nn.Module, ...]:
    """No teacher, one or several, as a tuple.

    Raises:
        RequestError: what is passed is no network, or one is passed twice.
    """
    teachers = tuple(teacher) if isinstance(teacher, list | tuple) else () if teacher is None else (teacher,)
    for one in teachers:
        if not isinstance(one, nn.Module):
            raise RequestError(f"teacher: expected a network or a list of them; got {shown(one)}")
    if len(set(map(id, teachers))) < len(teachers):
        raise RequestError("teacher: the same network is passed twice")
    return teachers


def _frozen(teacher: nn.Module, student: nn.Module, image_size: int | None) -> Model:
    if {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}:
        raise RequestError("student: shares parameters with the teacher, which are frozen; pass a copy")
    return wrap_model(teacher, image_size=image_size).eval().requires_grad_(False)


def _weights(given: MethodSpec, method: str | Method[Any] | None, built: Method[Any] | None) -> Weights:
    """The weights of the objective, the published ones where they are open."""
    if built is not None:
        usual = built.default_weights(built.config)
    else:
        usual = methods["kd"].weights if method == "kd" else Weights(method=0.0)
    weights = Weights(
        ce=usual.ce if given.ce_weight is None else given.ce_weight,
        kd=usual.kd if given.kd_weight is None else given.kd_weight,
        method=usual.method if given.weight is None else given.weight,
    )
    if built is None and weights.method:
        raise RequestError("method_weight: is of a method's terms beside CE and KD, and there is no such method")
    if not any(weights):
        raise RequestError("method_weight: all weights are 0, so there is nothing to learn from")
    return weights

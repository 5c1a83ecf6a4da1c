"""What can be asked of a training run. Imports nothing heavy, so that the command line answers at once."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from hkd.errors import RequestError, unknown

Precision = Literal["fp32", "bf16", "fp16"]
STUDENT, TEACHER = "resnet8", "resnet20"
"""Who is meant where nobody is named."""
PLUS_KD = "+kd"
"""What a method's name ends with where the classical term is added with weight 1."""


def option(default: Any, help: str) -> Any:  # the word argparse uses
    """A field with the sentence that explains it on the command line."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training one network with cross-entropy. The defaults are the protocol of the paper's supplement."""

    run: str = option("runs/train", "the run folder")
    dataset: str = option("digits", "digits, cifar100, stl10, tiny-imagenet, imagenet or folder:PATH")
    data_root: str = option("data", "where data sets lie and are downloaded to")
    image_size: int | None = option(None, "resize images to squares of this side in pixels")
    limit_classes: int | None = option(None, "keep the first so many classes")
    limit_train: int | None = option(None, "keep the first so many training images of each class")
    train_fraction: float = option(1.0, "keep this part of the training images, the first of each class")

    flip: bool = option(True, "mirror training images at random, where the data set allows it (digits do not)")

    student: str | None = option(None, "zoo name, timm:NAME, torchvision:NAME or package.module:callable [resnet8]")
    teacher: str | None = option(None, "likewise")
    role: Literal["student", "teacher"] | None = option(None, "which of the two to train, where both are named")
    student_pretrained: bool = option(False, "start from the library's weights (timm:, torchvision:)")
    teacher_pretrained: bool = option(False, "start the teacher from the library's weights (timm:, torchvision:)")

    epochs: int = option(240, "passes over the training images")
    batch_size: int = option(64, "images a step, of all processes together")
    scale_with_processes: bool = option(False, "multiply batch size and learning rate by the number of processes")
    lr: float = option(0.05, "learning rate (the paper: 0.01 for MobileNetV2 and ShuffleNet students)")
    lr_decay: float = option(0.1, "what the learning rate is multiplied by at each milestone")
    milestones: tuple[float, ...] = option((0.625, 0.75, 0.875), "when, as parts of the run (150, 180, 210 of 240)")
    momentum: float = option(0.9, "of SGD")
    weight_decay: float = option(5e-4, "of SGD, on all parameters")

    seed: int = option(0, "of initial weights, order, augmentation and draws")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Precision = option("fp32", "arithmetic of the networks; fp16 needs a GPU")
    compile: bool = option(False, "compile the networks with torch.compile")
    workers: int | None = option(None, "processes or threads that decode images; one a core, at most 8, if not given")
    tensorboard: bool = option(True, "write TensorBoard curves into the run folder")
    save_minutes: float = option(
        10.0, "save within an epoch, too, when so many minutes have passed since the last time"
    )
    skip_bad_steps: int = option(0, "leave out so many steps whose loss is no number, instead of stopping at the first")
    bad_images: Literal["stop", "skip"] = option("stop", "what an unreadable image does: stop the run, or be left out")

    def check(self) -> None:
        """Raises :class:`RequestError` for the first field that is out of its range."""
        _at_least(self, 1, "epochs", "image_size", "limit_train")
        _at_least(self, 2, "batch_size", "limit_classes")
        _at_least(self, 0, "seed", "workers", "weight_decay", "skip_bad_steps")
        if not self.save_minutes > 0:
            raise RequestError(f"save_minutes: expected a number above 0; got {self.save_minutes}")
        if self.bad_images not in ("stop", "skip"):
            raise RequestError(f"bad_images: expected one of stop, skip; got {self.bad_images!r}")
        if self.seed >= 2**32:
            raise RequestError(f"seed: expected a number below 2**32; got {self.seed}")
        if not 0 < self.train_fraction <= 1:
            raise RequestError(f"train_fraction: expected a part in (0, 1]; got {self.train_fraction}")
        for name in ("student", "teacher", "dataset", "run"):
            if getattr(self, name) == "":
                raise RequestError(f"{name}: expected a name; got an empty one")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise RequestError(f"lr: expected a number above 0; got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise RequestError(f"momentum: expected a number in [0, 1); got {self.momentum}")
        if not 0 < self.lr_decay <= 1:
            raise RequestError(f"lr_decay: expected a factor in (0, 1]; got {self.lr_decay}")
        if any(not 0 < m < 1 for m in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise RequestError(f"milestones: expected rising parts of the run in (0, 1); got {list(self.milestones)}")
        if self.precision not in get_args(Precision):
            raise RequestError(f"precision: expected one of {', '.join(get_args(Precision))}; got {self.precision!r}")

    def trained_role(self) -> Literal["student", "teacher"]:
        """Which of the two networks `train` trains: the one that is named, or the one that ``role`` says."""
        if self.role is not None:
            return self.role
        if self.student and self.teacher:
            raise RequestError(
                f"role: student {self.student} and teacher {self.teacher} are named; --role says which to train"
            )
        return "teacher" if self.teacher else "student"

    def trained_network(self) -> tuple[str | None, bool]:
        """Its name, and whether it starts from the library's weights."""
        if self.trained_role() == "teacher":
            return self.teacher, self.teacher_pretrained
        return self.student, self.student_pretrained

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.lr * self.lr_decay ** sum(epoch >= round(m * self.epochs) for m in self.milestones)


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """Distilling a student: γ CE + α KD + β method. Weights left open are the method's published ones."""

    run: str = option("runs/distill", "the run folder")
    teacher: str | None = option(None, "likewise [what the checkpoint says it is, or resnet20]")
    role: Literal["student", "teacher"] | None = field(default=None, init=False)
    teacher_checkpoint: str | None = option(None, "the teacher's weights; if not given, the teacher is trained first")
    method: str = option("hkd+kd", "how to learn from the teacher: see `hkd list methods`; NAME+kd adds --kd-weight 1")
    method_weight: float | None = option(None, "β, of the method's terms [the method's: hkd 3]")
    kd_weight: float | None = option(None, "α, of the classical term [1 with +kd, else the method's: 0; kd, sskd .9]")
    ce_weight: float | None = option(None, "γ, of the cross-entropy [the method's: 1; kd, sskd .1]")
    teacher_lr: float | None = option(None, "learning rate of a teacher that is trained first [lr]")
    kd_temperature: float = option(4.0, "T of the classical term")
    settings: dict[str, Any] = field(default_factory=dict)
    """The method's own settings; on the command line --holistic.k and the like."""

    @property
    def method_name(self) -> str:
        """The method without ``+kd``."""
        return self.method.removesuffix(PLUS_KD)

    def check(self) -> None:
        super().check()
        _at_least(self, 0, "method_weight", "kd_weight", "ce_weight")
        if self.method == f"kd{PLUS_KD}":
            raise RequestError("method: kd is the classical term itself; its weight is kd_weight")
        if self.teacher_lr is not None and not (math.isfinite(self.teacher_lr) and self.teacher_lr > 0):
            raise RequestError(f"teacher_lr: expected a number above 0; got {self.teacher_lr}")
        if not self.kd_temperature > 0:
            raise RequestError(f"kd_temperature: expected a number above 0; got {self.kd_temperature}")


@dataclass(frozen=True)
class Entry:
    """A line of a comparison: ``ce``, ``kd``, ``at``, ``at+kd``, ``hkd(method_weight=1, negatives=opposite)+kd``.

    Attributes:
        label: as it was written, without spaces.
        method: the method's name, with ``+kd`` where the classical term is added; "ce" is the student alone.
        settings: of the method, where they differ from its defaults.
        weights: of the objective, likewise: ``ce_weight``, ``kd_weight``, ``method_weight``.
    """

    label: str
    method: str
    settings: dict[str, Any]
    weights: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> Entry:
        label = re.sub(r"\s", "", text)
        match = re.fullmatch(r"([\w-]+)(?:\((.*)\))?(\+kd)?", label)
        if match is None:
            raise RequestError(f"methods: expected NAME, NAME+kd or NAME(setting=value,...)+kd; got {text!r}")
        name, settings, plus = match.groups()
        if (name == "ce" and (settings or plus)) or (name == "kd" and plus):
            raise RequestError(f"methods: {name} stands alone; got {text!r}")
        pairs = [part.partition("=") for part in settings.split(",")] if settings else []
        if broken := [key for key, equals, value in pairs if not (key and equals and value)]:
            raise RequestError(f"methods: expected setting=value, got {broken[0]!r} in {text!r}")
        values = {key: parse_value(value) for key, _, value in pairs}
        if len(values) < len(pairs):
            raise RequestError(f"methods: a setting stands there twice in {text!r}")
        weights = {key: values.pop(key) for key in ("ce_weight", "kd_weight", "method_weight") if key in values}
        if strange := [key for key, value in weights.items() if not isinstance(value, int | float)]:
            raise RequestError(f"methods: {strange[0]} is a number; got {text!r}")
        return cls(label, name + (plus or ""), values, weights)


def parse_value(text: str) -> bool | int | float | str:
    """What a setting's text means."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


@dataclass(frozen=True, kw_only=True)
class CompareConfig(TrainConfig):
    """Several methods between the same networks, over several trials."""

    run: str = option("runs/compare", "the folder of the comparison: its runs and its tables")
    student: str | None = field(default=None, init=False)
    teacher: str | None = field(default=None, init=False)
    role: Literal["student", "teacher"] | None = field(default=None, init=False)
    teachers: tuple[str, ...] = option((), "networks that teach; each teaches every student [resnet20]")
    students: tuple[str, ...] = option((), "networks that learn [resnet8]")
    pairs: tuple[str, ...] = option((), "TEACHER->STUDENT, instead of every teacher with every student")
    methods: tuple[str, ...] = option(
        ("ce", "kd", "hkd", "hkd+kd"), "NAME, NAME+kd or NAME(setting=value,...)+kd; ce is the student alone"
    )
    kd_temperature: float = option(4.0, "T of the classical term")
    trials: int = option(3, "runs of each method, with seeds counting from --seed")
    baseline: str | None = option(None, "what every method is compared with [the best that is not hkd]")
    lr_of: dict[str, float] = field(
        default_factory=dict, metadata={"help": "learning rates of networks that need another than --lr, by name"}
    )
    teacher_checkpoints: dict[str, str] = field(
        default_factory=dict, metadata={"help": "weights of teachers, by name; the others are trained first"}
    )

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The methods, parsed."""
        return tuple(map(Entry.parse, self.methods))

    @property
    def named_pairs(self) -> tuple[tuple[str, str], ...]:
        """(teacher, student) names."""
        if not self.pairs:
            teachers, students = self.teachers or (TEACHER,), self.students or (STUDENT,)
            return tuple((teacher, student) for teacher in teachers for student in students)
        if self.teachers or self.students:
            raise RequestError("pairs: they name the networks; leave out teachers and students")
        found = []
        for pair in self.pairs:
            teacher, arrow, student = (part.strip() for part in pair.partition("->"))
            if not (teacher and arrow and student):
                raise RequestError(f"pairs: expected TEACHER->STUDENT; got {pair!r}")
            found.append((teacher, student))
        return tuple(found)

    def check(self) -> None:
        super().check()
        _at_least(self, 1, "trials")
        if not self.kd_temperature > 0:
            raise RequestError(f"kd_temperature: expected a number above 0; got {self.kd_temperature}")
        labels = [entry.label for entry in self.entries]
        for name, values in (("methods", labels), ("pairs", [" -> ".join(pair) for pair in self.named_pairs])):
            if not values:
                raise RequestError(f"{name}: name at least one")
            if repeated := [value for value in values if values.count(value) > 1]:
                raise RequestError(f"{name}: {repeated[0]} stands there twice")
        if self.seed + self.trials > 2**32:
            raise RequestError(f"seed: expected {self.trials} numbers below 2**32; got {self.seed}")
        if self.baseline is not None and self.baseline not in labels:
            raise unknown("baseline", self.baseline, labels)
        networks = {name for pair in self.named_pairs for name in pair}
        for field_name in ("lr_of", "teacher_checkpoints"):
            if strange := [name for name in getattr(self, field_name) if name not in networks]:
                raise unknown(field_name, strange[0], networks)
        for name, lr in self.lr_of.items():
            if not (math.isfinite(lr) and lr > 0):
                raise RequestError(f"lr_of.{name}: expected a number above 0; got {lr}")


@dataclass(frozen=True, kw_only=True)
class SweepConfig(TrainConfig):
    """How results depend on one field: several values, methods and trials."""

    run: str = option("runs/sweep", "the folder of the sweep: its runs, table and plot")
    role: Literal["student", "teacher"] | None = field(default=None, init=False)
    teacher_checkpoint: str | None = option(None, "the teacher's weights; if not given, the teacher is trained first")
    field: str = option("holistic.hops", "what varies: an option of `hkd distill`, as holistic.k or method_weight")
    values: tuple[str, ...] = option(("1", "2"), "its values")
    methods: tuple[str, ...] = option(
        ("hkd+kd",), "NAME, NAME+kd or NAME(setting=value,...)+kd; ce is the student alone"
    )
    trials: int = option(3, "runs of each value, with seeds counting from --seed")
    jobs: int | None = option(None, "runs at the same time; one a GPU, else one, if not given")

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The methods, parsed."""
        return tuple(map(Entry.parse, self.methods))

    @property
    def points(self) -> tuple[bool | int | float | str, ...]:
        """The values, parsed."""
        return tuple(map(parse_value, self.values))

    def check(self) -> None:
        super().check()
        _at_least(self, 1, "trials", "jobs")
        for name, values in (("values", self.values), ("methods", tuple(entry.label for entry in self.entries))):
            if not values:
                raise RequestError(f"{name}: name at least one")
            if len(set(values)) < len(values):
                raise RequestError(f"{name}: {next(v for v in values if values.count(v) > 1)} stands there twice")
        if self.field in ("run", "seed", "device", "settings", "method", "role"):
            raise RequestError(f"field: {self.field} is set by the sweep itself")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Testing a network. What is left open is what the run folder of the checkpoint says."""

    checkpoint: str = option("", "a run folder, a .safetensors file, or a checkpoint of the field (.pth)")
    model: str | None = option(None, "the network in the file, where the file does not say")
    dataset: str | None = option(None, "digits, cifar100, stl10, tiny-imagenet, imagenet or folder:PATH")
    data_root: str | None = option(None, "where data sets lie and are downloaded to")
    image_size: int | None = option(None, "resize images to squares of this side in pixels")
    limit_classes: int | None = option(None, "keep the first so many classes")
    batch_size: int = option(256, "images a step")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Precision = option("fp32", "arithmetic of the network; fp16 needs a GPU")
    workers: int | None = option(None, "processes or threads that decode images; one a core, at most 8, if not given")

    def check(self) -> None:
        """Raises :class:`RequestError` for the first field that is out of its range."""
        _at_least(self, 1, "batch_size", "image_size")
        _at_least(self, 2, "limit_classes")
        _at_least(self, 0, "workers")
        if not self.checkpoint:
            raise RequestError("checkpoint: name a run folder or a file of weights")


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """A linear classifier on the frozen features of trained networks, on other data."""

    checkpoints: tuple[str, ...] = option((), "run folders or .safetensors files; their teachers take part")
    run: str = option("runs/transfer", "the folder for tables and features")
    datasets: tuple[str, ...] = option(("stl10", "tiny-imagenet"), "what to transfer to, by name or folder:PATH")
    data_root: str = option("data", "where data sets lie and are downloaded to")
    image_size: int = option(32, "resize images to squares of this side in pixels")
    limit_classes: int | None = option(None, "keep the first so many classes")
    limit_train: int | None = option(None, "keep the first so many training images of each class")
    probe: Literal["logistic", "sgd"] = option(
        "logistic", "logistic regression, or the 120 epochs of SGD of the field's follow-up work"
    )
    holdout: float = option(0.2, "part of the training split on which the probe's penalty is chosen")
    seed: int = option(0, "of the split and the probe")
    batch_size: int = option(256, "images a step while features are extracted")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Precision = option("fp32", "arithmetic of the networks; fp16 needs a GPU")

    def check(self) -> None:
        """Raises :class:`RequestError` for the first field that is out of its range."""
        _at_least(self, 1, "image_size", "batch_size", "limit_train")
        _at_least(self, 2, "limit_classes")
        _at_least(self, 0, "seed")
        if not self.checkpoints:
            raise RequestError("checkpoints: name at least one run folder or file of weights")
        if not self.datasets:
            raise RequestError("datasets: name at least one")
        if not 0 < self.holdout < 1:
            raise RequestError(f"holdout: expected a part in (0, 1); got {self.holdout}")


@dataclass(frozen=True, kw_only=True)
class TopologyConfig:
    """How alike a teacher and its students place test images."""

    checkpoints: tuple[str, ...] = option((), "run folders of students, or first a teacher's and then students'")
    run: str = option("runs/topology", "the folder for panels and numbers")
    dataset: str | None = option(None, "other test images than those of the runs, by name or folder:PATH")
    data_root: str | None = option(None, "where data sets lie and are downloaded to")
    images: int = option(1000, "test images that are shown and compared, drawn at random")
    neighbours: int = option(10, "nearest neighbours that the numbers look at")
    edges: bool = option(False, "draw the graph of images that a network predicts alike")
    k: int = option(8, "size of a neighbourhood in that graph, the image itself included")
    seed: int = option(0, "of the images drawn and the layout")
    batch_size: int = option(256, "images a step while features are extracted")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Precision = option("fp32", "arithmetic of the networks; fp16 needs a GPU")

    def check(self) -> None:
        """Raises :class:`RequestError` for the first field that is out of its range."""
        _at_least(self, 1, "batch_size", "neighbours", "k")
        _at_least(self, 5, "images")
        _at_least(self, 0, "seed")
        if not self.checkpoints:
            raise RequestError("checkpoints: name at least one run folder")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """One self-contained HTML page from run folders."""

    runs: tuple[str, ...] = option((), "run folders, or folders that hold some, as those of comparisons and sweeps")
    output: str = option("report.html", "the file")
    title: str = option("Distillation report", "of the page")
    data_root: str | None = option(None, "where the data sets lie whose images are shown")

    def check(self) -> None:
        """Raises :class:`RequestError` for the first field that is missing."""
        if not self.runs:
            raise RequestError("runs: name at least one run folder")
        if not self.output:
            raise RequestError("output: expected a file; got an empty name")


FORMATS = ("onnx", "torch", "safetensors")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Writing a trained network as files that others can run."""

    checkpoint: str = option("", "a run folder or a .safetensors file")
    output: str | None = option(None, "folder for the files [export in the run folder]")
    formats: tuple[str, ...] = option(FORMATS, "which files to write")
    model: str | None = option(None, "the network in the file, where the file does not say")
    dataset: str | None = option(None, "images to check the files on [the run's test split, or noise without it]")
    data_root: str | None = option(None, "where data sets lie and are downloaded to")
    image_size: int | None = option(None, "side in pixels of the images that the files take [as trained]")

    def check(self) -> None:
        """Raises :class:`RequestError` for the first field that is out of its range."""
        _at_least(self, 1, "image_size")
        if not self.checkpoint:
            raise RequestError("checkpoint: name a run folder or a file of weights")
        if not self.formats:
            raise RequestError(f"formats: expected some of {', '.join(FORMATS)}; got none")
        for name in self.formats:
            if name not in FORMATS:
                raise unknown("formats", name, FORMATS)


def _at_least(config: object, least: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not (value >= least and math.isfinite(value)):
            raise RequestError(f"{name}: expected {least} or more; got {value}")

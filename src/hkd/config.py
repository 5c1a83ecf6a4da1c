"""The options of each command, in their flat shape. Imports nothing heavy, so that help answers at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, make_dataclass
from typing import Any, Literal

from hkd.errors import RequestError, unknown
from hkd.models.names import resized
from hkd.models.spec import STUDENT, TEACHER, TeacherSpec
from hkd.options import check_fields, coerce, default_of, hints_of, option, shown
from hkd.outside import check_logger, check_outputs
from hkd.runtime.spec import Precision
from hkd.spec import DISTILLATION, FIELDS, PARTS, PLUS_KD, SEVERAL, TRAINING, RunSpec, field_of

DEFAULTS = {"train": {"run": "runs/train"}, "distill": {"run": "runs/distill", "method": f"hkd{PLUS_KD}"}}
"""Where a command's defaults are not the specification's."""


Role = Literal["student", "teacher"] | None
OF_TEACHER = (
    "teacher", "teacher_pretrained", "teacher_weights", "teacher_train", "teacher_image_size", "teacher_lr",
)  # fmt: skip


class FlatConfig:
    """A run's options by their flat names. :meth:`spec` is the specification that they make."""

    def spec(self) -> RunSpec:
        """The nested, typed form.

        Raises:
            RequestError: an option has the wrong type or is out of its range.
        """
        values = {name: value for name, value in vars(self).items() if not (name == "settings" and not value)}
        return RunSpec.from_flat(values)

    def check(self) -> None:
        """Raises :class:`RequestError` for the first option that has the wrong type or is out of its range."""
        self.spec()


class TrainingConfig(FlatConfig):
    """The options of a run that trains one of two networks that may be named."""

    def spec(self) -> RunSpec:
        return RunSpec.from_flat(trained_network(vars(self)))


def trained_network(values: Mapping[str, Any], *, lr_given: bool = True) -> dict[str, Any]:
    """Flat options of a training: of the two networks that a pair's recipe names, the one that ``role`` says.

    Args:
        values: flat options, with ``role`` and :data:`OF_TEACHER` beside a training's.
        lr_given: whether the learning rate is meant for this network, whichever it is.

    Raises:
        RequestError: see :func:`trained_role`; or what is said of the teacher has the wrong type or range.
    """
    given = {FIELDS[name].field: values[name] for name in OF_TEACHER if name in values}
    check_fields(TeacherSpec(**given))
    role, values = trained_role(values), dict(values)
    values.pop("role", None)
    teacher, lr = values.pop("teacher", None), values.pop("teacher_lr", None)
    pretrained, weights = values.pop("teacher_pretrained", False), values.pop("teacher_weights", None)
    size, trains = values.pop("teacher_image_size", None), values.pop("teacher_train", "all")
    if role == "teacher":
        name = teacher or (TEACHER if weights is None else None)  # which the file says
        if size is not None:
            if name is None:
                raise RequestError("teacher: expected the name of the network beside teacher_image_size; got none")
            name = resized(name, size)
        values |= {
            "student": name,
            "student_pretrained": pretrained,
            "student_weights": weights,
            "student_train": trains,
        }
        if lr is not None and not lr_given:
            values["lr"] = lr
    return values


def trained_role(values: Mapping[str, Any]) -> str:
    """Which of the two networks `train` trains: the one that ``role`` says, or the only one that is named.

    Raises:
        RequestError: both networks are named and no role, or only the other one is.
    """
    role = coerce("role", values.get("role"), Role)
    named = {name: values.get(name) or values.get(f"{name}_weights") for name in ("student", "teacher")}
    if role is None:
        if all(named.values()):
            raise RequestError(
                f"role: student {named['student']} and teacher {named['teacher']} are named; --role says which to train"
            )
        return "teacher" if named["teacher"] else "student"
    other = "student" if role == "teacher" else "teacher"
    if named[other] and not named[role]:
        raise RequestError(f"role: expected the {role}'s name, --{role} NAME; only {other} {named[other]} is named")
    return str(role)


def flat_fields(names: tuple[str, ...], defaults: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Fields of the specification's parts by their flat names, for a dataclass of one level."""
    made = []
    for name in names:
        part, attribute = FIELDS[name]
        entry = field_of(part, attribute)
        default = defaults.get(name, default_of(entry))
        made.append((name, hints_of(PARTS[part])[attribute], field(default=default, metadata=entry.metadata)))
    return made


def _flat(name: str, doc: str, fields: list[Any], base: type = FlatConfig) -> Any:
    made = make_dataclass(name, fields, bases=(base,), frozen=True, kw_only=True)
    made.__doc__, made.__module__ = doc, __name__
    return made


ROLE = ("role", Role, option(None, "which of the two to train, where both are named"))
TrainConfig = _flat(
    "TrainConfig",
    "Training one network with cross-entropy. The defaults are the protocol of the paper's supplement.",
    [*flat_fields((*TRAINING, *(n for n in OF_TEACHER if n != "teacher_lr")), DEFAULTS["train"]), ROLE],
    TrainingConfig,
)
DistillConfig = _flat(
    "DistillConfig",
    "Distilling a student: γ CE + α KD + β method. Weights left open are the method's published ones.",
    [
        *(
            (name, hint | tuple[str, ...] if name in SEVERAL else hint, entry)
            for name, hint, entry in flat_fields((*TRAINING, *DISTILLATION), DEFAULTS["distill"])
        ),
        ("settings", dict[str, Any], field(default_factory=dict)),
    ],
)


@dataclass(frozen=True)
class MethodRequest:
    """A line of a comparison: ``ce``, ``kd``, ``at+kd``, ``sdd(scales=[1,2])``, ``hkd(method_weight=1,k=4)+kd``.

    Attributes:
        label: as it was written, without spaces.
        options: its flat options; None for "ce", the student alone.
    """

    label: str
    options: dict[str, Any] | None

    WEIGHTS = ("ce_weight", "kd_weight", "method_weight", "kd_temperature")
    OBJECTIVE = (*WEIGHTS, "kd_standardise")

    @classmethod
    def parse(cls, text: str) -> MethodRequest:
        label = re.sub(r"\s", "", text)
        match = re.fullmatch(r"([\w-]+)(?:\((.*)\))?(\+kd)?", label)
        if match is None:
            raise RequestError(f"methods: expected NAME, NAME+kd or NAME(setting=value,...)+kd; got {text!r}")
        name, settings, plus = match.groups()
        if (name == "ce" and (settings or plus)) or (name == "kd" and plus):
            raise RequestError(f"methods: {name} takes nothing beside it; got {text!r}")
        if name == "ce":
            return cls(label, None)
        parts = re.split(r",(?![^\[\]]*\])", settings) if settings else []  # not at the commas of a list
        pairs = [part.partition("=") for part in parts]
        if broken := [key for key, equals, value in pairs if not (key and equals and value)]:
            raise RequestError(f"methods: expected setting=value, got {broken[0]!r} in {text!r}")
        values = {key: parse_value(value) for key, _, value in pairs}
        if len(values) < len(pairs):
            raise RequestError(f"methods: a setting is listed twice in {text!r}")
        options: dict[str, Any] = {key: values.pop(key) for key in cls.OBJECTIVE if key in values}
        numbers = {key: value for key, value in options.items() if key in cls.WEIGHTS}
        if strange := [k for k, v in numbers.items() if isinstance(v, bool) or not isinstance(v, int | float)]:
            raise RequestError(f"methods: {strange[0]} is a number; got {text!r}")
        if not isinstance(options.get("kd_standardise", True), bool):
            raise RequestError(f"methods: kd_standardise is true or false; got {text!r}")
        return cls(label, {"method": name + (plus or ""), **options, **({"settings": values} if values else {})})


def parse_value(text: str) -> bool | int | float | str | list[Any] | None:
    """What a setting's text means; ``[1,2]`` is a list."""
    if text.startswith("[") and text.endswith("]"):
        return [parse_value(part) for part in text[1:-1].split(",") if part]
    if text in ("true", "false", "null", "none"):
        return {"true": True, "false": False}.get(text)
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


STUDY_SETS = frozenset(
    {"run", "seed", "student", "teacher", "teacher_checkpoint", "teacher_lr", "method", "threads", "student_train"}
)
"""Run options that a study's options replace."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What compare and sweep have in common: where the runs are trained, and how many at the same time."""

    trials: int = option(3, "runs of each, with seeds counting from --seed", ge=1, le=100_000)
    seed: int = option(0, "the first trial's", ge=0, lt=2**32)
    jobs: int | None = option(None, "runs at the same time [one for each GPU, else one]", ge=1, le=4096)
    engine: Literal["local", "ray"] = option("local", "processes on this machine, or a Ray cluster (hkd[ray])")
    threads: int | None = option(None, "CPU threads of each run [the cores, shared by the jobs]", ge=1, le=4096)
    gpus_per_run: float | None = option(
        None, "GPUs of each run; a fraction shares one [1 where there are]", gt=0, le=64
    )
    processes_per_run: int = option(1, "processes that train a run together", ge=1, le=1024)
    dry_run: bool = option(False, "print the plan: each run, its state and its command line; train nothing")
    retry_failed: bool = option(False, "try runs again that failed before")

    def run_options(self) -> dict[str, Any]:
        """The options that every run of the study is given."""
        names = (set(FIELDS) - STUDY_SETS) | {"threads"}
        return {name: value for name, value in vars(self).items() if name in names}

    def check(self) -> None:
        check_fields(self)
        check_logger(RunSpec.from_flat(self.run_options()).runtime.curves)
        if self.seed + self.trials > 2**32:
            raise RequestError(f"seed: expected {self.trials} numbers below 2**32; got {self.seed}")
        check_outputs(self)


def parsed_methods(lines: tuple[str, ...]) -> tuple[MethodRequest, ...]:
    """Lines of a recipe, each once.

    Raises:
        RequestError: one cannot be read, or is listed twice.
    """
    requests = tuple(map(MethodRequest.parse, lines))
    check_distinct("methods", [request.label for request in requests])
    return requests


CONTROL = "kd(ce_weight=1,kd_weight=1)"
"""What X+kd is without X. ``kd`` has other weights, so that X+kd against it would compare weights, too."""


def with_control(requests: tuple[MethodRequest, ...]) -> tuple[MethodRequest, ...]:
    """Lines of a comparison, with :data:`CONTROL` before the first that adds KD to a method, unless it is there."""
    control = MethodRequest.parse(CONTROL)
    adds_kd = [n for n, request in enumerate(requests) if request.label.endswith(PLUS_KD)]
    if not adds_kd or any(request.options == control.options for request in requests):
        return requests
    return (*requests[: adds_kd[0]], control, *requests[adds_kd[0] :])


def check_distinct(name: str, values: list[Any]) -> None:
    if not values:
        raise RequestError(f"{name}: name at least one")
    if repeated := [value for value in values if values.count(value) > 1]:
        raise RequestError(f"{name}: {repeated[0]} is listed twice")


METHODS_HELP = "NAME, NAME+kd or NAME(setting=value,...)+kd; ce is the student alone"
_RUN_OPTIONS = flat_fields(
    tuple(n for n in (*TRAINING, *DISTILLATION) if n not in STUDY_SETS and n != "teacher"), {"teacher_cache": "auto"}
)
_SHARED_OPTIONS = [f for f in _RUN_OPTIONS if f[0] not in ("method_weight", "kd_weight", "ce_weight")]
_StudyConfig = _flat("StudyConfig", "A study's options and those of its runs.", _SHARED_OPTIONS, StudyOptions)


@dataclass(frozen=True, kw_only=True)
class CompareConfig(_StudyConfig):  # type: ignore[misc, valid-type]
    """Several methods between the same networks, over several trials."""

    run: str = option("runs/compare", "the folder of the comparison: its runs and its tables", writes="folder")
    teachers: tuple[str, ...] = option((), "networks that teach; each teaches every student [resnet20]")
    students: tuple[str, ...] = option((), "networks that learn [resnet8]")
    pairs: tuple[str, ...] = option((), "TEACHER->STUDENT, instead of every teacher with every student")
    methods: tuple[str, ...] = option(("ce", "kd", "hkd", "hkd+kd"), METHODS_HELP)
    baseline: str | None = option(None, "what every method is compared with [the best that is not hkd]")
    lr_of: dict[str, float] = option({}, "learning rates of networks that need another than --lr, by name", gt=0)
    teacher_checkpoints: dict[str, str] = option({}, "weights of teachers, by name; the others are trained first")

    @property
    def requests(self) -> tuple[MethodRequest, ...]:
        """The methods, parsed, with the control of those that end in +kd; see :func:`with_control`."""
        return with_control(parsed_methods(self.methods))

    @property
    def written_labels(self) -> tuple[str, ...]:
        """The labels of the methods without a control that was added."""
        return tuple(request.label for request in parsed_methods(self.methods))

    @property
    def named_pairs(self) -> tuple[tuple[str, str], ...]:
        """(teacher, student) names."""
        if not self.pairs:
            teachers, students = self.teachers or (TEACHER,), self.students or (STUDENT,)
            return tuple((teacher, student) for teacher in teachers for student in students)
        if self.teachers or self.students:
            raise RequestError("pairs: they name the networks; drop teachers and students")
        named = []
        for pair in self.pairs:
            teacher, arrow, student = (part.strip() for part in pair.partition("->"))
            if not (teacher and arrow and student):
                raise RequestError(f"pairs: expected TEACHER->STUDENT; got {pair!r}")
            named.append((teacher, student))
        return tuple(named)

    def check(self) -> None:
        super().check()
        labels = [request.label for request in self.requests]
        check_distinct("pairs", [" -> ".join(pair) for pair in self.named_pairs])
        if self.baseline is not None and self.baseline not in labels:
            raise unknown("baseline", self.baseline, labels)
        networks = {name for pair in self.named_pairs for name in pair}
        for name in ("lr_of", "teacher_checkpoints"):
            if strange := [network for network in getattr(self, name) if network not in networks]:
                raise unknown(name, strange[0], networks)
        teachers, students = zip(*self.named_pairs, strict=True)
        for name, named in (("teacher_weights", teachers), ("student_weights", students)):
            if getattr(self, name) is not None and len(set(named)) > 1:
                raise RequestError(
                    f"{name}: are those of one network; the comparison has {', '.join(sorted({*named}))}"
                )


@dataclass(frozen=True, kw_only=True)
class SweepConfig(_StudyConfig):  # type: ignore[misc, valid-type]
    """How results depend on one field: several values, methods and trials; or a search over several."""

    run: str = option("runs/sweep", "the folder of the sweep: its runs, table and plot", writes="folder")
    student: str | None = option(None, "the network that learns [resnet8]")
    teacher: str | None = option(None, "the network that teaches [what the checkpoint says it is, or resnet20]")
    teacher_checkpoint: str | None = option(None, "the teacher's weights; if not given, the teacher is trained first")
    teacher_lr: float | None = option(None, "learning rate of a teacher that is trained first [--lr]", gt=0)
    field: str = option("holistic.hops", "what varies: an option of `hkd distill`, as holistic.k or method_weight")
    values: tuple[str, ...] = option(("1", "2"), "its values")
    methods: tuple[str, ...] = option(("hkd+kd",), METHODS_HELP)
    search: tuple[str, ...] = option((), "FIELD=LO..HI[:log] or FIELD=A|B|C: search these with Optuna (hkd[search])")
    tries: int = option(20, "runs of a search", ge=1, le=100_000)

    @property
    def requests(self) -> tuple[MethodRequest, ...]:
        """The methods, parsed."""
        return parsed_methods(self.methods)

    @property
    def points(self) -> tuple[Any, ...]:
        """The values, parsed."""
        return tuple(map(parse_value, self.values))

    def check(self) -> None:
        super().check()
        _ = self.requests
        if self.search:
            if len(self.methods) != 1:
                raise RequestError("search: looks for settings of one method; name one with --methods")
            if not self.holdout:
                raise RequestError(
                    "search: settings are chosen on held-out training images; name a part, --holdout 0.1"
                )
            return
        check_distinct("values", list(self.points))
        free = {"student", "teacher", "teacher_lr"}
        if self.field in STUDY_SETS - free | {"device", "settings"}:
            raise RequestError(f"field: {self.field} is set by the sweep itself")
        if self.field in ("teacher", "teacher_pretrained") and self.teacher_checkpoint is not None:
            raise RequestError(f"field: {self.field} varies, and teacher_checkpoint names one trained teacher")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Testing a network. What is left open is what the run folder of the checkpoint says."""

    checkpoint: str = option(
        "", "a run folder, a .safetensors file, or a .pth file of RepDistiller, mdistiller or torchvision"
    )
    model: str | None = option(None, "the network in the file, where the file does not say")
    dataset: str | None = option(None, "digits, cifar100, stl10, tiny-imagenet, imagenet, folder:PATH or csv:FILE")
    data_root: str | None = option(None, "where data sets are stored and downloaded to")
    image_size: int | None = option(None, "resize images to squares of this side in pixels", ge=2, le=4096)
    limit_classes: int | None = option(None, "use the first N classes only", ge=2)
    batch_size: int = option(256, "images in a step", ge=1, le=2**20)
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Precision = option("fp32", "arithmetic of the network; fp16 needs a GPU")
    workers: int | None = option(None, "processes or threads that decode images [one a core, at most 8]", ge=0, le=1024)

    def check(self) -> None:
        """Raises :class:`RequestError` for the first field that is out of its range."""
        check_fields(self)
        if not self.checkpoint:
            raise RequestError("checkpoint: name a run folder or a file of weights")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """The classes of image files, by a trained network."""

    checkpoint: str = option("", "a run folder or a .safetensors file")
    images: tuple[str, ...] = option((), "image files, and folders and .zip archives of images")
    output: str | None = option(None, "a .csv file for file, rank, class, probability [standard output]", writes="file")
    top: int = option(5, "classes that each file gets, likeliest first", ge=1, le=1_000_000)
    model: str | None = option(None, "the network in the file, where the file does not say")
    batch_size: int = option(64, "images in a step", ge=1, le=2**20)
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    workers: int | None = option(None, "threads that decode images [one a core, at most 8]", ge=0, le=1024)

    def check(self) -> None:
        """Raises :class:`RequestError` for the first field that is out of its range, or cannot be written to."""
        check_fields(self)
        if not self.checkpoint:
            raise RequestError("checkpoint: name a run folder or a file of weights")
        if not self.images:
            raise RequestError("images: name at least one image file, or a folder or .zip archive of images")
        check_outputs(self)


_CACHE_NAMES = [
    "dataset",
    "data_root",
    "image_size",
    "limit_classes",
    "limit_train",
    "train_fraction",
    "holdout",
    "holdout_seed",
    "mean",
    "std",
    "augment",
    "min_crop",
    "views",
    "flip",
    "teacher_image_size",
    "bad_images",
    "image_cache",
    "image_cache_gb",
    "teacher_cache_gb",
    "teacher_cache_dtype",
    "device",
    "precision",
    "threads",
    "workers",
]


@dataclass(frozen=True, kw_only=True)
class CacheConfig(_flat("CacheOptions", "The data of a table.", flat_fields(tuple(_CACHE_NAMES), {}), object)):  # type: ignore[misc]
    """Filling the table of a teacher's outputs before any run needs it; listing and pruning tables."""

    checkpoint: str = option("", "the teacher: a run folder or a file of weights")
    teacher: str | None = option(None, "its network, where the file does not say")
    teacher_cache: str = option("", "the folder of the tables", writes="folder")
    batch_size: int = option(256, "views in a step", ge=1, le=2**20)
    list: str = option("", "show the tables in this folder, and do nothing else")
    prune: str = option("", "delete tables in this folder, least recently used first, down to --teacher-cache-gb")

    def check(self) -> None:
        """Raises :class:`RequestError` for the first field that is out of its range."""
        check_fields(self)
        if self.list or self.prune:
            return
        if not self.checkpoint:
            raise RequestError("checkpoint: name the teacher, a run folder or a file of weights")
        if not self.teacher_cache or self.teacher_cache in ("auto", "off"):
            raise RequestError("teacher_cache: name the folder of the tables")
        check_outputs(self)

    def spec(self) -> RunSpec:
        """A run that would read the table."""
        values = {name: getattr(self, name) for name in _CACHE_NAMES}
        return RunSpec.from_flat(
            values
            | {"method": "kd", "teacher": self.teacher, "teacher_checkpoint": self.checkpoint}
            | {"teacher_cache": self.teacher_cache, "run": "-"}
        )


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """A linear classifier on the frozen features of trained networks, on other data."""

    checkpoints: tuple[str, ...] = option((), "run folders or .safetensors files; their teachers take part")
    run: str = option("runs/transfer", "the folder for tables and features", writes="folder")
    datasets: tuple[str, ...] = option(
        ("stl10", "tiny-imagenet"), "what to transfer to, by name, folder:PATH or csv:FILE"
    )
    data_root: str = option("data", "where data sets are stored and downloaded to")
    image_size: int = option(32, "resize images to squares of this side in pixels", ge=2, le=4096)
    limit_classes: int | None = option(None, "use the first N classes only", ge=2)
    limit_train: int | None = option(None, "use the first N training images of each class", ge=1)
    probe: Literal["logistic", "sgd"] = option(
        "logistic", "logistic regression, or 120 epochs of SGD, as in CRD's linear probe"
    )
    holdout: float = option(0.2, "fraction of the training split on which the probe's penalty is chosen", gt=0, lt=1)
    seed: int = option(0, "of the split and the probe", ge=0, lt=2**32)
    batch_size: int = option(256, "images in a step while features are extracted", ge=1, le=2**20)
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Precision = option("fp32", "arithmetic of the networks; fp16 needs a GPU")

    def check(self) -> None:
        """Raises :class:`RequestError` for the first field that is out of its range, or cannot be written to."""
        check_fields(self)
        if not self.checkpoints:
            raise RequestError("checkpoints: name at least one run folder or file of weights")
        if not self.datasets:
            raise RequestError("datasets: name at least one")
        check_outputs(self)


@dataclass(frozen=True, kw_only=True)
class TopologyConfig:
    """How alike a teacher and its students place test images."""

    checkpoints: tuple[str, ...] = option((), "run folders of students, or first a teacher's and then students'")
    run: str = option("runs/topology", "the folder for panels and numbers", writes="folder")
    dataset: str | None = option(None, "other test images than those of the runs, by name, folder:PATH or csv:FILE")
    data_root: str | None = option(None, "where data sets are stored and downloaded to")
    images: int = option(1000, "test images that are shown and compared, drawn at random", ge=5, le=100_000)
    neighbours: int = option(10, "nearest neighbours that the numbers look at", ge=1, le=100_000)
    edges: bool = option(False, "draw the graph of images that a network predicts alike")
    k: int = option(8, "size of a neighbourhood in that graph, the image itself included", ge=1, le=100_000)
    seed: int = option(0, "of the images drawn and the layout", ge=0, lt=2**32)
    batch_size: int = option(256, "images in a step while features are extracted", ge=1, le=2**20)
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Precision = option("fp32", "arithmetic of the networks; fp16 needs a GPU")

    def check(self) -> None:
        """Raises :class:`RequestError` for the first field that is out of its range, or cannot be written to."""
        check_fields(self)
        if not self.checkpoints:
            raise RequestError("checkpoints: name at least one run folder")
        self.check_neighbours(self.images)
        check_outputs(self)

    def check_neighbours(self, images: int) -> None:
        """Trustworthiness is defined for neighbourhoods of less than half of the images."""
        if 2 * self.neighbours >= images:
            raise RequestError(f"neighbours: expected less than half of the {images} images; got {self.neighbours}")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """One self-contained HTML page from run folders."""

    runs: tuple[str, ...] = option((), "run folders, or folders that hold some, as those of comparisons and sweeps")
    output: str = option("report.html", "the file", writes="file")
    title: str = option("Distillation report", "the title of the page")
    data_root: str | None = option(None, "where the data sets are stored whose images are shown")

    def check(self) -> None:
        """Raises :class:`RequestError` for the first field that is missing."""
        check_fields(self)
        if not self.runs:
            raise RequestError("runs: name at least one run folder")
        check_outputs(self)


FORMATS = ("onnx", "torch", "safetensors")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Writing a trained network as files that others can run."""

    checkpoint: str = option("", "a run folder or a .safetensors file")
    output: str | None = option(None, "folder for the files [export in the run folder]", writes="folder")
    formats: tuple[str, ...] = option(FORMATS, "which files to write")
    model: str | None = option(None, "the network in the file, where the file does not say")
    dataset: str | None = option(None, "images to check the files on [the run's test split, or noise without it]")
    data_root: str | None = option(None, "where data sets are stored and downloaded to")
    image_size: int | None = option(
        None, "side in pixels of the images that the files take [as trained]", ge=2, le=4096
    )
    int8: bool = option(False, "write model.int8.onnx, too, calibrated on training images and tested on test images")
    max_drop: float | None = option(None, "points of accuracy that int8 may lose, else it is refused [1]", ge=0, le=100)
    calibration_images: int | None = option(
        None, "training images, spread over all, that int8 is calibrated on [256]", ge=1, le=100_000
    )
    license: str = option("unknown", "of the network, for the card's head, as the Hugging Face Hub names it")
    data_license: str = option("unknown", "of the training images, for the card")
    teacher_license: str = option("unknown", "of the teacher's weights, for the card")
    opset: int | None = option(None, "of the ONNX files [the exporter's own]", ge=18, le=23)

    def check(self) -> None:
        """Raises :class:`RequestError` for the first field that is out of its range."""
        check_fields(self)
        if not self.checkpoint:
            raise RequestError("checkpoint: name a run folder or a file of weights")
        if not self.formats:
            raise RequestError(f"formats: expected some of {', '.join(FORMATS)}; got none")
        for name in self.formats:
            if name not in FORMATS:
                raise unknown("formats", name, FORMATS)
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,63}", self.license):
            raise RequestError(f"license: expected a name as apache-2.0 or unknown; got {shown(self.license)}")
        for name in ("int8", "opset"):
            if getattr(self, name) and "onnx" not in self.formats:
                raise RequestError(f"{name}: is for the ONNX file; got formats {','.join(self.formats)}")
        for name in ("max_drop", "calibration_images"):
            if getattr(self, name) is not None and not self.int8:
                raise RequestError(f"{name}: is for int8; name --int8, too")
        check_outputs(self)

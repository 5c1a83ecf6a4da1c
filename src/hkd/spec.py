"""The specification of a run: what decides what it learns, in typed parts, nested in Python and flat on disk.

Imports nothing heavy; opening the data set and reading the method's settings do.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hkd.data.spec import DataSpec
from hkd.errors import RequestError, unknown
from hkd.files import inside, read_yaml, write_text
from hkd.methods.spec import UNLABELLED_SHARE, MethodSpec
from hkd.models.names import local_folder, model_of_file, names_code, untrusted
from hkd.models.spec import STUDENT, TEACHER, StudentSpec, TeacherSpec
from hkd.optimisation import OptimisationSpec
from hkd.options import check_fields, coerce, hints_of, key_values, options, shown
from hkd.runtime.spec import RuntimeSpec

if TYPE_CHECKING:
    from hkd.data import Data

FORMAT = 2
"""Of the flat shape on disk. Format 1, of version 0.1, names none."""
PLUS_KD = "+kd"
"""NAME+kd in the flat shape is NAME with the KD term at weight 1."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A run. One without a method trains ``student`` with cross-entropy; it has no teacher.

    What is open (None) is resolved when the run starts: names, the method's published weights, digests of the data and
    of the teacher. Two runs belong together if and only if their :meth:`key` is equal.

    A student may learn from several teachers, whose weights are all given: ``teacher`` is the first, and
    ``more_teachers`` are the others. On disk their names, checkpoints and digests are lists.
    """

    data: DataSpec = DataSpec()
    student: StudentSpec = StudentSpec()
    teacher: TeacherSpec | None = None
    more_teachers: tuple[TeacherSpec, ...] = ()
    method: MethodSpec | None = None
    optimisation: OptimisationSpec = OptimisationSpec()
    runtime: RuntimeSpec = RuntimeSpec()

    @property
    def teachers(self) -> tuple[TeacherSpec, ...]:
        """All teachers in their order; none where the student learns from labels alone."""
        return () if self.teacher is None else (self.teacher, *self.more_teachers)

    @property
    def teacher_names(self) -> str:
        """The teachers as a table names them: "vgg13", or "vgg13+resnet56"; empty without one."""
        return "+".join(str(teacher.name) for teacher in self.teachers)

    @property
    def run(self) -> str:
        """The run folder."""
        return self.runtime.run

    @property
    def seed(self) -> int:
        return self.runtime.seed

    @property
    def unlabelled(self) -> str | None:
        """Images without labels, which only a teacher can say something of."""
        return None if self.method is None else self.method.unlabelled

    def with_options(self, **values: Any) -> RunSpec:
        """The specification with some options, by their flat names, at other values."""
        return _build(self, values)

    # -- flat shape ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_flat(cls, values: Mapping[str, Any], *, ignore_other_methods: bool = False) -> RunSpec:
        """Reads the flat shape: a run with ``method`` is a distillation, one without trains the student alone.

        Args:
            values: options by their flat names, and the method's settings under its prefix (or under ``settings``).
            ignore_other_methods: whether settings of methods other than the run's are skipped, as in a recipe that
                serves several, instead of refused.

        Raises:
            RequestError: an unknown name, a wrong type, a value out of range, or a format of a later version.
        """
        values = dict(values)
        version = values.pop("format", FORMAT)
        if version == 1:
            values = _from_format_1(values)
        elif version != FORMAT:
            words = "of this or an earlier version of hkd"
            raise RequestError(f"format: expected 1 or {FORMAT}, {words}; got {shown(version)}")
        distils = values.get("method") is not None
        if ignore_other_methods:
            values = _without_other_methods(values)
        spec = _build(cls(teacher=TeacherSpec(), method=MethodSpec()) if distils else cls(), values)
        spec.check()
        return spec

    def to_flat(self) -> dict[str, Any]:
        """The flat shape: what ``config.yaml`` holds and ``--config`` takes, lists for tuples."""
        flat: dict[str, Any] = {"format": FORMAT}
        for part in self._parts():
            for entry in fields(part):
                if entry.metadata:
                    flat[entry.metadata.get("flat") or entry.name] = _listed(getattr(part, entry.name))
        if self.more_teachers:
            for name in SEVERAL:
                values = [getattr(teacher, FIELDS[name].field) for teacher in self.teachers]
                flat[name] = values if any(values) else values[0]
        if self.method is not None and is_dataclass(self.method.settings):
            settings = asdict(self.method.settings)  # type: ignore[arg-type]
            flat[_prefix(self.method.name)] = {name: _listed(value) for name, value in settings.items()}
        return flat

    @classmethod
    def load(cls, file: str | Path, *, trust: bool = False) -> RunSpec:
        """Reads a specification to run it again: the ``config.yaml`` of a run folder, of this or an earlier version.

        Args:
            file: to read; nothing that it names is imported.
            trust: whether networks in it may be code, as a factory, which a run imports.

        Raises:
            RequestError: it is no specification, or names code and is not trusted.
        """
        spec = cls.read(file)
        for option, name in () if trust else spec.code.items():
            raise untrusted(file, option, name, "pass trust=True if you trust the file")
        return spec

    @classmethod
    def read(cls, file: str | Path) -> RunSpec:
        """As :meth:`load`, to show a run and to compare it with others: the networks may be code, so none is built."""
        values = read_yaml(Path(file))
        try:
            return cls.from_flat({"format": 1} | values)
        except RequestError as error:
            hint = "; --plugin imports a method of another package" if str(error).startswith("method: unknown") else ""
            raise RequestError(f"run: {file} is not the configuration of a run ({error}){hint}") from error

    @property
    def code(self) -> dict[str, str]:
        """The networks whose names import a module or download something, by their options."""
        named = [("student", self.student.name), *(("teacher", teacher.name) for teacher in self.teachers)]
        return {option: name for option, name in named if name is not None and names_code(name)}

    def save(self, file: Path) -> None:
        """Writes ``config.yaml``."""
        import yaml

        write_text(file, yaml.safe_dump(self.to_flat(), sort_keys=False, allow_unicode=True))

    def _parts(self) -> list[Any]:
        parts = (self.runtime, self.data, self.student, *self.teachers[:1], self.method, self.optimisation)
        return [part for part in parts if part is not None]

    # -- what belongs together ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises :class:`RequestError` for the first option that has the wrong type or is out of its range."""
        for part in (*self._parts(), *self.more_teachers):
            check_fields(part)
        if self.more_teachers and (open_ := [t for t in self.teachers if t.checkpoint is None and not t.digest]):
            count = len(self.teachers)
            raise RequestError(
                f"teacher_checkpoint: expected the weights of each of {count} teachers; got {count - len(open_)}"
            )
        self._check_patience()
        milestones = list(self.optimisation.milestones)
        if milestones != sorted(set(milestones)):
            raise RequestError(f"milestones: expected rising fractions of the run; got {milestones}")
        for role, network in (("student", self.student), ("teacher", self.teacher)):
            if network is not None and network.weights is not None:
                others = {f"{role}_{name}": getattr(network, name, None) for name in ("pretrained", "checkpoint")}
                if given := [name for name, value in others.items() if value]:
                    raise RequestError(f"{role}_weights: expected one origin of the weights; got {given[0]}, too")
        if self.student.train == "head":
            changing = {name: getattr(self.data, name) for name in ("augment", "min_crop", "mixup", "cutmix")}
            if given := [name for name, value in changing.items() if value]:
                raise RequestError(
                    f"{given[0]}: expected with student_train all; a head learns from images as they are"
                )
        if self.teacher is not None and self.teacher.train == "head" and self.teacher.checkpoint is not None:
            raise RequestError(
                "teacher_train: expected all for a teacher that is trained, teacher_checkpoint; got head"
            )
        if self.data.min_crop is not None and self.data.augment == "crop":
            raise RequestError("min_crop: is of resized crops, and --augment crop has none")
        if self.method is not None:
            check_weights(self.method)
            check_mixing(self.data, self.method)

    def _check_patience(self) -> None:
        if self.optimisation.patience is None:
            return
        if self.runtime.evaluate == "last":
            raise RequestError("patience: compares evaluations after every epoch; got evaluate last")
        if not self.data.holdout:
            raise RequestError("patience: expected with --holdout, so that no test image decides when a training ends")

    @property
    def is_resolved(self) -> bool:
        """Whether nothing that decides what is learnt is open. Runs of version 0.1 are taken as they are."""
        return self.data.revision == 0 or (self.data.digest != "" and self.student.name is not None)

    def resolved(self, data: Data | None = None) -> RunSpec:
        """The specification with nothing open.

        Args:
            data: what :func:`hkd.data.open_data` returned for it, where it is open already.
        """
        if self.is_resolved and data is None:
            return self
        from hkd.data import open_data

        data = data or open_data(self.data, unlabelled=self.unlabelled, workers=self.runtime.workers)
        teachers = tuple(map(resolve_teacher, self.teachers))
        method = None if self.method is None else resolve_method(self.method)
        if self.data.balance == "loss" and method is not None and method.ce_weight == 0:
            raise RequestError("balance: loss weighs the cross-entropy, whose weight is 0; sampler needs none")
        return replace(
            self,
            data=replace(
                self.data,
                dataset=data.name,
                holdout=data.holdout,
                digest=data.digest,
                revision=self.data.revision and data.revision,
            ),
            student=resolve_student(self.student),
            teacher=teachers[0] if teachers else None,
            more_teachers=teachers[1:],
            method=method,
        )

    def key(self) -> str:
        """A digest of everything that decides what is learnt, except the seed, the folder and the machine.

        A specification that is not resolved is resolved first, which opens its data set.
        """
        spec = self.resolved()
        values = dict(
            entry for part in (spec.data, spec.student, spec.optimisation, spec.runtime) for entry in key_values(part)
        )
        if not spec.data.digest:  # runs of version 0.1 recorded neither digest
            flat = spec.to_flat()
            values |= {name: flat.get(name) for name in (*DATA_OPTIONS, "teacher_checkpoint") if name != "data_root"}
        if spec.teacher is not None:
            values |= dict(key_values(spec.teacher))
            if spec.teacher.digest:  # the weights say it all
                values = {k: v for k, v in values.items() if k not in OF_TRAINING}
        if spec.more_teachers:
            values["teacher_digest"] = [teacher.digest for teacher in spec.teachers]
        if spec.method is not None:
            values |= dict(key_values(replace(spec.method, settings=None)))
            if spec.method.settings is not None:
                values |= dict(key_values(spec.method.settings, f"{_prefix(spec.method.name)}."))
            del values["settings"]
        text = json.dumps(values, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def difference(self, other: RunSpec) -> tuple[str, Any, Any] | None:
        """The first option that decides what is learnt and differs: its name and both values; None if all agree.

        What runs of version 0.1 did not record, digests and revisions, is no difference to them.
        """
        mine, theirs = _dotted(self.to_flat()), _dotted(other.to_flat())
        recorded = self.data.revision and other.data.revision
        free = {name for name, (part, field) in FIELDS.items() if not field_of(part, field).metadata["key"]}
        differing = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
        names = [name for name in differing if name not in free | {"format"}]
        for name in sorted(names, key=lambda name: name in RECORDED):  # an option says more than a digest
            said = next((option for option in BEHIND.get(name, ()) if option in differing), name)
            if recorded or said not in (*RECORDED, "data_root"):
                return said, mine.get(said), theirs.get(said)
        return None


def _dotted(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The flat shape with a method's settings one by one, as ``holistic.k``."""
    values: dict[str, Any] = {}
    for name, value in flat.items():
        values |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, Mapping) else {name: value}
    return values


DATA_OPTIONS = ("dataset", "limit_classes", "limit_train", "train_fraction", "data_root")
"""What decides the digest of the data."""
BEHIND = {
    "data_digest": DATA_OPTIONS, "teacher_digest": ("teacher_checkpoint",),
    "student_weights_digest": ("student_weights",), "teacher_weights_digest": ("teacher_weights",),
}  # fmt: skip
"""The options that a digest stands for."""


OF_TRAINING = frozenset({"teacher", "teacher_pretrained", "teacher_lr", "teacher_train", "teacher_weights_digest"})
"""What is said of a teacher's training, which its weights replace."""


class Place(NamedTuple):
    """Where a flat name is in the specification."""

    part: str
    field: str


PARTS = {
    "data": DataSpec, "student": StudentSpec, "teacher": TeacherSpec, "method": MethodSpec,
    "optimisation": OptimisationSpec, "runtime": RuntimeSpec,
}  # fmt: skip
FIELDS: dict[str, Place] = {
    entry.metadata.get("flat") or entry.name: Place(part, entry.name)
    for part, kind in PARTS.items()
    for entry in fields(kind)
    if entry.metadata
}
"""Every flat name, recorded ones included."""
RECORDED = frozenset(name for name, (part, field) in FIELDS.items() if "help" not in {
    entry.name: entry for entry in fields(PARTS[part])}[field].metadata)  # fmt: skip
SEVERAL = ("teacher", "teacher_checkpoint", "teacher_digest")
"""Flat names with a list where there are several teachers; what else is said of a teacher is said of each."""
TRAINING = tuple(
    entry.metadata.get("flat") or entry.name
    for part in (RuntimeSpec, DataSpec, StudentSpec, OptimisationSpec)
    for entry in options(part)
)
"""The options of a run without a teacher, by their flat names."""
DISTILLATION = tuple(
    entry.metadata.get("flat") or entry.name for part in (TeacherSpec, MethodSpec) for entry in options(part)
)
"""The options that a distillation has beside those."""


def field_of(part: str, name: str) -> Any:
    """A field of one of the specification's parts."""
    return next(entry for entry in fields(PARTS[part]) if entry.name == name)


def _build(base: RunSpec, values: Mapping[str, Any]) -> RunSpec:
    """A specification with flat values put into its parts."""
    changes: dict[str, dict[str, Any]] = {}
    lists: dict[str, tuple[str, ...]] = {}
    settings: dict[str, Any] = {}
    for name, value in values.items():
        if name in FIELDS:
            part, field = FIELDS[name]
            if name in SEVERAL and isinstance(value, list | tuple):
                lists[name] = coerce(name, value, tuple[str, ...])
                changes.setdefault(part, {})
            else:
                changes.setdefault(part, {})[field] = coerce(name, value, hints_of(PARTS[part])[field])
        else:
            settings[name] = value
    if base.method is None:  # what only a distillation needs is ignored: a pair's recipe trains its networks, too
        changes = {part: values for part, values in changes.items() if part not in ("teacher", "method")}
        if settings:
            raise unknown("option", next(iter(settings)), sorted(FIELDS.keys() - RECORDED))
    if "method" in changes:
        changes["method"] = _plus_kd(changes["method"])
    if "teacher" in changes:
        first, *others = _teachers(base.teachers, changes.pop("teacher"), lists)
        base = replace(base, teacher=first, more_teachers=tuple(others))
    made = {part: replace(getattr(base, part), **fields) for part, fields in changes.items()}
    spec = replace(base, **made)
    if settings and spec.method is not None:
        spec = replace(spec, method=_with_settings(spec.method, settings))
    return spec


def _teachers(
    base: tuple[TeacherSpec, ...], values: Mapping[str, Any], lists: Mapping[str, tuple[str, ...]]
) -> list[TeacherSpec]:
    """The teachers with other values.

    Args:
        base: one or more.
        values: by fields, of a single teacher, or what several have in common.
        lists: by flat names, an item for each teacher, in the place of what ``values`` has.
    """
    single = {name: 1 for name in SEVERAL if values.get(FIELDS[name].field)}
    counts = single | {name: len(items) for name, items in lists.items()}
    count = next((counts[name] for name in SEVERAL if name in counts), len(base))
    for name, items in counts.items():
        if items != count or count == 0:
            raise RequestError(f"{name}: expected {count or 'one or more'}, one for each teacher; got {items}")
    if count != len(base):
        base = (replace(base[0], name=None, checkpoint=None, digest=""),) * count
    columns: dict[str, Any] = {FIELDS[name].field: items for name, items in lists.items()}
    return [
        replace(teacher, **values, **{field: items[n] for field, items in columns.items()})
        for n, teacher in enumerate(base)
    ]


def _plus_kd(values: dict[str, Any]) -> dict[str, Any]:
    """NAME+kd as NAME with the KD term at weight 1."""
    name = values.get("name")
    if not isinstance(name, str) or not name.endswith(PLUS_KD):
        return values
    if name == f"kd{PLUS_KD}":
        raise RequestError("method: kd is the KD term itself; its weight is kd_weight")
    weight = 1.0 if values.get("kd_weight") is None else values["kd_weight"]
    return values | {"name": name.removesuffix(PLUS_KD), "kd_weight": weight}


def _with_settings(method: MethodSpec, values: Mapping[str, Any]) -> MethodSpec:
    """A method with the given settings, under its prefix or under ``settings``; those that it has already are kept."""
    from hkd.methods import methods
    from hkd.methods.create import method_config

    prefix = methods[method.name].settings
    settings: dict[str, Any] = {} if method.settings is None else asdict(method.settings)
    for name, value in values.items():
        if name not in (prefix, "settings") or not name:
            owners = {methods[other].settings: other for other in methods if methods[other].settings}
            if name in owners:
                raise RequestError(f"{name}: these are settings of {owners[name]}, and the method is {method.name}")
            raise unknown("option", name, sorted({*FIELDS, *owners} - RECORDED))
        if not isinstance(value, Mapping):
            raise RequestError(f"{name}: expected settings by name; got {shown(value)}")
        settings |= value
    if settings and not prefix:  # kd, whose temperature is an option of every method
        raise RequestError(
            f"{method.name}.{next(iter(settings))}: is no setting of a run; T of the KD term is kd_temperature"
        )
    return replace(method, settings=method_config(method.name, settings))


def _without_other_methods(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values without the settings of methods that the run does not use."""
    if all(name in FIELDS or name == "settings" for name in values):
        return values
    from hkd.methods import methods

    chosen = str(values.get("method") or "").removesuffix(PLUS_KD)
    others = {methods[name].settings for name in methods if name != chosen} - {""}
    if chosen in methods:
        others -= {methods[chosen].settings}
    return {name: value for name, value in values.items() if name not in others}


def _listed(value: Any) -> Any:
    """A value as YAML has it."""
    return list(value) if isinstance(value, tuple) else value


def _prefix(method: str) -> str:
    from hkd.methods import methods

    return methods[method].settings or method


def check_weights(method: MethodSpec) -> None:
    """Raises :class:`RequestError` for a method that is not known, or weights that it cannot have."""
    from hkd.methods import methods

    methods[method.name]  # an unknown name raises
    if method.name == "kd" and method.weight:
        raise RequestError("method_weight: kd is the KD term, whose weight is kd_weight")
    if 0 == method.weight == method.kd_weight == method.ce_weight:
        raise RequestError("method_weight: all weights are 0, so there is nothing to learn from")


def check_mixing(data: DataSpec, method: MethodSpec) -> None:
    """Raises :class:`RequestError` where images are mixed and the method cannot learn from such."""
    if not (data.mixup or data.cutmix):
        return
    from hkd.methods import methods
    from hkd.methods.base import mixing_refused

    if why := mixing_refused(methods[method.name], method.name):
        taken = ", ".join(sorted(name for name in methods if methods[name].takes_mixed))
        raise RequestError(f"{'mixup' if data.mixup else 'cutmix'}: {why}; methods that take them: {taken}")


def resolve_method(method: MethodSpec) -> MethodSpec:
    """A method with its published weights and its settings where they were open."""
    from hkd.methods import methods
    from hkd.methods.create import method_config

    kind = methods[method.name]
    settings = method.settings if method.settings is not None else method_config(method.name, {})
    usual = kind.default_weights(settings)
    share = method.unlabelled_share or (None if method.unlabelled is None else UNLABELLED_SHARE)
    done = replace(
        method,
        weight=usual.method if method.weight is None else method.weight,
        kd_weight=usual.kd if method.kd_weight is None else method.kd_weight,
        ce_weight=usual.ce if method.ce_weight is None else method.ce_weight,
        unlabelled_share=share,
        settings=settings if kind.settings else None,
        revision=kind.revision,
    )
    check_weights(done)
    return done


def resolve_student(student: StudentSpec) -> StudentSpec:
    """A student with its name, and the digest of the weights that it starts from."""
    if student.weights is None:
        digest = student.weights_digest or _of_folder(student.name)
        return replace(student, name=student.name or STUDENT, weights_digest=digest)
    name, digest = _start(student.name, student.weights, "student")
    return replace(student, name=name, weights_digest=student.weights_digest or digest)


def _start(name: str | None, weights: str, role: str) -> tuple[str, str]:
    """The name of a network that starts from a file, and the file's digest."""
    from hkd.models.weights import read_about

    file, folder = locate(weights, f"{role}_weights")
    return name or model_of_file(read_about(file), file, role), identity(file, folder)


def _of_folder(name: str | None) -> str:
    """A digest of the files in the folder that ``timm:local-dir:PATH`` names, empty for other names."""
    folder = None if name is None else local_folder(name)
    if folder is None or not os.path.isdir(folder):
        return ""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".bin", ".pth") and file.is_file():
            with file.open("rb") as content:
                digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return f"folder {digest.hexdigest()[:16]}"


def resolve_teacher(teacher: TeacherSpec) -> TeacherSpec:
    """A teacher with its name, and the digest of its weights where they are given."""
    if teacher.weights is not None:
        name, digest = _start(teacher.name, teacher.weights, "teacher")
        return replace(teacher, name=name, weights_digest=teacher.weights_digest or digest)
    if teacher.checkpoint is None:
        digest = teacher.weights_digest or _of_folder(teacher.name)
        return replace(teacher, name=teacher.name or TEACHER, weights_digest=digest)
    if teacher.digest:  # a run that is yet to be trained
        return replace(teacher, name=teacher.name or TEACHER)
    from hkd.models.weights import read_about

    file, folder = locate(teacher.checkpoint, "teacher_checkpoint")
    name = teacher.name or model_of_file(read_about(file), file, "teacher")
    return replace(teacher, name=name, digest=identity(file, folder))


def identity(file: Path, folder: Path | None) -> str:
    """Which weights a file holds: those of a run with its seed, or those with a digest."""
    if folder is not None:
        spec = RunSpec.read(folder / "config.yaml")
        return f"run {spec.key()} {spec.seed}"
    with file.open("rb") as content:
        return f"weights {hashlib.file_digest(content, 'sha256').hexdigest()[:16]}"


def locate(checkpoint: str | Path, option: str = "checkpoint") -> tuple[Path, Path | None]:
    """A checkpoint's file of weights, and the run folder whose result it is, if any.

    Args:
        checkpoint: the file or the folder.
        option: that names it.

    Raises:
        RequestError: there is no such file, or in the folder it is a link.
    """
    path = Path(checkpoint)
    files = [inside(path, name) for name in WEIGHTS] if os.path.isdir(path) else [path]
    file = next((file for file in files if os.path.isfile(file)), None)
    if file is None and os.path.isfile(path / "config.yaml"):
        raise RequestError(f"{option}: the run in {path} is not finished, so it has no weights yet")
    if file is None:
        raise RequestError(f"{option}: no file {' or '.join(map(str, files))}")
    folder = file.parent
    return file, folder if file.name in WEIGHTS and (folder / "config.yaml").is_file() else None


WEIGHTS = ("student.safetensors", "model.safetensors")
"""The result of a distillation and of a training, in their run folders."""


def _from_format_1(values: dict[str, Any]) -> dict[str, Any]:
    """The flat shape of version 0.1, whose runs never belong together with later ones."""
    values = dict(values)
    role = values.pop("role", None)
    values.pop("settings", None)
    if values.get("method") is None:
        role = role or ("student" if values.get("student") else "teacher")
        values["student"] = values.get(role)
        values["student_pretrained"] = values.get(f"{role}_pretrained", False)
        for name in ("teacher", "teacher_pretrained"):
            values.pop(name, None)
    return values | {"data_revision": 0, "method_revision": 0}

"""Train a network, distil one, evaluate one. The first two leave a run folder."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import hkd
from hkd.config import CacheConfig, EvaluateConfig, FlatConfig
from hkd.data import ArrayDataset, Data, make_loader, open_data, prepare
from hkd.data.open import worker_count
from hkd.data.summary import summarise
from hkd.distiller import as_teachers
from hkd.errors import RequestError, TrainingError
from hkd.files import inside
from hkd.head import fit_head
from hkd.metrics import Evaluation, confident_classes, evaluate_model
from hkd.models import Model, create_model, load_checkpoint, save_model
from hkd.models.fold import fold_batch_norms
from hkd.models.names import resized
from hkd.models.spec import TEACHER, StudentSpec
from hkd.optimisation import OptimisationSpec
from hkd.outside import check_logger, check_outputs
from hkd.parts import Parts, Teachers, build, check_training, relabelled, report_stage_pairs
from hkd.runtime.curves import Curves
from hkd.runtime.engine import Engine
from hkd.runtime.provenance import new_entry, now
from hkd.runtime.records import MOST_STARTS
from hkd.runtime.run_folder import RunFolder
from hkd.runtime.teacher_cache import CacheRequest, TeacherCache, fits, table_key
from hkd.spec import RunSpec
from hkd.trained import evaluation_split, find_trained, open_test
from hkd.trainer import Trainer, check_shares, metadata


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    Attributes:
        run: the run folder.
        model: the trained network, in evaluation mode.
        summary: the content of ``summary.json``.
        weights: the file with the network of the last epoch.
        skipped: whether the run was finished before, and nothing was done.
    """

    run: Path
    model: Model
    summary: dict[str, Any]
    weights: Path
    skipped: bool = False


def train(
    config: FlatConfig | RunSpec,
    model: nn.Module | None = None,
    *,
    train_data: Any = None,
    test_data: Any = None,
    data: Data | None = None,
    fresh: bool = False,
) -> Result:
    """Trains one network with cross-entropy: a teacher, or a student alone.

    Args:
        config: what to train on what, and how.
        model: a module to train, instead of the network that the configuration names.
        train_data, test_data: data set objects, instead of the one that the configuration names; see
            :func:`hkd.as_dataset`.
        data: what :func:`hkd.data.open_data` returned for this configuration, so that several runs share it.
        fresh: start over; what the run folder holds is kept under another name.
    """
    spec = as_spec(config)
    if spec.method is not None:
        raise RequestError("method: train learns from labels alone; see distill")
    return _run(spec, model, None, train_data, test_data, data, fresh)


def distill(
    config: FlatConfig | RunSpec,
    student: nn.Module | None = None,
    teacher: Teachers = None,
    *,
    train_data: Any = None,
    test_data: Any = None,
    data: Data | None = None,
    fresh: bool = False,
) -> Result:
    """Distils a student from a teacher.

    Without a checkpoint or a module, the teacher is trained first, with the same settings, in the folder
    ``teacher`` of the run.

    Args:
        config: who learns from whom on what, and how.
        student, teacher: modules, instead of the networks that the configuration names. The teacher is taken as
            trained, or gets the weights of ``teacher_checkpoint``. A list is of several teachers
            (:class:`hkd.Distiller`); in the configuration, ``teacher`` and ``teacher_checkpoint`` may be lists, too.
        train_data, test_data: data set objects, instead of the one that the configuration names; see
            :func:`hkd.as_dataset`.
        data: what :func:`hkd.data.open_data` returned for this configuration, so that several runs share it.
        fresh: start over; what the run folder holds is kept under another name.
    """
    spec = as_spec(config)
    if spec.method is None or spec.teacher is None:
        raise RequestError("method: name how to learn from the teacher; train learns from labels alone")
    if (student is not None and spec.student.name) or (teacher is not None and any(t.name for t in spec.teachers)):
        raise RequestError("student: a network is passed or named in the configuration, not both; so is a teacher")
    if student is not None and any(student is one for one in as_teachers(teacher)):
        raise RequestError("student: the same network is passed as student and as teacher")
    return _run(spec, student, teacher, train_data, test_data, data, fresh)


def as_spec(config: FlatConfig | RunSpec) -> RunSpec:
    """A run's specification, from itself or from a flat configuration."""
    check_kind(config, FlatConfig, RunSpec)
    spec = config if isinstance(config, RunSpec) else config.spec()
    spec.check()
    return spec


def _run(
    spec: RunSpec, student: nn.Module | None, teacher: Teachers, train_data: Any, test_data: Any,
    data: Data | None, fresh: bool,
) -> Result:  # fmt: skip
    """Builds everything, then trains what is not trained: a wrong request must not cost a teacher's training."""
    if not os.path.isfile(Path(spec.run) / "summary.json"):  # a finished run is read where nothing can be written
        check_outputs(spec.runtime)
        check_logger(spec.runtime.curves)
    check_training(spec)  # before images are decoded
    engine = new_engine(spec)
    with engine.first_of_node():  # downloads and decodes for the others
        data = data or open_data(
            spec.data,
            train_data,
            test_data,
            unlabelled=spec.unlabelled,
            workers=spec.runtime.workers,
            cache=spec.runtime.image_folder,
        )
    check_shares(spec, data, engine)
    parts = build(spec, data, student, teacher)
    folder = RunFolder(spec.run, writes=engine.is_main)
    if not fresh:
        parts = replace(parts, spec=folder.extended(parts.spec))
    with session(folder, parts.spec, engine, fresh):
        if folder.summary is not None:
            summary = folder.result
            load_checkpoint(parts.student, folder.weights)
            return Result(folder.path, parts.student.to(engine.device).eval(), summary, folder.weights, True)
        if not parts.teacher_is_trained:
            if engine.is_main and is_default_teacher(spec) and (spec.student.name or student is not None):
                print(
                    f"no teacher is named: {TEACHER}, the default, is trained first, in {inside(spec.run, 'teacher')}; "
                    "--teacher names another",
                    file=sys.stderr,
                    flush=True,
                )
            _train_teacher(parts)
            engine = new_engine(spec)
        if parts.spec.method is not None and parts.spec.method.pseudo_labels is not None:
            parts = _with_pseudo_labels(parts, engine, parts.spec.method.pseudo_labels)
        if engine.is_main:
            report_start(parts, engine)
        if parts.spec.student.train == "head":
            with recorded_start(folder, engine, parts.spec.data.digest, None) as starts:
                head = fit_head(parts, engine)
            folder.log([head.row()])
            with closing(Curves(parts.spec, folder, engine)) as curves:
                curves.write(head.row())
            return _finish(
                parts, engine, folder, parts.student, head.evaluated, head.summary() | {"provenance": starts}
            )
        trainer = Trainer(parts.spec, parts.distiller, parts.data, engine, folder)
        with recorded_start(folder, engine, parts.spec.data.digest, trainer.teacher_digest) as starts:
            summary = trainer.run()
        assert trainer.evaluated is not None
        return _finish(parts, engine, folder, trainer.kept, trainer.evaluated, summary | {"provenance": starts})


def is_default_teacher(spec: RunSpec) -> bool:
    """Whether nothing is said of a distillation's teacher."""
    teacher = spec.teacher
    return teacher is not None and not (teacher.name or teacher.checkpoint or teacher.weights)


@contextmanager
def recorded_start(folder: RunFolder, engine: Engine, data: str, teacher: str | None) -> Iterator[list[dict[str, Any]]]:
    """Around the work of one start, whose entry is in the run folder from its beginning; a kill leaves it without end.

    Yields:
        The entries of all starts; that of this one has its end when the block is left. Empty in processes that only
        read.
    """
    if not folder.writes:
        yield []
        return
    starts = [*folder.starts, new_entry(engine.device, engine.machine, data, teacher)][-MOST_STARTS:]
    folder.save_starts(starts)
    try:
        yield starts
    finally:
        starts[-1]["ended"] = now()
        folder.save_starts(starts)


def _finish(
    parts: Parts, engine: Engine, folder: RunFolder, network: Model, last: Evaluation, summary: dict[str, Any]
) -> Result:
    """Writes the network, its predictions and the summary, by which the run counts as finished."""
    folder.save_predictions(last.predicted, last.label)
    if folder.writes:
        save_model(network, folder.weights, **metadata(parts.data, summary["epochs"], summary["top1_last"]))
    summary |= {
        "student": parts.student.name,
        "parameters": parts.student.info_at(parts.data.image_size).parameters,
        "train_images": len(parts.data.train),
        "test_images": len(parts.data.test),
        "device": str(engine.device),
        "machine": engine.machine,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hkd": hkd.__version__,
        "key": parts.spec.key(),
    }
    folder.finish(summary, keep_checkpoints=parts.spec.runtime.keep_checkpoints)
    engine.wait()  # the others may read it next
    return Result(folder.path, network.eval(), summary, folder.weights)


def check_kind(config: Any, *kinds: type) -> None:
    """Raises :class:`RequestError` for what is passed in the place of a configuration."""
    if not isinstance(config, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise RequestError(f"config: expected a {names}; got {type(config).__name__}")


def new_engine(spec: RunSpec) -> Engine:
    runtime = spec.runtime
    return Engine(runtime.device, runtime.precision, runtime.seed, runtime.threads)


def teacher_spec(spec: RunSpec, run: Path, seed: int) -> RunSpec:
    """The specification of the training of a distillation's teacher."""
    assert spec.teacher is not None
    first = (*spec.optimisation.epochs_before, spec.optimisation.epochs)[0]  # later ones are the student's
    schedule = replace(spec.optimisation, lr=spec.teacher.lr or spec.optimisation.lr, epochs=first, epochs_before=())
    data = spec.data
    if spec.teacher.train == "head":  # has neither schedule nor augmentation, and serves students of any
        schedule, data = OptimisationSpec(), replace(data, augment=None, min_crop=None, mixup=0.0, cutmix=0.0)
    return replace(
        spec,
        data=data,
        student=StudentSpec(
            name=spec.teacher.name and resized(spec.teacher.name, spec.teacher.image_size),
            pretrained=spec.teacher.pretrained,
            weights=spec.teacher.weights,
            weights_digest=spec.teacher.weights_digest,
            train=spec.teacher.train,
        ),
        teacher=None,
        method=None,
        optimisation=schedule,
        runtime=replace(spec.runtime, run=str(run), seed=seed, image_cache=str(spec.runtime.image_folder)),
    )


def _train_teacher(parts: Parts) -> None:
    """Trains the teacher in a folder of the student's run, and loads it into the network that the method has."""
    first = teacher_spec(parts.spec, inside(parts.spec.run, "teacher"), parts.spec.seed)
    assert parts.distiller.teacher is not None
    load_checkpoint(parts.distiller.teacher, train(first, data=parts.data.labelled).weights)


def _with_pseudo_labels(parts: Parts, engine: Engine, confidence: float) -> Parts:
    """The parts whose memories know unlabelled images by the teacher's class, where it is sure of one."""
    teacher, train = parts.distiller.teacher, parts.data.train
    assert teacher is not None
    rows = (train.labels < 0).nonzero().flatten()
    teacher.to(engine.device)
    options: dict[str, Any] = {"workers": worker_count(parts.spec.runtime.workers), "share": engine.share}
    options["bad_images"] = parts.spec.data.bad_images
    loader = make_loader(train.select(rows, train.info), 256, engine.device, train=False, **options)
    found = confident_classes(teacher, loader, engine, confidence)
    if engine.is_main:
        sure = int((found >= 0).sum())
        print(f"pseudo-labels: {sure:,} of {len(rows):,} images, the teacher is {confidence:.0%} sure", file=sys.stderr)
    return relabelled(parts, train.labels.index_copy(0, rows, found))


@contextmanager
def session(folder: RunFolder, spec: RunSpec, engine: Engine, fresh: bool) -> Iterator[None]:
    """Around work in a run folder, in which one process writes and which the others find as it has prepared it.

    Errors of the machine come out as :class:`TrainingError`, in words.
    """
    with engine.first_of_all():
        folder.open(spec, fresh=fresh)
    if not engine.all_equal(int(folder.summary is not None)):
        raise RequestError(
            f"run: some processes find {folder.path} finished, others do not; it has to be on a shared disk"
        )
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if (explained := in_words(error, spec, engine)) is None:
            raise
        raise explained from error
    except OSError as error:
        raise TrainingError(
            f"cannot read or write {error.filename or folder.path} ({error.strerror or error}); the same command "
            "continues from the last checkpoint"
        ) from error
    finally:
        folder.close()


def in_words(error: BaseException, spec: RunSpec, engine: Engine) -> TrainingError | None:
    """An error of the machine with what can be done against it; None for any other error."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return TrainingError(
            f"out of memory with {spec.optimisation.batch_size} images in a step on {engine.device}; lower "
            "--batch-size, compute it in parts with --accumulate, or use --precision bf16; "
            "HKD and CRD keep smaller banks with --holistic.bank-dtype, "
            "--crd.bank-dtype bfloat16"
        )
    if "DataLoader worker" in str(error):  # torch notices it wherever the run is
        reason = " ".join(str(error).split()).split(". ")[0]
        return TrainingError(
            f"a process that decodes images died ({reason}); the same command continues from the last checkpoint; "
            "if memory ran out, lower --workers or --batch-size"
        )
    return None


def report_start(parts: Parts, engine: Engine) -> None:
    """Says what is learnt from what, and what will be on the device before a step is made, in each process."""
    report_stage_pairs(parts.distiller)
    if parts.note:
        print(parts.note, file=sys.stderr)
    print(parts.data.describe(), file=sys.stderr)
    print(summarise(parts.data, balanced=parts.spec.data.balance != "none"), file=sys.stderr)
    distiller, data = parts.distiller, parts.data
    sizes = {"weights, gradients and momentum": 3 * sum(p.nbytes for p in distiller.parameters())}
    if distiller.teachers:
        name = "teacher" if len(distiller.teachers) == 1 else "teachers"
        sizes[name] = sum(p.nbytes for teacher in distiller.teachers for p in teacher.parameters())
    if distiller.method is not None:
        sizes["memory banks and tables"] = sum(b.nbytes for b in distiller.method.buffers())
    images = data.train.images.nbytes if isinstance(data.train, ArrayDataset) else 0
    words = [f"{name} {_megabytes(size)}" for name, size in sizes.items()]
    words.append(f"training images {_megabytes(images)}" if images else "training images streamed")
    print(f"memory on {engine.device}: {', '.join(words)}; activations come on top", file=sys.stderr)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def fill_cache(config: CacheConfig) -> str:
    """Computes a teacher's outputs for every view that a training with this data can show, each process its part.

    Returns:
        A line about the table.

    Raises:
        RequestError: the request is wrong, or the table does not fit.
    """
    config.check()
    spec = config.spec()
    engine = new_engine(spec)
    folder = Path(config.image_cache or config.teacher_cache)
    data = open_data(spec.data, workers=spec.runtime.workers, cache=folder)
    parts = build(spec, data)
    teacher = parts.distiller.teacher
    assert teacher is not None
    teacher.to(engine.device).to(memory_format=torch.channels_last)
    views = spec.data.views or spec.optimisation.epochs
    loader = make_loader(
        parts.data.train, 64, engine.device, train=True, flip=spec.data.flip, views=views,
        cache=folder, cache_gb=config.image_cache_gb, augment=spec.data.augment, min_crop=spec.data.min_crop,
    )  # fmt: skip
    images = engine.share.of(torch.arange(len(loader.dataset)))
    request = CacheRequest(
        Path(config.teacher_cache), config.teacher_cache_gb, config.teacher_cache_dtype, config.precision
    )
    key = table_key(teacher, loader, request, parts.data.image_size)
    if reason := fits(key, loader, request):
        raise RequestError(f"teacher_cache: {reason}")
    fold_batch_norms(teacher, parts.data.image_size)
    cache = TeacherCache(key, teacher, loader, engine, request)
    if engine.is_main:
        print(*filter(None, (loader.note, cache.describe())), sep="\n", file=sys.stderr, flush=True)
    total, name = len(images) * len(loader.used_views()), f"{teacher.name} on {engine.machine}"
    with tqdm(total=total, unit="view", unit_scale=True, desc=name, disable=None if engine.is_main else True) as bar:
        cache.fill(images, config.batch_size, bar.update)
    engine.wait()
    return TeacherCache(key, teacher, loader, engine, request).describe()


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Tests a network on the evaluation split of a data set, as its file says that it was trained."""
    check_kind(config, EvaluateConfig)
    config.check()
    trained = find_trained(config.checkpoint, config.model)
    engine = Engine(config.device, config.precision)
    data = open_test(config, trained)
    size = trained.about.get("image_size") or data.info.image_size
    model = create_model(trained.name, data.info.num_classes, image_size=size)
    load_checkpoint(model, trained.weights)
    workers = worker_count(config.workers)
    bad_images = "stop" if trained.spec is None else trained.spec.data.bad_images
    data = prepare(data, None, workers, bad_images)
    if len(data) < engine.share.processes:
        raise RequestError(f"dataset: {len(data)} images cannot be shared by {engine.share.processes} processes")
    loader = make_loader(
        data, config.batch_size, engine.device, train=False, workers=workers, share=engine.share, bad_images=bad_images
    )
    result = evaluate_model(model.to(engine.device), loader, engine)
    return replace(result, source=f"{evaluation_split(trained, config.dataset)} of {data.info.name}")

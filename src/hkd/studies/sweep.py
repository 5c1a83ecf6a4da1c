"""How results depend on one field: several values, methods and trials, in parallel on the devices there are."""

from __future__ import annotations

import dataclasses
import multiprocessing
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from hkd.config import PLUS_KD, STUDENT, TEACHER, DistillConfig, Entry, SweepConfig, TrainConfig
from hkd.errors import RequestError, TrainingError
from hkd.jobs import Data, check_continuation, check_request, distill, open_data, train
from hkd.methods import methods
from hkd.report.labels import file_name
from hkd.report.tables import spread, write_numbers
from hkd.runtime.run_folder import RunFolder


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    value: bool | int | float | str
    label: str
    seed: int
    config: TrainConfig


def sweep(config: SweepConfig) -> dict[str, Any]:
    """Trains what is missing of a sweep and writes ``sweep.md``, ``.csv``, ``.json``, ``.png`` and ``.svg``.

    In ``config.run``, ``teacher`` and ``VALUE/METHOD-SEED`` are run folders. Finished runs are read, unfinished ones
    continued. Several processes share the work through an Optuna study in ``study.log``.

    Returns:
        What stands in ``sweep.json``.

    Raises:
        RequestError: the request is wrong, which is found before anything is trained.
        TrainingError: a run failed; the others have been done.
    """
    config.check()
    points = list(_points(config))
    teacher = _check(config, points)
    if teacher is not None and RunFolder(teacher.run).summary is None:
        print(f"teacher {teacher.teacher}", file=sys.stderr, flush=True)
        train(teacher)
    missing = [n for n, point in enumerate(points) if RunFolder(point.config.run).summary is None]
    failed = _run(config, missing) if missing else []
    numbers = _numbers(config, points)
    folder = Path(config.run)
    write_numbers(folder, "sweep", numbers, numbers["points"], markdown(numbers))
    draw(numbers, folder)
    if failed:
        raise TrainingError("; ".join(failed))
    return numbers


def _points(config: SweepConfig) -> Iterator[Point]:
    """Trial after trial, so that an interrupted sweep holds whole ones."""
    for seed in range(config.seed, config.seed + config.trials):
        for value in config.points:
            for entry in config.entries:
                yield Point(value, entry.label, seed, _asked(config, entry, value, seed))


def _asked(config: SweepConfig, entry: Entry, value: Any, seed: int) -> TrainConfig:
    """The run of one value, method and trial."""
    run = Path(config.run) / f"{config.field}={value}" / f"{file_name(entry.label)}-{seed}"
    own = {"run": str(run), "seed": seed}
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig) if f.name != "role"} | own
    settings = dict(entry.settings)
    prefix, dot, key = config.field.partition(".")
    if entry.method == "ce":
        shared |= {"teacher": None, "teacher_pretrained": False, "student": config.student or STUDENT}
        kind: type[TrainConfig] = TrainConfig
    else:
        kind = DistillConfig
        checkpoint = config.teacher_checkpoint or str(Path(config.run) / "teacher")
        shared |= entry.weights | {"teacher": config.teacher or TEACHER, "teacher_checkpoint": checkpoint}
        shared |= {"method": entry.method, "settings": settings}
    if dot:
        method = entry.method.removesuffix(PLUS_KD)
        if entry.method == "ce" or methods[method].settings != prefix:
            raise RequestError(f"field: {config.field} is no setting of {entry.label}")
        settings[key] = value
        return kind(**shared)
    known = [f.name for f in dataclasses.fields(kind) if f.init and "help" in f.metadata]
    if config.field not in known:
        raise RequestError(f"field: {entry.label} has no field {config.field}; it has {', '.join(known)}")
    usual = next(f.default for f in dataclasses.fields(kind) if f.name == config.field)
    if isinstance(usual, float) and type(value) is int:
        value = float(value)
    return kind(**shared | {config.field: value})


DATA = ("dataset", "data_root", "image_size", "limit_classes", "limit_train", "train_fraction")
"""The fields that decide which images a run sees."""


def _check(config: SweepConfig, points: list[Point]) -> TrainConfig | None:
    """Refuses wrong requests. Returns the teacher's run where it is to be trained here."""
    opened: dict[tuple[Any, ...], Data] = {}
    untrained = False
    for point in points:
        key = tuple(getattr(point.config, name) for name in DATA)
        if key not in opened:
            opened[key] = open_data(point.config)
        asked = point.config
        if isinstance(asked, DistillConfig):  # a teacher that is still to be trained has no file to look at
            asked = dataclasses.replace(asked, teacher_checkpoint=config.teacher_checkpoint)
        untrained |= check_request(asked, opened[key])
        if RunFolder(point.config.run).begun:
            check_continuation(point.config, opened[key])
    if not untrained:
        return None
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig) if f.name != "role"}
    own = {"run": str(Path(config.run) / "teacher"), "teacher": config.teacher or TEACHER, "student": None}
    return TrainConfig(**shared | own)


def _run(config: SweepConfig, missing: list[int]) -> list[str]:
    """Trains points, by number. Returns what went wrong."""
    import optuna

    # A study for each start: what an interrupted one left undone is enqueued again.
    name = f"start {len(optuna.get_all_study_names(_storage(config))) + 1}"
    study = _study(config, name)
    for number in missing:
        study.enqueue_trial({}, user_attrs={"point": number})
    gpus = torch.cuda.device_count() if config.device in ("auto", "cuda") else 0
    jobs = min(config.jobs or max(1, gpus), len(missing))
    if jobs == 1:
        _work(config, name, 0, 1)
    else:
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=_work, args=(config, name, n, jobs)) for n in range(jobs)]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                worker.join()
        finally:
            for worker in workers:
                worker.terminate()
        if any(worker.exitcode for worker in workers):
            return ["a worker ended early; the same command continues"]
    return [trial.user_attrs["error"] for trial in study.get_trials() if "error" in trial.user_attrs]


def _storage(config: SweepConfig) -> Any:
    """A file that processes lock and share."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Path(config.run).mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(JournalFileBackend(str(Path(config.run) / "study.log")))


def _study(config: SweepConfig, name: str) -> Any:
    import optuna

    return optuna.create_study(study_name=name, storage=_storage(config), direction="maximize", load_if_exists=True)


def _work(config: SweepConfig, name: str, worker: int, jobs: int) -> None:
    """Takes points from a study until none waits."""
    import optuna

    study, points = _study(config, name), list(_points(config))
    if jobs > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    while study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
        trial = study.ask()
        if "point" not in trial.user_attrs:  # another worker took the last one in between
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        point = points[trial.user_attrs["point"]]
        print(f"{config.field} = {point.value}, {point.label}, seed {point.seed}", file=sys.stderr, flush=True)
        asked = point.config
        if config.device in ("auto", "cuda") and torch.cuda.is_available():
            asked = dataclasses.replace(asked, device=f"cuda:{worker % torch.cuda.device_count()}")
        try:
            result = distill(asked) if isinstance(asked, DistillConfig) else train(asked)
        except TrainingError as error:
            trial.set_user_attr("error", f"{asked.run}: {error}")
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, result.summary["top1_last"])


def _numbers(config: SweepConfig, points: list[Point]) -> dict[str, Any]:
    rows = []
    for point in points:
        summary = RunFolder(point.config.run).summary
        if summary is not None:
            row = {"method": point.label, config.field: point.value, "seed": point.seed}
            row |= {name: summary[name] for name in ("top1_last", "top1_best")}
            rows.append(row | {"run": point.config.run})
    return {
        "field": config.field,
        "values": list(config.points),
        "methods": [entry.label for entry in config.entries],
        "points": rows,
    }


def accuracies(numbers: dict[str, Any], method: str, value: Any) -> list[float]:
    """The last-epoch accuracies of the trials of one method at one value."""
    field = numbers["field"]
    return [row["top1_last"] for row in numbers["points"] if row["method"] == method and row[field] == value]


def markdown(numbers: dict[str, Any]) -> str:
    """A row for each value, a column for each method."""
    lines = [
        [value, *(spread(accuracies(numbers, method, value)) for method in numbers["methods"])]
        for value in numbers["values"]
    ]
    table = tabulate(lines, [numbers["field"], *numbers["methods"]], "github", disable_numparse=True)
    legend = "Test accuracy of the last epoch in percent, mean ± standard deviation (n trials)."
    return f"# {numbers['field']}\n\n{table}\n\n{legend}\n"


def draw(numbers: dict[str, Any], folder: Path) -> None:
    """Writes a line for each method with error bars of one standard deviation, as ``sweep.png`` and ``.svg``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    positions = range(len(numbers["values"]))
    for n, method in enumerate(numbers["methods"]):
        aside = 0.02 * (n - (len(numbers["methods"]) - 1) / 2)  # so that error bars stand beside one another
        values_at = zip(positions, numbers["values"], strict=True)
        found = {x + aside: accuracies(numbers, method, value) for x, value in values_at}
        known = {x: values for x, values in found.items() if values}
        bars = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in known.values()]
        axes.errorbar(list(known), [*map(statistics.fmean, known.values())], bars, marker="o", capsize=3, label=method)
    axes.set_xticks(list(positions), [str(value) for value in numbers["values"]])
    axes.set(xlabel=numbers["field"], ylabel="top-1, last epoch (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd")
    axes.legend(frameon=False)
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"sweep.{suffix}", dpi=160)

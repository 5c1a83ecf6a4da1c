"""How results depend on one field: several values, methods and trials."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hkd.api import check_kind
from hkd.config import MethodRequest, SweepConfig
from hkd.errors import RequestError, TrainingError
from hkd.options import coerce, hints_of
from hkd.report.sweeps import draw_sweep, sweep_table
from hkd.report.tables import write_numbers
from hkd.runtime.run_folder import RunState
from hkd.spec import FIELDS, PARTS, PLUS_KD, RunSpec
from hkd.studies.engines import make_engine
from hkd.studies.execution import Execution
from hkd.studies.plan import Plan, file_name
from hkd.studies.planned_run import PlannedRun

OF_TEACHER = frozenset(
    {"teacher", "teacher_lr", "teacher_pretrained", "teacher_weights", "teacher_image_size", "teacher_train"}
)
DECIDE_TEACHER = OF_TEACHER | {
    "dataset", "data_root", "image_size", "limit_classes", "holdout", "holdout_seed", "mean", "std",
}  # fmt: skip
"""Fields that decide which teacher fits: where one of them varies, each value has a teacher of its own."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep, at one value of the field and for one line of ``methods``."""

    value: Any
    label: str
    run: PlannedRun


def sweep(config: SweepConfig, *, fresh: bool = False) -> dict[str, Any]:
    """Trains what is missing of a sweep and writes ``sweep.md``, ``.csv``, ``.json``, ``.png`` and ``.svg``.

    In ``config.run``, ``teachers/NAME`` and ``FIELD=VALUE/METHOD-SEED`` are run folders. Finished runs are read,
    unfinished ones continued. With ``search`` it looks for the best values of several fields instead; see
    :func:`hkd.studies.search.search`.

    Args:
        config: what to vary, on what, and how.
        fresh: start over; what the folder holds is kept under another name.

    Returns:
        What ``sweep.json`` holds.

    Raises:
        RequestError: the request is wrong, which is noticed before anything is trained.
        TrainingError: a run failed; the others have been done.
        Stopped: a signal asked to stop; the same call continues.
    """
    check_kind(config, SweepConfig)
    config.check()
    if config.search:
        from hkd.studies.search import search

        return search(config, fresh=fresh)
    plan = Plan(config.run, "sweep", processes=config.processes_per_run, fresh=fresh)
    points = _plan(config, plan)
    if config.dry_run:
        print("\n".join(plan.describe()))
        return _numbers(config, points)
    plan.begin()

    def report(run: PlannedRun) -> None:
        if (summary := run.folder.summary) is not None:
            print(f"{run.title}: top-1 {summary['top1_last']:.2f} %", file=sys.stderr, flush=True)

    def write_table() -> None:
        numbers = _numbers(config, points)
        write_numbers(plan.folder, "sweep", numbers, numbers["points"], sweep_table(numbers))
        print(plan.estimate(), file=sys.stderr, flush=True)

    with closing(make_engine(config, plan.folder, config.device)) as engine:
        Execution(plan, engine, on_end=report, refresh=write_table, retry_failed=config.retry_failed).run()
    numbers = _numbers(config, points)
    draw_sweep(numbers, plan.folder)
    if failures := [f"{r.folder.path}: {r.failure}" for r in plan.runs if r.state is RunState.FAILED]:
        raise TrainingError(f"{'; '.join(failures)}; --retry-failed tries again")
    return numbers


def _plan(config: SweepConfig, plan: Plan) -> list[Point]:
    """Plans trial after trial, so that an interrupted sweep holds whole ones."""
    for value in config.points:
        for request in config.requests:
            plan.dry_check(run_spec(config, request, config.seed, {config.field: value}))
    points: list[Point] = []
    for seed in range(config.seed, config.seed + config.trials):
        for value in config.points:
            for request in config.requests:
                point = Point(value, request.label, _add(config, plan, request, value, seed))
                for other in points:
                    if other.label == point.label and other.run is point.run:
                        raise RequestError(
                            f"values: {other.value} and {value} stand for the same run of {point.label}; "
                            f"{config.field} changes nothing there that decides what is learnt"
                        )
                points.append(point)
    return points


def _add(config: SweepConfig, plan: Plan, request: MethodRequest, value: Any, seed: int) -> PlannedRun:
    spec = run_spec(config, request, seed, {config.field: value})
    at_value = f"{config.field}={value}"
    teacher = None
    if spec.method is not None:
        if config.field in DECIDE_TEACHER:
            teacher = plan.add_teacher(spec, config.seed, at_value)
        else:
            teacher = plan.add_teacher(run_spec(config, request, seed, {}), config.seed)
    place = (at_value, f"{file_name(request.label)}-{seed}")
    return plan.add(spec, place, f"{config.field} = {value}, {request.label}, seed {seed}", teacher)


def run_spec(config: SweepConfig, request: MethodRequest, seed: int, values: dict[str, Any]) -> RunSpec:
    """The specification of one method and trial.

    Args:
        values: fields that are not at the configuration's own values.

    Raises:
        RequestError: the method has no such field, or a value is of the wrong type or out of its range.
    """
    flat: dict[str, Any] = {**config.run_options(), "run": "-", "seed": seed, "student": config.student}
    if request.options is None:
        flat = {
            name: value for name, value in flat.items() if name not in OF_TEACHER | {"kd_temperature", "kd_standardise"}
        }
    else:
        names = ("teacher", "teacher_checkpoint", "teacher_lr")
        flat |= {name: getattr(config, name) for name in names} | request.options
    for field, value in values.items():
        flat = _with_field(flat, field, value, request)
    return RunSpec.from_flat(flat)


def _with_field(flat: dict[str, Any], field: str, value: Any, request: MethodRequest) -> dict[str, Any]:
    """Flat options with one field at a value: an option, or a setting of the line's method."""
    options = request.options or {}
    prefix, dot, key = field.partition(".")
    if field in options or (dot and key in options.get("settings", {})):
        raise RequestError(f"field: {field} is fixed by the line {request.label} of --methods")
    if dot:
        from hkd.methods import methods

        name = str(options.get("method", "")).removesuffix(PLUS_KD)
        if name not in methods or methods[name].settings != prefix:
            raise RequestError(f"field: {field} is no setting of {request.label}")
        return flat | {"settings": {**flat.get("settings", {}), key: value}}
    known = {name for name in flat if name in FIELDS and name not in ("run", "seed")}
    if options:
        known |= {"method_weight", "kd_weight", "ce_weight"}
    if field not in known:
        raise RequestError(f"field: {request.label} has no field {field}; it has {', '.join(sorted(known))}")
    part, attribute = FIELDS[field]
    return flat | {field: coerce(field, value, hints_of(PARTS[part])[attribute])}


def _numbers(config: SweepConfig, points: list[Point]) -> dict[str, Any]:
    rows = []
    for point in points:
        summary = point.run.folder.summary
        if summary is not None:
            row = {"method": point.label, config.field: point.value, "seed": point.run.resolved.seed}
            row |= {name: summary.get(name) for name in ("top1_last", "top1_best")}
            rows.append(row | {"key": point.run.identity[0], "run": str(relative(point.run.folder.path))})
    return {
        "field": config.field,
        "values": list(config.points),
        "methods": [request.label for request in config.requests],
        "points": rows,
    }


def relative(path: Path) -> Path:
    """A path as seen from the working directory, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

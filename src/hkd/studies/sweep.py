"""How results depend on one field: several values, methods and trials."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hkd.config import MethodRequest, SweepConfig
from hkd.errors import RequestError, TrainingError
from hkd.options import coerce, hints_of
from hkd.report.sweeps import draw_sweep, sweep_table
from hkd.report.tables import write_numbers
from hkd.spec import FIELDS, PARTS, RunSpec
from hkd.studies.engines import carry_out, make_engine
from hkd.studies.plan import Plan, PlannedRun, each_seed

SHARED_WITH_TEACHER = frozenset(
    {
        "dataset",
        "data_root",
        "image_size",
        "limit_classes",
        "holdout",
        "holdout_seed",
        "mean",
        "std",
        "teacher",
        "teacher_lr",
    }
)
"""Fields that decide which teacher fits: where one of them varies, each value has a teacher of its own."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

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
        What stands in ``sweep.json``.

    Raises:
        RequestError: the request is wrong, which is noticed before anything is trained.
        TrainingError: a run failed; the others have been done.
        Stopped: a signal asked to stop; the same call continues.
    """
    config.check()
    if config.search:
        from hkd.studies.search import search

        return search(config, fresh=fresh)
    plan = Plan(config.run, "sweep", processes=config.processes_per_run)
    plan.check_folder()
    if fresh:
        plan.existing = {}
    points = _plan(config, plan)
    if config.dry_run:
        print("\n".join(plan.describe()))
        return _numbers(config, points)
    plan.begin(fresh=fresh)
    engine = make_engine(config, plan.folder)
    try:
        carry_out(plan, engine, lambda run: _say(run, plan), retry_failed=config.retry_failed)
    finally:
        engine.close()
    numbers = _numbers(config, points)
    write_numbers(plan.folder, "sweep", numbers, numbers["points"], sweep_table(numbers))
    draw_sweep(numbers, plan.folder)
    failures = [f"{run.folder.path}: {failure.get('message')}" for run in plan.runs if (failure := run.folder.failure)]
    if failures:
        raise TrainingError("; ".join(failures) + "; --retry-failed tries again")
    return numbers


def _plan(config: SweepConfig, plan: Plan) -> list[Point]:
    """Plans trial after trial, so that an interrupted sweep holds whole ones."""
    for value in config.points:
        for request in config.requests:
            plan.dry_check(run_spec(config, request, value, config.seed))
    points = []
    for seed in each_seed(config.seed, config.trials):
        for value in config.points:
            for request in config.requests:
                spec = run_spec(config, request, value, seed)
                needs = None
                if spec.method is not None:
                    shared = config.field in SHARED_WITH_TEACHER
                    taught = spec if shared else run_spec(config, request, None, seed)
                    needs = plan.teacher(taught, config.seed)
                title = f"{config.field} = {value}, {request.label}, seed {seed}"
                run = plan.add(spec, f"{config.field}={value}/{request.label}-{seed}", title, needs)
                points.append(Point(value, request.label, run))
    return points


def run_spec(config: SweepConfig, request: MethodRequest, value: Any, seed: int) -> RunSpec:
    """The specification of one value, method and trial; of no value the field's default is taken."""
    values: dict[str, Any] = {**config.run_options(), "run": "-", "seed": seed, "student": config.student}
    if request.options is None:
        values = {n: v for n, v in values.items() if n not in ("teacher_pretrained", "kd_temperature")}
    else:
        names = ("teacher", "teacher_checkpoint", "teacher_lr")
        values |= {name: getattr(config, name) for name in names} | request.options
    if value is not None:
        values = with_field(values, config.field, value, request.label)
    return RunSpec.from_flat(values)


def with_field(values: dict[str, Any], field: str, value: Any, label: str) -> dict[str, Any]:
    """Flat options with one field at a value: an option, or a setting of the line's method.

    Raises:
        RequestError: the line has no such field.
    """
    prefix, dot, key = field.partition(".")
    if dot:
        from hkd.methods import methods

        name = str(values.get("method", "")).removesuffix("+kd")
        if name not in methods or methods[name].settings != prefix:
            raise RequestError(f"field: {field} is no setting of {label}")
        return values | {"settings": {**values.get("settings", {}), key: value}}
    known = [name for name in values if name in FIELDS] + (
        ["method_weight", "kd_weight", "ce_weight"] if "method" in values else []
    )
    if field not in known:
        raise RequestError(f"field: {label} has no field {field}; it has {', '.join(sorted(set(known)))}")
    part, attribute = FIELDS[field]
    return values | {field: coerce(field, value, hints_of(PARTS[part])[attribute])}


def _say(run: PlannedRun, plan: Plan) -> None:
    failure = run.folder.failure
    words = f"failed: {failure.get('message')}" if failure else "finished"
    print(f"{run.title}: {words}; {plan.estimate()}", file=sys.stderr, flush=True)


def _numbers(config: SweepConfig, points: list[Point]) -> dict[str, Any]:
    rows = []
    for point in points:
        summary = point.run.folder.summary
        if summary is not None:
            row = {"method": point.label, config.field: point.value, "seed": point.run.spec.seed}
            row |= {name: summary[name] for name in ("top1_last", "top1_best")}
            rows.append(row | {"key": point.run.identity[0], "run": str(_relative(point.run.folder.path))})
    return {
        "field": config.field,
        "values": list(config.points),
        "methods": [request.label for request in config.requests],
        "points": rows,
    }


def _relative(path: Path) -> Path:
    """As seen from the working directory, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

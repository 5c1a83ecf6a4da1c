"""Several methods between the same networks, over several trials: every missing run once, and the tables."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from hkd.config import CompareConfig, MethodRequest
from hkd.errors import IncompatibleError
from hkd.report.results import Comparison, Pair, Row
from hkd.report.tables import pair_table, write
from hkd.spec import RunSpec
from hkd.studies.engines import carry_out, make_engine
from hkd.studies.plan import Plan, PlannedRun, each_seed

Impossible = dict[tuple[tuple[str, str], str], str]
"""Why a method cannot work between two networks, by pair and line."""


def compare(config: CompareConfig, *, fresh: bool = False) -> Comparison:
    """Trains what is missing of a comparison and writes its tables.

    In ``config.run``, ``teachers/NAME``, ``alone/STUDENT-SEED`` and ``TEACHER-STUDENT/METHOD-SEED`` are run folders;
    ``comparison.md``, ``.csv`` and ``.json`` the tables, rewritten after every run. Finished runs are read, unfinished
    ones continued, wherever in the folder they are. A run that fails has a note in the table and does not stop the
    others. Several processes may carry out the same comparison.

    Args:
        config: what to compare on what, and how.
        fresh: start over; what the folder holds is kept under another name.

    Raises:
        RequestError: the request is wrong, which is noticed before anything is trained.
        Stopped: a signal asked to stop; the same call continues.
    """
    config.check()
    plan = Plan(config.run, "compare", processes=config.processes_per_run)
    plan.check_folder()
    if fresh:
        plan.existing = {}
    rows, impossible = _plan(config, plan)
    if config.dry_run:
        print("\n".join(plan.describe()))
        return _comparison(config, plan, rows, impossible)
    plan.begin(fresh=fresh)
    _show(_comparison(config, plan, rows, impossible), plan)
    engine = make_engine(config, plan.folder)
    try:
        carry_out(
            plan, engine, lambda _: _show(_comparison(config, plan, rows, impossible), plan),
            retry_failed=config.retry_failed,
        )  # fmt: skip
    finally:
        engine.close()
    return _comparison(config, plan, rows, impossible)


Rows = dict[tuple[str, str], dict[str, dict[int, PlannedRun]]]
"""Runs by pair, line and seed."""


def _plan(config: CompareConfig, plan: Plan) -> tuple[Rows, Impossible]:
    """Plans trial after trial, so that an interrupted comparison holds whole ones."""
    requests, pairs = config.requests, config.named_pairs
    impossible: Impossible = {}
    for pair in pairs:
        for request in requests:
            try:
                plan.dry_check(run_spec(config, pair, request, config.seed))
            except IncompatibleError as error:
                print(f"hkd: {pair[0]} -> {pair[1]}: {error}", file=sys.stderr)
                impossible[pair, request.label] = str(error)
    rows: Rows = {pair: {request.label: {} for request in requests} for pair in pairs}
    for seed in each_seed(config.seed, config.trials):
        for pair in pairs:
            for request in requests:
                if (pair, request.label) not in impossible:
                    rows[pair][request.label][seed] = _add(config, plan, pair, request, seed)
    return rows, impossible


def _add(config: CompareConfig, plan: Plan, pair: tuple[str, str], request: MethodRequest, seed: int) -> PlannedRun:
    teacher, student = pair
    spec = run_spec(config, pair, request, seed)
    if spec.method is None:
        return plan.add(spec, f"alone/{student}-{seed}", f"{student} alone, seed {seed}")
    needs = plan.teacher(spec, config.seed)
    place = f"{teacher}-{student}/{request.label}-{seed}".replace("->", "-")
    return plan.add(spec, place, f"{teacher} -> {student}, {request.label}, seed {seed}", needs)


def run_spec(config: CompareConfig, pair: tuple[str, str], request: MethodRequest, seed: int) -> RunSpec:
    """The specification of one trial of a line between two networks."""
    teacher, student = pair
    values: dict[str, Any] = {
        **config.run_options(), "run": "-", "seed": seed, "student": student,
        "lr": config.lr_of.get(student, config.lr),
    }  # fmt: skip
    if request.options is None:
        return RunSpec.from_flat({n: v for n, v in values.items() if n not in ("teacher_pretrained", "kd_temperature")})
    spec = RunSpec.from_flat(
        values
        | {
            "teacher": teacher,
            "teacher_checkpoint": config.teacher_checkpoints.get(teacher),
            "teacher_lr": config.lr_of.get(teacher, config.lr),
        }
        | request.options
    )
    assert spec.teacher is not None
    given = spec.teacher.checkpoint is not None or spec.teacher.lr == spec.optimisation.lr
    return replace(spec, teacher=replace(spec.teacher, lr=None if given else spec.teacher.lr))


def _comparison(config: CompareConfig, plan: Plan, rows: Rows, impossible: Impossible) -> Comparison:
    """What the run folders say so far."""
    pairs = []
    for pair, lines in rows.items():
        made = []
        for request in config.requests:
            runs = {seed: run.folder for seed, run in lines[request.label].items()}
            failures = [failure for run in runs.values() if (failure := run.failure) is not None]
            note = "cannot work here" if (pair, request.label) in impossible else ""
            if failures:
                note = "diverged" if any("NaN or infinite" in str(f.get("message")) for f in failures) else "failed"
            method = "ce" if request.options is None else str(request.options["method"])
            made.append(Row(request.label, method, runs, note))
        pairs.append(Pair(*pair, tuple(made)))
    failed = tuple(str(run.folder.path) for run in plan.runs if run.folder.failure is not None)
    return Comparison(config.dataset, tuple(pairs), config.baseline, tuple(_protocol(config, plan)), failed)


def _protocol(config: CompareConfig, plan: Plan) -> list[str]:
    """Sentences about how it was trained and where."""
    if not plan.runs:
        return []
    spec = plan.runs[-1].spec
    data = plan.data(plan.runs[-1].asked)
    schedule = spec.optimisation
    milestones = ", ".join(str(round(m * schedule.epochs)) for m in schedule.milestones)
    seeds = each_seed(config.seed, config.trials)
    lines = [
        data.describe().splitlines()[0],
        f"{schedule.epochs} epochs, batch {schedule.batch_size}, learning rate {config.lr}"
        f"{f', times {schedule.lr_decay} after {milestones}' if milestones else ''}; {spec.runtime.precision}; "
        f"seeds {seeds[0]} to {seeds[-1]}, the same teacher for all",  # type: ignore[index]
        *(f"learning rate {lr} for {name}" for name, lr in config.lr_of.items()),
    ]
    summaries = [summary for run in plan.runs if (summary := run.folder.summary) is not None]
    machines = sorted({f"{s.get('machine', s.get('device'))}, torch {s.get('torch')}" for s in summaries})
    return [*lines, *(f"trained on {machine}" for machine in machines)]


def _show(comparison: Comparison, plan: Plan) -> None:
    """Rewrites the tables on disk, and on a terminal the one in view."""
    numbers = comparison.numbers()
    write(numbers, plan.folder)
    clear = "\x1b[2J\x1b[H" if sys.stderr.isatty() else ""
    tables = "\n\n".join(f"{pair['teacher']} -> {pair['student']}\n{pair_table(pair)}" for pair in numbers["pairs"])
    print(f"{clear}{tables}\n{plan.estimate()}", file=sys.stderr, flush=True)

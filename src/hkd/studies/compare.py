"""Several methods between the same networks, over several trials: every missing run once, and the tables."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from hkd.api import check_kind
from hkd.config import CompareConfig, MethodRequest
from hkd.errors import IncompatibleError
from hkd.optimisation import OptimisationSpec
from hkd.report.results import Comparison, Pair, Row
from hkd.report.tables import pair_table, write
from hkd.runtime.optimizers import SGD
from hkd.runtime.run_folder import RunState
from hkd.spec import PLUS_KD, RunSpec
from hkd.studies.engines import make_engine
from hkd.studies.execution import Execution
from hkd.studies.plan import Plan, file_name
from hkd.studies.planned_run import PlannedRun

NetworkPair = tuple[str, str]
"""The names of a teacher and a student."""


def compare(config: CompareConfig, *, fresh: bool = False) -> Comparison:
    """Trains what is missing of a comparison and writes its tables.

    In ``config.run``, ``teachers/NAME``, ``alone/STUDENT-SEED`` and ``TEACHER-STUDENT/METHOD-SEED`` are run folders;
    ``comparison.md``, ``.tex``, ``.csv`` and ``.json`` the tables, rewritten after every run. Finished runs are read,
    unfinished ones continued, wherever in the folder they are. A run that fails has a note in the table and does not
    stop the others. Several processes may carry out the same comparison.

    Args:
        config: what to compare on what, and how.
        fresh: start over; what the folder holds is kept under another name.

    Raises:
        RequestError: the request is wrong, which is noticed before anything is trained.
        Stopped: a signal asked to stop; the same call continues.
    """
    check_kind(config, CompareConfig)
    config.check()
    planned = plan_comparison(config, fresh)
    plan = planned.plan
    if config.dry_run:
        print("\n".join(plan.describe()))
        return planned.comparison()
    plan.begin()
    with closing(make_engine(config, plan.folder, config.device)) as engine:
        Execution(
            plan, engine, on_end=planned.report, refresh=planned.write_tables, retry_failed=config.retry_failed
        ).run()
    return planned.comparison()


@dataclass(frozen=True)
class PlannedComparison:
    """A comparison's runs.

    Attributes:
        config: what was requested.
        plan: all runs.
        runs: those of each pair and line of the recipe, by seed.
        impossible: pairs and lines that cannot work.
    """

    config: CompareConfig
    plan: Plan
    runs: dict[tuple[NetworkPair, str], dict[int, PlannedRun]] = field(default_factory=dict)
    impossible: set[tuple[NetworkPair, str]] = field(default_factory=set)

    def comparison(self) -> Comparison:
        """What the run folders say so far."""
        config = self.config
        pairs = tuple(
            Pair(*pair, tuple(self._row(pair, request) for request in config.requests)) for pair in config.named_pairs
        )
        failed = tuple(str(run.folder.path) for run in self.plan.runs if run.state is RunState.FAILED)
        return Comparison(config.dataset, pairs, config.baseline, tuple(self._protocol()), failed)

    def _row(self, pair: NetworkPair, request: MethodRequest) -> Row:
        runs = self.runs.get((pair, request.label), {})
        failures = [failure for run in runs.values() if (failure := run.failure) is not None]
        note = "cannot work here" if (pair, request.label) in self.impossible else ""
        if failures:
            note = "diverged" if any("NaN or infinite" in failure for failure in failures) else "failed"
        method = "ce" if request.options is None else str(request.options["method"])
        spec = next((run.resolved for run in runs.values()), None)
        return Row(request.label, method, {seed: run.folder for seed, run in runs.items()}, note, spec)

    def _protocol(self) -> list[str]:
        """Sentences about how it was trained and where."""
        if not self.plan.runs:
            return []
        config, spec = self.config, self.plan.runs[-1].spec
        schedule = spec.optimisation
        of = "" if schedule.optimizer == SGD else f" of {schedule.optimizer}"
        rate, last = f"learning rate {config.lr}{_schedule(schedule)}", config.seed + config.trials - 1
        lines = [
            self.plan.data(spec).describe().splitlines()[0],
            f"{schedule.epochs} epochs{of}, batch {schedule.batch_size}, {rate}; "
            f"{spec.runtime.precision}; seeds {config.seed} to {last}, the same teacher for all",
            *(f"learning rate {lr} for {name}" for name, lr in config.lr_of.items()),
        ]
        summaries = [summary for run in self.plan.runs if (summary := run.folder.summary) is not None]
        machines = sorted({f"{s.get('machine', s.get('device'))}, torch {s.get('torch')}" for s in summaries})
        return [*lines, *(f"trained on {machine}" for machine in machines)]

    def write_tables(self) -> None:
        """Rewrites the tables on disk, and on a terminal those in view."""
        numbers = self.comparison().numbers()
        write(numbers, self.plan.folder)
        if sys.stderr.isatty():
            tables = [f"{pair['teacher']} -> {pair['student']}\n{pair_table(pair)}" for pair in numbers["pairs"]]
            print("\x1b[2J\x1b[H" + "\n\n".join(tables), file=sys.stderr)
        print(self.plan.estimate(), file=sys.stderr, flush=True)

    @staticmethod
    def report(run: PlannedRun) -> None:
        """Says what a run has come to; a failure has been said."""
        if (summary := run.folder.summary) is not None:
            print(f"{run.title}: top-1 {summary['top1_last']:.2f} %", file=sys.stderr, flush=True)


def plan_comparison(config: CompareConfig, fresh: bool) -> PlannedComparison:
    """Plans teachers, then trial after trial, so that an interrupted comparison holds whole ones."""
    plan = Plan(config.run, "compare", processes=config.processes_per_run, fresh=fresh)
    planned = PlannedComparison(config, plan)
    lines = [(pair, request) for pair in config.named_pairs for request in config.requests]
    for pair, request in lines:
        try:
            plan.dry_check(run_spec(config, pair, request, config.seed))
        except IncompatibleError as error:
            print(f"hkd: {pair[0]} -> {pair[1]}: {error}", file=sys.stderr)
            planned.impossible.add((pair, request.label))
    possible = [(pair, request) for pair, request in lines if (pair, request.label) not in planned.impossible]
    for pair, request in possible:
        if request.options is not None:
            plan.add_teacher(run_spec(config, pair, request, config.seed), config.seed)
    for seed in range(config.seed, config.seed + config.trials):
        for pair, request in possible:
            run = _add(plan, config, pair, request, seed)
            planned.runs.setdefault((pair, request.label), {})[seed] = run
    if added := [request.label for request in config.requests if request.label not in config.written_labels]:
        print(f"hkd: {added[0]} is added: the control of every line that ends in {PLUS_KD}", file=sys.stderr)
    return planned


def _add(plan: Plan, config: CompareConfig, pair: NetworkPair, request: MethodRequest, seed: int) -> PlannedRun:
    teacher, student = pair
    spec = run_spec(config, pair, request, seed)
    if spec.method is None:
        return plan.add(spec, ("alone", f"{student}-{seed}"), f"{student} alone, seed {seed}")
    place = (f"{teacher}-{student}", f"{file_name(request.label)}-{seed}")
    title = f"{teacher} -> {student}, {request.label}, seed {seed}"
    return plan.add(spec, place, title, plan.add_teacher(spec, config.seed))


def run_spec(config: CompareConfig, pair: NetworkPair, request: MethodRequest, seed: int) -> RunSpec:
    """The specification of one trial of a line between two networks."""
    teacher, student = pair
    lr = config.lr_of.get(student, config.lr)
    values: dict[str, Any] = {**config.run_options(), "run": "-", "seed": seed, "student": student, "lr": lr}
    if request.options is not None:
        checkpoint, teacher_lr = config.teacher_checkpoints.get(teacher), config.lr_of.get(teacher, config.lr)
        values |= {"teacher": teacher, "teacher_checkpoint": checkpoint, **request.options}
        if checkpoint is None and teacher_lr != lr:
            values["teacher_lr"] = teacher_lr
    return RunSpec.from_flat(values)


def _schedule(schedule: OptimisationSpec) -> str:
    """How the learning rate changes, in words."""
    warmup = f", rising over {schedule.warmup_epochs} epochs" if schedule.warmup_epochs else ""
    if schedule.schedule == "cosine":
        return f"{warmup}, falling to {schedule.min_lr:g} along a cosine"
    milestones = ", ".join(str(round(m * schedule.epochs)) for m in schedule.milestones)
    return f"{warmup}, times {schedule.lr_decay} after {milestones}" if milestones else warmup

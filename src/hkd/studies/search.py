"""The best settings of a method on held-out training images, with Optuna's sampler and pruning."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from hkd.config import MethodRequest, SweepConfig, check_distinct
from hkd.errors import RequestError, TrainingError
from hkd.files import inside, read_json
from hkd.options import hints_of, shown
from hkd.report.sweeps import search_table
from hkd.report.tables import write_numbers
from hkd.runtime.records import SEARCH, checked, corrupt
from hkd.runtime.run_folder import RunState
from hkd.spec import FIELDS, PARTS, PLUS_KD, RunSpec
from hkd.studies.claims import claim
from hkd.studies.engines import Handle, make_engine
from hkd.studies.execution import Execution
from hkd.studies.plan import Plan
from hkd.studies.planned_run import PlannedRun
from hkd.studies.ranges import Range
from hkd.studies.sweep import DECIDE_TEACHER, relative, run_spec

TRIES_BEFORE_PRUNING = 4
EPOCHS_BEFORE_PRUNING = 0.25
"""As a part of all epochs."""


def search(config: SweepConfig, *, fresh: bool = False) -> dict[str, Any]:
    """Looks for the settings of one method that do best on held-out training images; the test split stays closed.

    Each try trains one run with the study's seed, in ``tries/NUMBER``. Optuna's TPE sampler proposes its settings from
    the tries before; a run that is behind the median of the others after the same epoch is pruned. Writes
    ``search.md``, ``.csv`` and ``.json``. The same call continues: the proposals are kept in ``search.json``, what came
    of them in their run folders. With one run at a time, the same request makes the same tries.

    Returns:
        What ``search.json`` holds: the ``best`` try and all ``tries``.

    Raises:
        RequestError: the request is wrong, which is noticed before anything is trained.
        TrainingError: no try has a result.
        Stopped: a signal asked to stop; the same call continues.
    """
    plan = Plan(config.run, "search", processes=config.processes_per_run, fresh=fresh)
    current = Search(config, plan)
    if config.dry_run:
        while current.recorded:
            current.plan_recorded()
        print("\n".join(plan.describe()))
        print(f"{config.tries} tries in all, each proposed from those before")
        return current.numbers()
    plan.begin()
    taken = claim(plan.folder, "search", config.seed)
    if taken is None:
        raise RequestError(f"run: another process is searching in {plan.folder}; use --jobs for runs at the same time")
    try:
        with closing(make_engine(config, plan.folder, config.device)) as engine:
            Execution(
                plan, engine, on_end=current.end, watch=current.watch, propose=current.propose, refresh=current.write,
                retry_failed=config.retry_failed,
            ).run()  # fmt: skip
    finally:
        taken.release()
    numbers = current.numbers()
    if numbers["best"] is None:
        failures = [run.failure for run in plan.runs if run.failure is not None]
        raise TrainingError(f"no try has a result; {failures[0] if failures else 'none was made'}")
    return numbers


@dataclass
class Try:
    """One proposal and what has come of it.

    Attributes:
        number: counted from 0.
        values: of the fields.
        trial: Optuna's.
        run: that it trains; tries of equal values share one.
        epochs: how many have been reported to Optuna.
        pruned: whether it fell behind the others.
        state: "running", "complete", "pruned" or "failed".
        top1: on the held-out images, of the last epoch reported.
        before: how an earlier start of the search recorded its end, and after how many epochs. It stays that way:
            what was complete while others ran must not be pruned where all are known in their order.
    """

    number: int
    values: dict[str, Any]
    trial: Any
    run: PlannedRun
    epochs: int = 0
    pruned: bool = False
    state: str = "running"
    top1: float | None = None
    before: tuple[str, int] = ("running", 0)


class Search:
    """The tries of a search, proposed one after another.

    Raises:
        RequestError: a range does not fit its field, or the folder holds another search.
    """

    def __init__(self, config: SweepConfig, plan: Plan) -> None:
        self.config, self.plan = config, plan
        (self.request,) = config.requests
        self.ranges = [Range.parse(text) for text in config.search]
        self.tries: list[Try] = []
        self._check()
        self.recorded = [] if plan.fresh else self._read()
        self.teacher = plan.add_teacher(self._spec({}), config.seed)
        self._study = _new_study(round(EPOCHS_BEFORE_PRUNING * config.epochs))

    def _spec(self, values: dict[str, Any]) -> RunSpec:
        return run_spec(self.config, self.request, self.config.seed, values)

    def _check(self) -> None:
        if self.request.options is None:
            raise RequestError("search: ce has no settings to look for; name a method with --methods")
        check_distinct("search", [r.field for r in self.ranges])
        first = {r.field: r.ends[0] for r in self.ranges}
        for r in self.ranges:
            if r.field in DECIDE_TEACHER:
                raise RequestError(f"search: {r.field} decides which teacher fits; vary it with --field and --values")
            keys = []
            for value in r.ends:
                spec = self._spec(first | {r.field: value})
                self.plan.dry_check(spec)
                keys.append(self.plan.key_of(spec))
            if len(set(keys)) == 1:
                raise RequestError(f"search: {r.field} changes nothing that decides what is learnt")

    def _read(self) -> list[dict[str, Any]]:
        """The values of the tries of earlier starts."""
        file = inside(self.plan.folder, "search.json")
        if not file.is_file():
            return []
        before = checked(read_json(file), SEARCH._replace(needed=("search", "method", "tries")), file)
        for name, value in (("search", list(self.config.search)), ("method", self.request.label)):
            if before[name] != value:
                raise RequestError(
                    f"run: {self.plan.folder} holds a search with {name} = {shown(before[name])}, not {value}; name "
                    "another folder with --run, or start over with --fresh"
                )
        fields = {r.field: r for r in self.ranges}
        for row in before["tries"]:
            if row["values"].keys() != fields.keys() or not all(fields[n].has(v) for n, v in row["values"].items()):
                raise corrupt(file, f"tries: expected values in the ranges of the search; got {shown(row['values'])}")
        return list(before["tries"])

    # -- what the execution calls -------------------------------------------------------------------------------------

    def propose(self) -> PlannedRun | None:
        """The run of the next try; None where there are enough."""
        if len(self.tries) >= self.config.tries or (self.teacher and self.teacher.state is RunState.FAILED):
            return None
        return self.plan_recorded() if self.recorded else self._add()

    def plan_recorded(self) -> PlannedRun:
        """The run of the next try that an earlier start has proposed."""
        row = self.recorded.pop(0)
        self._study.enqueue_trial(row["values"])
        return self._add((row.get("state", "running"), row.get("epochs", 0)))

    def _add(self, before: tuple[str, int] = ("running", 0)) -> PlannedRun:
        number = len(self.tries)
        # Each draw has a seed of its own, so that a search that goes on proposes what one without a break would.
        self._study.sampler = _sampler(self.config.seed, number)
        trial = self._study.ask()
        values = {r.field: r.suggest(trial, _is_whole(r.field, self.request)) for r in self.ranges}
        words = ", ".join(f"{name} {_short(value)}" for name, value in values.items())
        run = self.plan.add(self._spec(values), ("tries", f"{number:03d}"), f"try {number}: {words}", self.teacher)
        self.tries.append(Try(number, values, trial, run, before=before))
        if not self.config.dry_run:
            self.write()  # before the run starts, so that its values are known whatever happens
        return run

    def watch(self, run: PlannedRun, handle: Handle) -> None:
        """Reports what a run under way has reached, and ends it where it is behind the others."""
        for attempt in self._running(run):
            if not attempt.pruned and self._is_behind(attempt):
                run.folder.fail(RunState.PRUNED, f"behind the median after epoch {attempt.epochs}", 0)
                handle.stop()

    def end(self, run: PlannedRun) -> None:
        """Takes the result of a run."""
        for attempt in self._running(run):
            self._finish(attempt)
            result = "no result" if attempt.top1 is None else f"{attempt.top1:.2f} %"
            print(f"{run.title}: {attempt.state}, {result}", file=sys.stderr, flush=True)

    def _running(self, run: PlannedRun) -> list[Try]:
        return [attempt for attempt in self.tries if attempt.run is run and attempt.state == "running"]

    def _is_behind(self, attempt: Try) -> bool:
        """Reports the epochs that are new, up to the first after which the run is behind the others."""
        for row in attempt.run.folder.rows():
            if attempt.pruned:
                break
            if row["epoch"] > attempt.epochs and "test_top1" in row:
                attempt.epochs, attempt.top1 = row["epoch"], row["test_top1"]
                attempt.trial.report(attempt.top1, attempt.epochs)
                state, epochs = attempt.before
                if state in ("complete", "pruned"):
                    attempt.pruned = state == "pruned" and attempt.epochs >= epochs
                else:
                    is_last = attempt.epochs >= attempt.run.resolved.optimisation.epochs
                    attempt.pruned = not is_last and attempt.trial.should_prune()
        return attempt.pruned

    def _finish(self, attempt: Try) -> None:
        from optuna.trial import TrialState

        summary = attempt.run.folder.summary
        if self._is_behind(attempt) or attempt.run.state is RunState.PRUNED:
            attempt.state = (
                "pruned"  # also where the run was quicker than the signal: what is proposed next is the same
            )
            self._study.tell(attempt.trial, state=TrialState.PRUNED)
        elif summary is None:
            attempt.state, attempt.top1 = "failed", None
            self._study.tell(attempt.trial, state=TrialState.PRUNED)  # settings that diverge are bad settings
        else:
            attempt.state, attempt.top1 = "complete", summary["top1_last"]
            attempt.epochs = summary.get("epochs", attempt.epochs)
            self._study.tell(attempt.trial, attempt.top1)

    # -- what it says -------------------------------------------------------------------------------------------------

    def numbers(self) -> dict[str, Any]:
        """The tries in their order, and the best."""
        rows: list[dict[str, Any]] = [
            {
                "try": attempt.number,
                "state": attempt.state,
                "top1_holdout": attempt.top1,
                "epochs": attempt.epochs,
                "values": attempt.values,
                "run": str(relative(attempt.run.folder.path)),
            }
            for attempt in self.tries
        ]
        best = max((r for r in rows if r["state"] == "complete"), key=lambda r: r["top1_holdout"], default=None)
        return {"search": list(self.config.search), "method": self.request.label, "best": best, "tries": rows}

    def write(self) -> None:
        """Rewrites ``search.json``, ``.csv`` and ``.md``, with the proposals that are yet to be looked at again."""
        numbers = self.numbers()
        later = [row | {"try": len(self.tries) + n} for n, row in enumerate(self.recorded)]
        rows = [{name: v for name, v in row.items() if name != "values"} | row["values"] for row in numbers["tries"]]
        text = search_table(numbers)
        write_numbers(self.plan.folder, "search", numbers | {"tries": numbers["tries"] + later}, rows, text)


def _new_study(epochs: int) -> Any:
    """Optuna's view of a search. It is kept in memory, and made again from the run folders by each start."""
    try:
        import optuna
    except ImportError as error:
        raise RequestError("search: optuna is not installed; pip install 'hkd[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(TRIES_BEFORE_PRUNING, epochs)
    return optuna.create_study(direction="maximize", pruner=pruner)


def _sampler(seed: int, number: int) -> Any:
    import optuna

    state = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=state, constant_liar=True)


def _is_whole(field: str, request: MethodRequest) -> bool:
    """Whether a field takes whole numbers alone."""
    prefix, dot, key = field.partition(".")
    if dot:
        from hkd.methods import methods

        settings: type = methods[str((request.options or {})["method"]).removesuffix(PLUS_KD)].Config
        hint = hints_of(settings)[key]
    else:
        part, attribute = FIELDS[prefix]
        hint = hints_of(PARTS[part])[attribute]
    kinds = get_args(hint) or (hint,)
    return int in kinds and float not in kinds


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

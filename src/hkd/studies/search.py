"""The best settings of a method on held-out training images, with Optuna's sampler and pruning."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from hkd.config import SweepConfig, parse_value
from hkd.errors import RequestError
from hkd.report.sweeps import search_table
from hkd.report.tables import write_numbers
from hkd.runtime.run_folder import RunState
from hkd.spec import RunSpec
from hkd.studies.engines import Engine, Handle, carry_out, make_engine
from hkd.studies.plan import Plan, PlannedRun
from hkd.studies.sweep import run_spec, with_field

EPOCHS_BEFORE_PRUNING = 2
TRIALS_BEFORE_PRUNING = 4


@dataclass(frozen=True)
class Range:
    """What a field is searched over: numbers between two bounds, or some values.

    Attributes:
        field: an option, or a setting of the method.
        low, high: bounds, both included; whole numbers search whole numbers.
        log: whether magnitudes are drawn evenly.
        choices: the values, instead of bounds.
    """

    field: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Range:
        """Reads FIELD=LO..HI, FIELD=LO..HI:log or FIELD=A|B|C."""
        field, equals, words = (part.strip() for part in text.partition("="))
        if not (field and equals and words):
            raise RequestError(f"search: expected FIELD=LO..HI[:log] or FIELD=A|B|C; got {text!r}")
        if "|" in words:
            return cls(field, choices=tuple(parse_value(word.strip()) for word in words.split("|")))
        match = re.fullmatch(r"(\S+?)\.\.(\S+?)(:log)?", words)
        low, high = (parse_value(match[n]) for n in (1, 2)) if match else (None, None)
        if match is None or not _is_number(low) or not _is_number(high):
            raise RequestError(f"search: expected FIELD=LO..HI[:log] or FIELD=A|B|C; got {text!r}")
        assert isinstance(low, int | float) and isinstance(high, int | float)
        if not low < high or (match[3] and low <= 0):
            raise RequestError(f"search: expected LO below HI{', above 0' if match[3] else ''}; got {text!r}")
        return cls(field, low, high, bool(match[3]))

    def suggest(self, trial: Any) -> Any:
        """A value for a trial of Optuna's."""
        if self.choices:
            return trial.suggest_categorical(self.field, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.field, self.low, self.high, log=self.log)
        return trial.suggest_float(self.field, self.low, self.high, log=self.log)

    @property
    def example(self) -> Any:
        return self.choices[0] if self.choices else self.low


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def search(config: SweepConfig, *, fresh: bool = False) -> dict[str, Any]:
    """Looks for the settings of one method that do best on held-out training images; the test split stays closed.

    Each try trains one run with the study's seed. Optuna's TPE sampler proposes its settings from the tries before; a
    run that is behind the median of the others after the same epoch is pruned. Writes ``search.md``, ``.csv`` and
    ``.json``. The same call continues; what was tried is kept in ``search.log``.

    Returns:
        What stands in ``search.json``: ``best`` settings and ``tries``.

    Raises:
        RequestError: the request is wrong, which is noticed before anything is trained.
        Stopped: a signal asked to stop; the same call continues.
    """
    (request,), ranges = config.requests, [Range.parse(text) for text in config.search]
    if request.options is None:
        raise RequestError("search: ce has no settings to look for; name a method with --methods")
    plan = Plan(config.run, "sweep", processes=config.processes_per_run)
    plan.check_folder()
    if fresh:
        plan.existing = {}

    def spec_of(values: dict[str, Any]) -> RunSpec:
        line: dict[str, Any] = request.options or {}
        flat = {**config.run_options(), "run": "-", "seed": config.seed, "student": config.student}
        flat |= {name: getattr(config, name) for name in ("teacher", "teacher_checkpoint", "teacher_lr")} | line
        for field, value in values.items():
            flat = with_field(flat, field, value, request.label)
        return RunSpec.from_flat(flat)

    base = run_spec(config, request, None, config.seed)
    plan.dry_check(spec_of({r.field: r.example for r in ranges}))
    teacher = plan.teacher(base, config.seed)
    if config.dry_run:
        print("\n".join(plan.describe()))
        print(f"then {config.tries} tries, each chosen by those before")
        return {}
    plan.begin(fresh=fresh)
    study = _study(plan, config)
    engine = make_engine(config, plan.folder)
    try:
        _search(config, plan, study, ranges, spec_of, teacher, engine)
    finally:
        engine.close()
    numbers = _numbers(study, request.label, plan)
    rows = [
        {name: value for name, value in row.items() if name != "values"} | row["values"] for row in numbers["tries"]
    ]
    write_numbers(plan.folder, "search", numbers, rows, search_table(numbers))
    return numbers


def _study(plan: Plan, config: SweepConfig) -> Any:
    """Optuna's memory of the tries, in a file of the study's folder."""
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise RequestError("search: optuna is not installed; pip install 'hkd[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(plan.folder / "search.log")))
    return optuna.create_study(
        study_name="search", storage=storage, direction="maximize", load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=config.seed, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(TRIALS_BEFORE_PRUNING, EPOCHS_BEFORE_PRUNING),
    )  # fmt: skip


def _search(
    config: SweepConfig,
    plan: Plan,
    study: Any,
    ranges: list[Range],
    spec_of: Callable[[dict[str, Any]], RunSpec],
    teacher: PlannedRun | None,
    engine: Engine,
) -> None:
    """Rounds of as many tries as the engine has slots, until there are enough."""
    import optuna

    running = optuna.trial.TrialState.RUNNING
    for left_over in study.get_trials(states=(running,)):  # of a start that was cut short; its run is found again
        study.tell(left_over.number, state=optuna.trial.TrialState.FAIL)
    for done in study.get_trials(states=(optuna.trial.TrialState.FAIL,)):
        if "error" not in done.user_attrs and done.params:
            study.enqueue_trial(done.params, skip_if_exists=True)
    if teacher is not None:
        carry_out(plan, engine, lambda _: None, retry_failed=config.retry_failed)
    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    while (left := config.tries - len(study.get_trials(deepcopy=False, states=finished))) > 0:
        tries: dict[tuple[str, int], Any] = {}
        for _ in range(min(left, engine.slots)):
            trial = study.ask()
            values = {r.field: r.suggest(trial) for r in ranges}
            words = ",".join(
                f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                for name, value in values.items()
            )
            run = plan.add(spec_of(values), f"tries/{trial.number:03d}", words, teacher)
            trial.set_user_attr("run", str(run.folder.path))
            tries[run.identity] = trial
        carry_out(plan, engine, lambda _: None, watch=partial(_watch, tries))
        for run in plan.runs:
            if (trial := tries.get(run.identity)) is not None:
                _tell(study, trial, run)


def _watch(tries: dict[tuple[str, int], Any], run: PlannedRun, handle: Handle) -> None:
    """Reports what a run under way has reached, and ends it where the sampler would prune it."""
    trial = tries.get(run.identity)
    if trial is None or run.folder.failure is not None:
        return
    reported = trial.user_attrs.get("reported", 0)
    for row in run.folder.rows():
        if row["epoch"] > reported and "test_top1" in row:
            trial.report(row["test_top1"], row["epoch"])
            trial.set_user_attr("reported", row["epoch"])
            if row["epoch"] < run.spec.optimisation.epochs and trial.should_prune():
                run.folder.fail(RunState.PRUNED, f"behind the median after epoch {row['epoch']}", 0)
                handle.stop()
                return


def _tell(study: Any, trial: Any, run: PlannedRun) -> None:
    import optuna

    summary, failure = run.folder.summary, run.folder.failure
    if summary is not None:
        study.tell(trial, summary["top1_last"])
        words = f"{summary['top1_last']:.2f} %"
    elif failure is not None and run.folder.state is RunState.PRUNED:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        words = f"pruned, {failure['message']}"
    else:
        trial.set_user_attr("error", str((failure or {}).get("message")))
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)  # diverging settings are bad settings
        words = f"failed: {(failure or {}).get('message')}"
    print(f"{run.title}: {words}", file=sys.stderr, flush=True)


def _numbers(study: Any, label: str, plan: Plan) -> dict[str, Any]:
    """The tries in their order, and the best."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if not trial.params or not trial.state.is_finished() or "run" not in trial.user_attrs:
            continue
        reached = trial.intermediate_values.values()
        state = trial.state.name.lower() if "error" not in trial.user_attrs else "failed"
        rows.append(
            {
                "try": trial.number,
                "state": state,
                "top1_holdout": trial.value if trial.value is not None else max(reached, default=None),
                "epochs": max(trial.intermediate_values, default=0),
                "values": dict(trial.params),
                "run": trial.user_attrs["run"],
            }
        )
    complete = [row for row in rows if row["state"] == "complete"]
    best = max(complete, key=lambda row: row["top1_holdout"], default=None)
    return {"method": label, "best": best, "tries": rows}

"""Wrong requests, generated from the configurations: for each option of each command, values that its type and range
forbid, as a word of the command line and in a file. Each is answered in one line, with status 2, before anything is
written."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import pytest

import hkd
from hkd.cli import main
from hkd.cli.commands import CONFIGS
from hkd.cli.parser import _items_of, _kinds, _repeats
from hkd.methods import methods
from hkd.options import default_of, hints_of, options

SLOWEST = 3.0
"""Seconds that an answer may take."""
LONGEST = 500
"""Characters of an answer."""
HUGE = "x" * 1_000_000
ODD_TEXTS = ("\x1b[31mred", "two\nlines", "a\0b", "half \udc80", HUGE)
"""Texts that no name, path or choice is."""
ENTRIES = (
    "hkd.api.train", "hkd.api.distill", "hkd.api.evaluate", "hkd.api.fill_cache", "hkd.studies.compare.compare",
    "hkd.studies.sweep.sweep", "hkd.report.transfer.transfer", "hkd.report.topology.topology",
    "hkd.report.page.write_report", "hkd.deploy.export", "hkd.prediction.predict_files",
)  # fmt: skip
"""What a command calls once its options have been checked."""


class Accepted(BaseException):
    """A command went on to its work."""


def accept(*_: Any, **__: Any) -> None:
    raise Accepted


@pytest.fixture
def checked_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for entry in ENTRIES:
        monkeypatch.setattr(entry, accept)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def outside(kind: Any, bounds: dict[str, float]) -> Iterator[int | float]:
    """Numbers just out of a range, and far out of it."""
    step = 1 if kind is int else 1e-3
    yield from (10**30, 10**400) if kind is int or bounds.keys() & {"le", "lt"} else (10**400,)
    for name, off in (("ge", -step), ("gt", 0), ("le", step), ("lt", 0)):
        if name in bounds:
            yield kind(bounds[name] + off)
    yield from (math.nan, math.inf, -math.inf)


def values_against(hint: Any, bounds: dict[str, float], default: Any) -> Iterator[Any]:
    """Values, as a file holds them, that a field does not take."""
    kinds = _kinds(hint)
    if NoneType not in kinds:
        yield None
    inner = _items_of(tuple, hint)
    mapped = _items_of(dict, hint)
    if _repeats(hint):  # a text, or a list of several
        yield from (3, True, {}, {"a": 1}, [], [1], [[1]], [None], [{}])
        texts = list(scalars_against((str,), bounds, default))
        yield from (*texts, *([text] for text in texts), *(["a", text] for text in texts))
    elif inner:
        yield from ("one", 3, True, {"a": 1}, [[1]], [None], [{}])
        yield from ([value] for value in scalars_against((inner[0],), bounds, ()))
    elif mapped:
        yield from ("one", 3, True, [1], {"a": [1]}, {"a": None}, {3: "a"}, {"a\0": "b"})
        yield from ({"a": value} for value in scalars_against((mapped[1],), bounds, ()))
    else:
        yield from ([], [1], {}, {"a": 1}, ["a"])
        yield from scalars_against(kinds, bounds, default)


def scalars_against(kinds: tuple[Any, ...], bounds: dict[str, float], default: Any) -> Iterator[Any]:
    if bool not in kinds:
        yield True
    if int in kinds or float in kinds:
        number = int if int in kinds else float
        yield from ("many", "", "0x10", "1e400", *ODD_TEXTS)
        yield from outside(number, bounds)
        if number is int:
            yield 2.5
    elif str in kinds:
        yield from (3, 2.5, math.nan, *ODD_TEXTS)
        yield from () if default == "" else ("",)
    elif bool in kinds:
        yield from (0, 1, "yes", "", math.nan, *ODD_TEXTS)
    else:
        yield from ("", "nothing", 99, 2.5, math.nan, *ODD_TEXTS)


def words_against(hint: Any, bounds: dict[str, float], default: Any) -> Iterator[str]:
    """Texts, as a word of the command line, that a field does not take."""
    kinds = _kinds(hint)
    inner, mapped = _items_of(tuple, hint), _items_of(dict, hint)
    if hint is bool:
        yield from ("yes", "1", "", *ODD_TEXTS)
    elif mapped:
        yield from ("a", "{a", "=", "a=", "{a: [1]}", "{a: {b: 1}}", "[a]", "{3: 4}", "{a: null}", *ODD_TEXTS)
    elif inner and not _repeats(hint):
        yield from ("[a", "a\0b", "\x1b[31m", HUGE)
        if inner[0] is not str:
            yield from ("many", "1,,2", "nan", "inf", "[[1]]", *map(str, outside(inner[0], bounds)))
    elif int in kinds or float in kinds:
        yield from ("many", "", "true", "[1]", "{a: 1}", "1e400", "-1e400", "9" * 5000, *ODD_TEXTS)
        yield from map(text_of, outside(int if int in kinds else float, bounds))
        yield from () if NoneType in kinds else ("null", "none")
    elif str in kinds:
        yield from ODD_TEXTS
        yield from () if default == "" else ("",)
    else:
        yield from ("", "nothing", "[a]", "99", "nan", *ODD_TEXTS)


def text_of(number: float) -> str:
    return str(number) if isinstance(number, float) or abs(number) < 10**300 else "1" + "0" * 400


def as_yaml(content: Any) -> str:
    """JSON, which YAML contains, but for what it calls numbers that are not finite."""
    return re.sub(
        r"\b(-?)(NaN|Infinity)\b", lambda m: f"{m[1]}.{ {'NaN': 'nan', 'Infinity': 'inf'}[m[2]] }", json.dumps(content)
    )


def tree() -> list[str]:
    return sorted(str(path) for path in Path.cwd().rglob("*"))


def problem(capsys: pytest.CaptureFixture[str], name: str, *arguments: str) -> str | None:
    """What is wrong with the answer to a wrong request; None where it is as it should be."""
    before, start = tree(), time.perf_counter()
    try:
        status = main(arguments)
    except Accepted:
        return "accepted"
    except SystemExit as stop:
        return f"ends with SystemExit {stop.code}"
    seconds, captured = time.perf_counter() - start, capsys.readouterr()
    line = captured.err.removesuffix("\n")
    found = {
        f"status {status}": status != 2,
        "more than a line": bool(captured.out) or not line.startswith("hkd: ") or not line.isprintable(),
        f"{len(line)} characters": len(line) > LONGEST,
        f"does not name {name}": name not in line and "is not plain YAML" not in line,
        f"took {seconds:.1f} s": seconds > SLOWEST,
        f"wrote {tree()}": tree() != before,
    }
    wrong = [words for words, holds in found.items() if holds]
    return f"{', '.join(wrong)}: {line[:300]!r}" if wrong else None


def shortened(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) else str(value) if abs(value) < 10**300 else "10**400"
    return text if len(text) < 60 else f"{text[:50]}…"


GROUPS: dict[str, Any] = {
    **{command: (command, "", config) for command, config in CONFIGS.items()},
    **{
        f"distill --method {name}": (f"distill --method {name}", f"{methods[name].settings}.", methods[name].Config)
        for name in methods
        if methods[name].settings
    },
}


@pytest.mark.usefixtures("checked_only")
@pytest.mark.parametrize("group", GROUPS)
def test_a_value_that_an_option_does_not_take(
    group: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, prefix, config = GROUPS[group]
    problems = []
    file = tmp_path / "request.yaml"
    for entry in options(config):
        hint, bounds, default = hints_of(config)[entry.name], entry.metadata["range"], default_of(entry)
        name = prefix + entry.name
        for text in words_against(hint, bounds, default):
            word = f"--{name.replace('_', '-')}={text}"
            if wrong := problem(capsys, name, *line.split(), word):
                problems.append(f"{line} {shortened(word)}: {wrong}")
        for value in values_against(hint, bounds, default):
            content = {prefix[:-1]: {entry.name: value}} if prefix else {name: value}
            file.write_text(as_yaml(content))
            if wrong := problem(capsys, name, *line.split(), f"--config={file}"):
                problems.append(f"{name}: {shortened(value)}: {wrong}")
    assert not problems, "\n".join([f"{len(problems)} problems", *problems])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and beside it what no output can be: a file where a folder would be."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "file").write_text("")
    hkd.train(hkd.TrainConfig(run=str(folder / "run"), epochs=1, limit_train=4, device="cpu", tensorboard=False))
    return folder


@pytest.fixture
def before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are checked as they are, and what would train raises."""
    for entry in ("hkd.api.Trainer", "hkd.studies.plan.Plan.begin"):
        monkeypatch.setattr(entry, accept)


NAMERS = (
    "evaluate", "report", "topology", "transfer", "export", "predict {finished}/run", "cache --list", "cache --prune",
)  # fmt: skip
NAMED = [
    ("distill --image-size 1", "image_size"),
    ("distill --image-size 1000000000", "image_size"),
    ("distill --batch-size 1000000000000", "batch_size"),
    ("distill --epochs 1000000000000", "epochs"),
    ("distill --seed 4294967296", "seed"),
    ("train --role teacher --student resnet20", "role"),
    ("distill --device cuda:-1", "device"),
    ("compare --seed 4294967295 --trials 2", "seed"),
    ("sweep --field lr --values a,b", "lr"),
    ("sweep --field lr --values nan,0.1", "lr"),
    ("sweep --field holistic.k --values a,b", "holistic.k"),
    ("sweep --field holistic.k --values 2.5,3", "holistic.k"),
    ("sweep --field holistic.k --values 3,3.0,3e0", "values: 3 is listed twice"),
    ("sweep --field holistic.k --values 1" + "0" * 400, "holistic.k"),
    ("sweep --field seed --values 1,2", "field"),
    ("sweep --field epochs --values 1,1e400", "epochs"),
    ("sweep --field precision --values true,fp32", "precision"),
    ("sweep --holdout 0.2 --search lr=1..a", "search"),
    ("sweep --holdout 0.2 --search lr=nan..1", "search"),
    ("sweep --holdout 0.2 --search lr=2..1", "search"),
    ("sweep --holdout 0.2 --search holistic.k=1..inf", "search"),
    ("sweep --holdout 0.2 --search holistic.k=0.5..2", "holistic.k"),
    ("compare --methods hkd(k=nan)", "holistic.k"),
    ("compare --methods kd(kd_weight=nan)", "kd_weight"),
    ("compare --methods kd,kd", "methods: kd is listed twice"),
    ("topology {finished}/run {finished}/run --images 20", "neighbours"),
    ("distill --config {finished}/tagged.yaml", "tags are not accepted"),
    *((f"{command} {'n' * 300}", "n" * 100) for command in NAMERS),
    (f"distill --teacher-checkpoint {'n' * 300}", "checkpoint"),
    (f"distill --teacher-weights {'n' * 300} --teacher resnet8", "teacher_weights"),
    (f"distill --student-weights {'n' * 300} --student resnet8", "student_weights"),
    (f"distill --student timm:local-dir:{'n' * 300}", "model"),
    (f"evaluate {{finished}}/run --dataset tiny-imagenet --data-root {'n' * 300}", "longer than the name of a file"),
]


UNWRITABLE = (
    "{finished}/file/x",
    "{finished}/file",
    "/proc/x",
    "/sys/x/y",
    "/dev/null/x",
    "/proc/self/fd",
    "a/" + "n" * 300,
)
OUTPUTS = [
    ("train", "run"), ("distill", "run"), ("compare", "run"), ("sweep", "run"),
    ("sweep --holdout 0.2 --search lr=0.1..1", "run"),
    ("transfer {finished}/run --datasets digits", "run"), ("topology {finished}/run {finished}/run", "run"),
    ("report {finished}/run", "output"), ("export {finished}/run", "output"),
    ("predict {finished}/run {finished}/file", "output"),
    ("train", "image_cache"), ("distill", "teacher_cache"),
    ("cache {finished}/run", "teacher_cache"),
]  # fmt: skip


@pytest.mark.usefixtures("before_work")
@pytest.mark.parametrize(
    ("line", "field"), OUTPUTS, ids=[f"{line.partition(' {')[0]} {field}" for line, field in OUTPUTS]
)
def test_an_output_that_cannot_be_written(
    line: str, field: str, place: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = []
    for output in UNWRITABLE:
        if field == "output" and line.startswith(("report", "predict")) and output == "{finished}/file":
            continue  # a page replaces a file
        words = f"{line} --{field.replace('_', '-')} {output}".format(finished=finished).split()
        if wrong := problem(capsys, field, *words):
            problems.append(f"{shortened(words)}: {wrong}")
    assert not problems, "\n".join(problems)


@pytest.mark.usefixtures("before_work")
def test_wrong_requests_that_types_and_ranges_do_not_tell(
    place: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "tagged.yaml").write_text('epochs: !!int ""\n')
    lines = [(line.format(finished=finished), field) for line, field in NAMED]
    problems = [f"{line}: {wrong}" for line, field in lines if (wrong := problem(capsys, field, *line.split()))]
    assert not problems, "\n".join(problems)


ODD_LINES = [
    "{}", "distill --{}", "distill --{}=3", "distill -{}", "distill {}", "distill --config {}", "distill --plugin {}",
    "distill --config={}", "evaluate {} {}", "predict {}", "export {} {}", "list {}", "list models {}", "list --{}",
    "list models --plugin {}", "distill --method {} --holistic.k 3", "distill --{}.k 3", "distill --holistic.{} 3",
    "cache --list {}", "cache --prune {}",
]  # fmt: skip


@pytest.mark.usefixtures("checked_only")
@pytest.mark.parametrize("line", ODD_LINES)
def test_odd_words(line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = []
    for text in ("nowhere", *ODD_TEXTS):
        words = [word.replace("{}", text) for word in line.split()]
        if wrong := problem(capsys, "", *words):
            problems.append(f"{shortened(text)}: {wrong}")
    assert not problems, "\n".join(problems)


@pytest.mark.usefixtures("checked_only")
@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK"])
def test_what_a_launcher_says_is_a_number(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ("abc", "", "-1", "1.5", "x" * 10_000, "9" * 5000, "\u0663"):
        monkeypatch.setenv(name, value)
        assert problem(capsys, name, "distill") is None, value


@pytest.mark.parametrize("call", [hkd.train, hkd.distill, hkd.evaluate, hkd.compare, hkd.sweep])
def test_something_else_than_a_configuration(call: Any) -> None:
    for config in (None, "runs/a", {"epochs": 3}, 3):
        with pytest.raises(hkd.RequestError, match="^config: expected a"):
            call(config)


def test_paths_and_numbers_of_numpy_are_options(tmp_path: Path) -> None:
    spec = hkd.TrainConfig(run=tmp_path, epochs=np.int64(3), lr=np.float32(0.5), data_root=tmp_path).spec()
    assert (spec.run, spec.optimisation.epochs, spec.optimisation.lr) == (str(tmp_path), 3, 0.5)
    assert [type(value) for value in (spec.run, spec.optimisation.epochs, spec.optimisation.lr)] == [str, int, float]
    config = hkd.CompareConfig(run=tmp_path / "c", trials=np.int32(2))
    config.check()
    assert (config.run, config.trials) == (str(tmp_path / "c"), 2) and type(config.trials) is int

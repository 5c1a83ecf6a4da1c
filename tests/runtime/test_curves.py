"""The loggers that a run's rows go to."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hkd
from hkd.cli import main
from hkd.config import CompareConfig
from hkd.errors import RequestError
from hkd.runtime import curves
from hkd.runtime.progress import Progress
from hkd.runtime.run_folder import RunFolder

SMALL: dict[str, Any] = {"epochs": 3, "limit_train": 5, "device": "cpu"}
LOGGERS = ("wandb", "mlflow", "trackio")


class Killed(BaseException):
    pass


def stopped(config: Any, monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Leaves a run after so many epochs."""

    def epoch(self: Progress, row: dict[str, Any], *_: Any) -> None:
        if row["epoch"] == epochs:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "epoch", epoch)
        with pytest.raises(Killed):
            hkd.train(config)


def events(run: Path) -> dict[str, list[tuple[int, float]]]:
    read = EventAccumulator(str(run / "tensorboard"))
    read.Reload()
    return {name: [(one.step, one.value) for one in read.Scalars(name)] for name in read.Tags()["scalars"]}


def test_tensorboard_has_each_epoch_once_in_a_run_that_was_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = hkd.TrainConfig(run=str(tmp_path / "run"), **SMALL)
    stopped(config, monkeypatch, 2)
    rows = (hkd.train(config), RunFolder(tmp_path / "run").rows())[1]
    written = events(tmp_path / "run")
    assert written.keys() == rows[0].keys()
    assert written["loss"] == [(row["epoch"], pytest.approx(row["loss"])) for row in rows]
    assert not (tmp_path / "run" / "logger.json").exists()


@pytest.mark.parametrize("options", [{"logger": "none"}, {"tensorboard": False}], ids=str)
def test_no_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    monkeypatch.setattr(curves, "make_tracker", lambda *_, **__: pytest.fail("one was made"))
    hkd.train(hkd.TrainConfig(run=str(tmp_path / "run"), **SMALL | options))
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_which_logger_the_options_name() -> None:
    def named(**options: Any) -> str:
        return hkd.TrainConfig(**options).spec().runtime.curves

    assert (named(), named(tensorboard=True), named(tensorboard=False)) == ("tensorboard", "tensorboard", "none")
    assert named(logger="wandb") == named(logger="wandb", tensorboard=False) == "wandb"
    assert named(logger="none", tensorboard=True) == "none"
    with pytest.raises(
        RequestError, match="^logger: expected one of tensorboard, wandb, mlflow, trackio, none; got 'x'$"
    ):
        named(logger="x")


def test_none_is_a_word_on_the_command_line(tmp_path: Path) -> None:
    words = ["--epochs", "1", "--limit-train", "5", "--device", "cpu", "--student", "resnet8", "--logger", "none"]
    assert main(["train", "--run", str(tmp_path / "run"), *words]) == 0
    assert RunFolder(tmp_path / "run").spec.runtime.logger == "none"
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_logger_that_is_not_installed_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    told = "logger: wandb is not installed; pip install 'hkd[loggers]', or name another"
    assert main(["train", "--run", str(tmp_path / "run"), "--logger", "wandb"]) == 2
    assert capsys.readouterr().err == f"hkd: {told}\n"
    assert not (tmp_path / "run").exists()
    with pytest.raises(RequestError) as raised:
        CompareConfig(run=str(tmp_path / "study"), logger="wandb").check()
    assert str(raised.value) == told


class Tracker:
    """A logger's run in a dictionary."""

    runs: dict[str, dict[str, Any]]

    def __init__(self, logger: str, place: str, **options: Any) -> None:
        self.options, self.place = options, place

    def start(self) -> None:
        known = self.options.get("id") or f"r{len(self.runs)}"
        self.run = SimpleNamespace(id=known)
        self.kept = self.runs.setdefault(known, {"rows": [], "name": self.options["name"], "place": self.place})

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.kept["settings"] = values

    def log(self, values: dict[str, Any], step: int) -> None:
        self.kept["rows"].append((step, values))

    def finish(self) -> None:
        self.kept["finished"] = True


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The runs of a logger that is named wandb."""
    monkeypatch.setattr(curves, "make_tracker", Tracker)
    monkeypatch.setattr("hkd.api.check_logger", lambda name: None)
    monkeypatch.setattr(Tracker, "runs", {}, raising=False)
    return Tracker.runs


def test_a_continued_run_continues_its_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracked: dict[str, dict[str, Any]]
) -> None:
    config = hkd.TrainConfig(run=str(tmp_path / "run"), logger="wandb", **SMALL)
    stopped(config, monkeypatch, 2)
    hkd.train(config)
    ((kept),) = tracked.values()
    assert kept["rows"] == [(row["epoch"], row) for row in RunFolder(tmp_path / "run").rows()]
    assert kept["finished"] and (kept["place"], kept["name"]) == ("hkd", f"{tmp_path.name}/run")
    assert kept["settings"]["lr"] == 0.05 and kept["settings"]["milestones"] == "[0.625, 0.75, 0.875]"
    assert not kept["settings"].keys() & set(curves.LOCAL)
    hkd.train(config, fresh=True)
    assert len(tracked) == 2, "one that starts over has a run of its own"


def test_the_steps_of_an_initialisation_are_not_below_0(tmp_path: Path, tracked: dict[str, dict[str, Any]]) -> None:
    small = SMALL | {"method": "ft", "settings": {"init_epochs": 2}, "teacher": "resnet8", "epochs": 1}
    hkd.distill(hkd.DistillConfig(run=str(tmp_path / "run"), logger="wandb", **small))
    taught = tracked["r1"]
    assert [(step, row["epoch"]) for step, row in taught["rows"]] == [(1, -1), (2, 0), (3, 1)]


@pytest.mark.parametrize("place", ["start", "store_init_configuration", "log", "finish"])
def test_a_logger_that_fails_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tracked: dict[str, dict[str, Any]], place: str,
) -> None:  # fmt: skip
    def fails(*_: Any, **__: Any) -> None:
        raise LookupError("no\x1b account")

    monkeypatch.setattr(Tracker, place, fails)
    done = hkd.train(hkd.TrainConfig(run=str(tmp_path / "run"), logger="wandb", **SMALL))
    assert done.summary["epochs"] == 3
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    words = "the curves cannot be written (no\\x1b account); the run goes on without wandb"
    assert told == [f"warning: {words}"]


def test_a_damaged_record_begins_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracked: Any) -> None:
    config = hkd.TrainConfig(run=str(tmp_path / "run"), logger="wandb", **SMALL | {"epochs": 5})
    stopped(config, monkeypatch, 1)
    for n, content in enumerate(('{"logger": "wandb", "id": 5}', '{"logger": "mlflow", "id": "r0"}', "{"), 1):
        (tmp_path / "run" / "logger.json").write_text(content)
        stopped(config, monkeypatch, n + 1)
        assert len(tracked) == n + 1


@pytest.mark.parametrize("logger", LOGGERS)
def test_the_libraries_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: str) -> None:
    """Those of hkd[loggers], without a network, where they are installed."""
    pytest.importorskip(logger)
    for name, value in (("WANDB_MODE", "offline"), ("TRACKIO_DIR", str(tmp_path / "trackio")),
                        ("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")):  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=told.append, flush=lambda: None, isatty=lambda: False))
    config = hkd.TrainConfig(run=str(tmp_path / "run"), logger=logger, **SMALL)
    stopped(config, monkeypatch, 2)
    hkd.train(config)
    assert not [line for line in told if "cannot be written" in line]
    rows = RunFolder(tmp_path / "run").rows()
    known = json.loads((tmp_path / "run" / "logger.json").read_text())
    assert known["logger"] == logger
    if logger == "mlflow":
        from mlflow import MlflowClient

        history = MlflowClient().get_metric_history(known["id"], "loss")
        written = [(one.step, one.value) for one in history]
        assert [step for step, _ in written] == [1, 2, 3]
        assert all(math.isclose(value, row["loss"]) for (_, value), row in zip(written, rows, strict=True))

"""Early stopping."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import hkd
from hkd import trainer
from hkd.errors import RequestError
from hkd.runtime.progress import Progress
from hkd.runtime.run_folder import RunFolder, RunState

SMALL: dict[str, Any] = {"epochs": 9, "limit_train": 5, "device": "cpu", "tensorboard": False}
TOP1 = [10.0, 30.0, 20.0, 31.0, 31.0, 5.0, 30.0, 90.0, 90.0]


class Killed(BaseException):
    pass


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What each evaluation that is still to come measures."""
    left, evaluate = list(TOP1), trainer.evaluate_model
    monkeypatch.setattr(trainer, "evaluate_model", lambda *a: dataclasses.replace(evaluate(*a), top1=left.pop(0)))
    return left


@pytest.mark.parametrize(("patience", "epochs", "best"), [(1, 3, 2), (2, 6, 4), (3, 7, 4), (4, 9, 8), (None, 9, 8)])
def test_a_run_stops_after_so_many_epochs_without_a_better_one(
    tmp_path: Path, measured: list[float], capsys: pytest.CaptureFixture[str], patience: int | None, epochs: int,
    best: int,
) -> None:  # fmt: skip
    config = hkd.TrainConfig(run=str(tmp_path / "run"), patience=patience, holdout=0.2, **SMALL)
    summary = hkd.train(config).summary
    folder = RunFolder(tmp_path / "run")
    assert (summary["epochs"], summary["best_epoch"]) == (epochs, best)
    assert summary["top1_last"] == TOP1[epochs - 1] and folder.state is RunState.FINISHED
    assert [row["test_top1"] for row in folder.rows()] == TOP1[:epochs]
    told = capsys.readouterr().err
    words = f"stopped early, after epoch {epochs} of 9: top-1 on the held-out images has not been above"
    words += f" {TOP1[best - 1]:.2f} %"
    assert (words in told) == (epochs < 9)
    assert hkd.train(config).skipped, "it is finished"


def test_a_run_that_continues_counts_on(
    tmp_path: Path, measured: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it was killed behind its last epoch: it trains no other one."""
    config = hkd.TrainConfig(run=str(tmp_path / "run"), patience=2, holdout=0.2, **SMALL)
    for last in (5, 6):

        def epoch(self: Progress, row: dict[str, Any], *_: Any, last: int = last) -> None:
            if row["epoch"] == last:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Progress, "epoch", epoch)
            with pytest.raises(Killed):
                hkd.train(config)
    measured[:] = [5.0]
    assert hkd.train(config).summary["epochs"] == 6
    assert "top-1 on the held-out images has not been above 31.00 % since epoch 4;" in capsys.readouterr().err


def test_patience_decides_what_is_learnt_and_needs_evaluations() -> None:
    def keyed(**options: Any) -> str:
        return hkd.TrainConfig(student="resnet8", **options).spec().key()

    assert keyed(holdout=0.2) == keyed(holdout=0.2, patience=None) != keyed(holdout=0.2, patience=3)
    with pytest.raises(RequestError, match="^patience: compares evaluations after every epoch; got evaluate last$"):
        hkd.TrainConfig(patience=3, evaluate="last").spec()
    with pytest.raises(RequestError, match="^patience: expected with --holdout, so that no test image decides"):
        hkd.TrainConfig(patience=3).spec()
    with pytest.raises(RequestError, match="^patience: expected 1 or more|^patience: expected a number"):
        hkd.TrainConfig(patience=0).spec()

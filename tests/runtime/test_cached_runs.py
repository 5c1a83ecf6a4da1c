"""Whole runs with a table of the teacher's outputs in the teacher's place."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hkd
from hkd import trainer
from hkd.cli import commands, main
from hkd.runtime.engine import Engine
from hkd.runtime.teacher_cache import tables_in

SMALL: dict[str, Any] = {
    "limit_train": 20, "batch_size": 50, "teacher": "resnet8", "tensorboard": False, "device": "cpu", "epochs": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = tmp_path_factory.mktemp("teacher") / "t"
    config = hkd.TrainConfig(**SMALL | {"run": str(run), "role": "teacher"})
    hkd.train(config)
    return str(run)


def distilled(run: Path, teacher: str, **changes: Any) -> hkd.Result:
    return hkd.distill(hkd.DistillConfig(**SMALL | {"run": str(run), "teacher_checkpoint": teacher} | changes))


@pytest.mark.parametrize("method", ["hkd+kd", "dkd", "crd+kd"])
def test_a_float32_table_gives_the_weights_of_the_teacher_itself(tmp_path: Path, teacher: str, method: str) -> None:
    """Bit for bit, of batches that divide the images, on as many threads."""
    cached = {"method": method, "teacher_cache": str(tmp_path / "tables"), "teacher_cache_dtype": "float32"}
    runs = [distilled(tmp_path / "live", teacher, method=method)]
    runs += [distilled(tmp_path / name, teacher, **cached) for name in ("filling", "filled")]
    tables = [run.summary.get("teacher_cache", {}) for run in runs]
    assert [table.get("hits") for table in tables[1:]] == [0, 400]
    live, *others = (load_file(run.weights) for run in runs)
    for other in others:
        assert all(torch.equal(live[name], other[name]) for name in live)


def test_the_line_of_an_epoch_says_what_the_table_gave(
    tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cached = {"teacher_cache": str(tmp_path / "tables")}
    distilled(tmp_path / "a", teacher, **cached)
    assert "teacher 0 % read" in capsys.readouterr().err
    distilled(tmp_path / "b", teacher, **cached)
    lines = [line for line in capsys.readouterr().err.splitlines() if " epoch " in line]
    assert len(lines) == 2 and all(line.endswith("teacher 100 % read") for line in lines)


def test_a_run_says_once_what_a_table_would_save(
    tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "with --teacher-cache auto its outputs are computed once"
    monkeypatch.setattr(trainer, "TEACHER_IS_MOST", 1e-9)
    distilled(tmp_path / "a", teacher, epochs=3)
    assert capsys.readouterr().err.count(words) == 1
    distilled(tmp_path / "b", teacher, epochs=3, method="at")  # reads stage maps
    distilled(tmp_path / "c", teacher, epochs=1)  # nothing left to save
    monkeypatch.setattr(trainer, "TEACHER_IS_MOST", 1e9)
    distilled(tmp_path / "d", teacher, epochs=3)
    assert words not in capsys.readouterr().err


def test_a_table_is_filled_by_several_processes(
    tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One for each device, as if there were two."""
    words = ["cache", teacher, "--limit-train", "5", "--teacher-cache-dtype", "float32", "--teacher-cache"]
    assert main([*words, str(tmp_path / "one"), "--device", "cpu"]) == 0
    capfd.readouterr()
    started: list[Any] = []
    started_by = subprocess.run

    def run(command: list[str], check: bool) -> Any:
        started.append(command)
        return started_by([*command, "--device", "cpu"], check=check)

    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        patch.setattr(commands.subprocess, "run", run)
        assert main([*words, str(tmp_path / "two")]) == 0
    assert started[0][:5] == [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    assert capfd.readouterr().out.count("450 of 450 views known") == 1
    one, two = (tables_in(tmp_path / name)[0].path for name in ("one", "two"))
    rows = [torch.frombuffer(bytearray((path / "rows.bin").read_bytes()), dtype=torch.float32) for path in (one, two)]
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-4, atol=1e-5)


def test_all_processes_do_without_a_table_that_one_cannot_have(
    tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines have disks of their own; a table on some alone would leave the others waiting for them."""
    monkeypatch.setattr(Engine, "all_reduce_max", lambda self, value: 1 if value is False else int(value))
    result = distilled(tmp_path / "a", teacher, teacher_cache=str(tmp_path / "tables"))
    assert "teacher cache: not used, it does not fit on another machine of this run" in capsys.readouterr().err
    assert "teacher_cache" not in result.summary


def test_processes_agree_as_often_whatever_their_disk_has_noted(
    tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that asked less often than another would wait for it, as the first run on a machine beside a later one."""
    calls: list[int] = []
    agreed = Engine.all_reduce_max
    monkeypatch.setattr(Engine, "all_reduce_max", lambda self, value: calls.append(value) or agreed(self, value))
    counts = []
    for name in ("a", "b"):
        distilled(tmp_path / name, teacher, teacher_cache=str(tmp_path / "tables"))
        counts.append(len(calls))
        calls.clear()
    assert counts[0] == counts[1] > 0

"""Where a run's numbers come from: an entry for each start, and nothing that a repository could run."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import hkd
from hkd.files import write_json
from hkd.runtime import provenance
from hkd.runtime.provenance import git_state
from hkd.runtime.records import PROVENANCE
from hkd.runtime.run_folder import RunFolder
from hkd.trainer import Trainer

SMALL: dict[str, Any] = {"epochs": 1, "limit_train": 5, "tensorboard": False, "device": "cpu"}


def git(*words: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in provenance.OTHER_REPOSITORY:
        monkeypatch.delenv(name, raising=False)
    git("init", "-q")
    Path("code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-qm", "first")
    return tmp_path


def test_the_commit_and_whether_it_is_what_ran(repository: Path) -> None:
    commit = git("rev-parse", "HEAD")
    assert git_state() == (commit, True)
    Path("result").write_text("a run")
    assert git_state() == (commit, True), "what is not tracked does not count"
    Path("code.py").write_text("2")
    assert git_state() == (commit, False)
    git("add", "code.py")
    assert git_state() == (commit, False)


def test_no_repository_no_commit_and_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state() == (None, None)
    git("init", "-q")
    assert git_state() == (None, None), "before the first commit"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() == (None, None)


def test_no_hook_and_no_watcher_of_a_repository_runs(repository: Path) -> None:
    script = repository / "script"
    script.write_text(f"#!/bin/sh\ntouch {repository / 'ran'}\n")
    script.chmod(0o755)
    git("config", "core.fsmonitor", str(script))
    for hook in ("post-index-change", "fsmonitor-watchman"):
        (repository / ".git" / "hooks").mkdir(exist_ok=True)
        (repository / ".git" / "hooks" / hook).symlink_to(script)
    index = (repository / ".git" / "index").read_bytes()
    Path("code.py").touch()  # so that git would refresh its index
    assert git_state()[1] is True
    assert not (repository / "ran").exists()
    assert (repository / ".git" / "index").read_bytes() == index


def test_a_git_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nsleep 20 &\nwait\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.2)
    started = time.monotonic()
    assert git_state() == (None, None)
    assert time.monotonic() - started < 5


def starts_of(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "provenance.json").read_text())["starts"]


def test_an_entry_for_each_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is killed has no end, one that stops or fails has one, and the summary has them all."""
    config = hkd.DistillConfig(run=str(tmp_path / "run"), method="kd", student="resnet8", teacher="resnet8", **SMALL)
    seen: list[dict[str, Any]] = []

    def fails(self: Trainer) -> dict[str, Any]:
        if self.spec.method is None:  # the teacher's training
            return train(self)
        seen.extend(starts_of(tmp_path / "run"))
        raise hkd.TrainingError("no luck")

    train = Trainer.run
    monkeypatch.setattr(Trainer, "run", fails)
    with pytest.raises(hkd.TrainingError, match="no luck"):
        hkd.distill(config)
    assert [entry["ended"] for entry in seen] == [None], "written before it trains"
    killed = starts_of(tmp_path / "run")
    assert killed[0]["ended"] is not None
    killed[0]["ended"] = None
    write_json(tmp_path / "run" / "provenance.json", {"starts": killed})
    monkeypatch.setattr(Trainer, "run", train)
    result = hkd.distill(config)
    summary = RunFolder(tmp_path / "run").summary
    assert summary is not None
    entries = summary["provenance"]
    assert entries == result.summary["provenance"] == starts_of(tmp_path / "run")
    assert entries[0] == killed[0] and entries[1]["ended"] >= entries[1]["started"]
    for entry in entries:
        assert entry.keys() == set(PROVENANCE.fields)
        assert entry["versions"].keys() >= {"python", "torch", "torchvision", "timm"}
        assert entry["data"] == RunFolder(tmp_path / "run").spec.data.digest
        assert entry["command"] and entry["teacher"] and entry["hardware"]
    alone = json.loads((tmp_path / "run" / "teacher" / "summary.json").read_text())
    assert [entry["teacher"] for entry in alone["provenance"]] == [None]
    before = (tmp_path / "run" / "provenance.json").read_bytes()
    hkd.distill(config)
    assert (tmp_path / "run" / "provenance.json").read_bytes() == before, "a finished run is not started again"
    hkd.export(
        hkd.ExportConfig(checkpoint=str(tmp_path / "run"), output=str(tmp_path / "out"), formats=("safetensors",))
    )
    written = b"".join(file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert written and b"pytest" not in written and b"provenance" not in written and bytes(tmp_path) not in written


@pytest.mark.parametrize(
    "broken",
    [{"starts": 1}, {"starts": [{}]}, {"starts": [{"command": "a\nb"}]}, {}, {"starts": [{"clean": "yes"}]}],
    ids=str,
)
def test_a_forged_file_is_refused(tmp_path: Path, broken: dict[str, Any]) -> None:
    write_json(tmp_path / "provenance.json", broken)
    with pytest.raises(hkd.RequestError, match=r"provenance.json is corrupt"):
        _ = RunFolder(tmp_path).starts

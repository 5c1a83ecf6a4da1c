"""Which runs a study has, which of them exist, and the commands that train the others."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

import hkd
from hkd import parts
from hkd.cli import main
from hkd.config import DEFAULTS, MethodRequest
from hkd.methods import methods
from hkd.runtime.run_folder import RunFolder, RunState, find_runs
from hkd.spec import RECORDED, RunSpec
from hkd.studies.claims import claim
from hkd.studies.command_line import command_of
from hkd.studies.compare import plan_comparison
from hkd.studies.plan import file_name
from hkd.studies.planned_run import PlannedRun
from tests.studies.fakes import InstantEngine, finish

SMALL = ["--limit-train", "20", "--epochs", "1", "--no-tensorboard", "--device", "cpu"]


def config(run: Path, **changes: Any) -> hkd.CompareConfig:
    fields = {
        "teachers": ("resnet14",), "students": ("resnet8",), "methods": ("ce", "kd"), "trials": 1, "epochs": 1,
        "limit_train": 20, "tensorboard": False, "device": "cpu",
    }  # fmt: skip
    return hkd.CompareConfig(run=str(run), **fields | changes)


def plan_of(request: hkd.CompareConfig) -> dict[str, PlannedRun]:
    """The planned runs by the last two parts of their folders."""
    return {"/".join(run.folder.path.parts[-2:]): run for run in plan_comparison(request, fresh=False).plan.runs}


# -- which runs exist -------------------------------------------------------------------------------------------------


def test_states(tmp_path: Path) -> None:
    runs = plan_of(config(tmp_path / "c", methods=("ce",), trials=5))
    for run, state in zip(runs.values(), RunState, strict=True):
        if state is not RunState.MISSING:
            run.folder.path.mkdir(parents=True)
            run.resolved.save(run.folder.config)
        if state is RunState.FINISHED:
            finish(run.folder, run.resolved, 50)
        if state in (RunState.FAILED, RunState.PRUNED):
            run.folder.fail(state, "no luck", 1)
    again = plan_comparison(config(tmp_path / "c", methods=("ce",), trials=5), fresh=False).plan
    assert [run.state for run in again.runs] == list(RunState)
    assert [run.failure for run in again.runs] == [None, None, None, "no luck", "no luck"]
    assert [line.split()[0] for line in again.describe()][:-1:2] == list(RunState)
    assert again.estimate().startswith("5 runs: 1 finished, 1 failed, 2 to go; about 2m00s one after another, ")
    afresh = plan_comparison(config(tmp_path / "c", methods=("ce",), trials=5), fresh=True).plan
    assert [line.split()[0] for line in afresh.describe()][:-1:2] == ["missing"] * 5


def test_estimates(tmp_path: Path, engine: InstantEngine) -> None:
    assert (
        plan_comparison(config(tmp_path / "c"), fresh=False).plan.estimate()
        == "3 runs: 0 finished, 3 to go; an estimate needs a finished run"
    )
    hkd.compare(config(tmp_path / "c"))
    later = plan_comparison(config(tmp_path / "c", trials=3), fresh=False).plan.estimate()
    assert later.startswith("7 runs: 3 finished, 4 to go; about 4m00s one after another, ")
    assert later.endswith(" MB of disk")


def test_a_run_that_goes_on_after_a_failure_counts(tmp_path: Path) -> None:
    (run,) = plan_of(config(tmp_path / "c", methods=("ce",))).values()
    run.folder.fail(RunState.FAILED, "no luck", 1)
    finish(run.folder, run.resolved, 50)
    assert run.state is RunState.FINISHED
    assert run.failure is None


def test_runs_are_recognised_wherever_they_were_made(tmp_path: Path, engine: InstantEngine) -> None:
    folder = tmp_path / "c"
    assert main(["train", "--run", str(folder / "mine" / "t14"), "--student", "resnet14", *SMALL]) == 0
    assert main(["train", "--run", str(folder / "array-7"), "--student", "resnet8", "--seed", "1", *SMALL]) == 0
    distil = ["distill", "--method", "kd", "--student", "resnet8", *SMALL]
    assert main([*distil, "--run", str(folder / "array-8"), "--teacher-checkpoint", str(folder / "mine" / "t14")]) == 0
    hkd.compare(config(folder, trials=2))
    assert engine.started == ["alone/resnet8-0", "resnet14-resnet8/kd-1"]
    runs = plan_of(config(folder, trials=2))
    assert {"mine/t14", "c/array-7", "c/array-8"} < set(runs)
    assert runs["resnet14-resnet8/kd-1"].spec.teacher.checkpoint == str(folder / "mine" / "t14")


def test_of_two_equal_runs_the_finished_one_counts_and_then_the_one_in_its_place(tmp_path: Path) -> None:
    (run,) = plan_of(config(tmp_path / "c", methods=("ce",))).values()
    finish(run.folder, run.resolved, 50)
    shutil.copytree(run.folder.path, tmp_path / "c" / "alone" / "a copy")
    assert list(plan_of(config(tmp_path / "c", methods=("ce",)))) == ["alone/resnet8-0"]
    (run.folder.path / "summary.json").unlink()
    assert list(plan_of(config(tmp_path / "c", methods=("ce",)))) == ["alone/a copy"]


def test_a_corrupt_result_names_the_run_to_delete(tmp_path: Path, engine: InstantEngine) -> None:
    hkd.compare(config(tmp_path / "c", methods=("ce",)))
    run = tmp_path / "c" / "alone" / "resnet8-0"
    (run / "summary.json").write_text("{")
    message = rf"summary.json is corrupt \(not JSON\); delete {run} to train it again"
    with pytest.raises(hkd.RequestError, match=message):
        hkd.compare(config(tmp_path / "c", methods=("ce",)))


def test_a_recipe_in_the_folder_is_no_run(tmp_path: Path, engine: InstantEngine) -> None:
    hkd.compare(config(tmp_path / "c", methods=("ce",)))
    (tmp_path / "c" / "mine").mkdir()
    (tmp_path / "c" / "mine" / "config.yaml").write_text("dataset: nowhere\n")
    hkd.compare(config(tmp_path / "c", methods=("ce",)))
    assert engine.started == ["alone/resnet8-0"]


def test_a_folder_may_be_moved(tmp_path: Path, engine: InstantEngine) -> None:
    hkd.compare(config(tmp_path / "c"))
    (tmp_path / "c").rename(tmp_path / "elsewhere")
    hkd.compare(config(tmp_path / "elsewhere", trials=2))
    assert engine.started[3:] == ["alone/resnet8-1", "resnet14-resnet8/kd-1"]
    assert all(str(run.path).startswith(str(tmp_path / "elsewhere")) for run in find_runs(tmp_path / "elsewhere"))


def photos(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for number in range(3):
                image = Image.fromarray(draw.integers(256, size=(16, 16, 3), dtype=np.uint8))
                image.save(folder / split / label / f"{number}.png")


def test_a_data_set_is_the_same_by_whatever_path(
    tmp_path: Path, engine: InstantEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "ph")
    monkeypatch.chdir(tmp_path)
    keys = set()
    for dataset in ("folder:ph", "folder:ph/", "folder:./ph", f"folder:{tmp_path}/ph"):
        request = config(tmp_path / "c", methods=("ce",), dataset=dataset, image_size=16, limit_train=None)
        keys |= {run.identity for run in plan_of(request).values()}
        hkd.compare(request)
    assert len(keys) == 1
    assert engine.started == ["alone/resnet8-0"]
    assert f"folder:{tmp_path}/ph" in engine.commands[0]


def test_a_dry_run_leaves_a_folder_that_the_study_accepts(
    tmp_path: Path, engine: InstantEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "ph")
    fields = {"methods": ("ce",), "dataset": f"folder:{tmp_path}/ph", "image_size": 16, "limit_train": None}
    hkd.compare(config(tmp_path / "c", dry_run=True, **fields))
    assert engine.started == []
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["cache"], "decoded images alone"
    hkd.compare(config(tmp_path / "c", **fields))
    assert engine.started == ["alone/resnet8-0"]


def test_images_without_labels_have_an_absolute_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("more").mkdir()
    Image.new("RGB", (8, 8)).save("more/a.png")
    for name in ("more", "folder:more"):
        runs = plan_of(config(tmp_path / "c", methods=("kd",), unlabelled=name))
        assert runs["resnet14-resnet8/kd-0"].spec.unlabelled == str(tmp_path / "more")


def test_a_data_set_is_opened_once_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hkd.studies import plan as module

    opened, open_data = [], module.open_data
    monkeypatch.setattr(module, "open_data", lambda *a, **k: opened.append(a) or open_data(*a, **k))
    planned = plan_comparison(config(tmp_path / "c", methods=("ce", "kd", "at"), trials=3), fresh=False)
    assert len(opened) == 1
    data = planned.plan.data(planned.plan.runs[0].spec)
    assert data.train.images.numel() == data.test.images.numel() == 0
    assert data.describe().startswith("digits: 200 training and 355 test images, 10 classes, 8x8")


def test_runs_of_the_first_version_are_not_taken(tmp_path: Path) -> None:
    (run,) = plan_of(config(tmp_path / "c", methods=("ce",))).values()
    finish(run.folder, run.resolved, 50)
    values = {"student": "resnet8", "epochs": 1, "limit_train": 20, "run": str(run.folder.path), "role": "student"}
    run.folder.config.write_text(json.dumps(values))
    with pytest.raises(hkd.RequestError, match=r"alone/resnet8-0 holds a run"):
        plan_of(config(tmp_path / "c", methods=("ce",)))


# -- the folder -------------------------------------------------------------------------------------------------------


def test_fresh_is_refused_while_a_run_is_locked(tmp_path: Path, engine: InstantEngine) -> None:
    request = config(tmp_path / "c", methods=("ce",))
    hkd.compare(request)
    run = tmp_path / "c" / "alone" / "resnet8-0"
    with FileLock(run / ".lock"), pytest.raises(hkd.RequestError, match=f"fresh: another process is working in {run}"):
        hkd.compare(request, fresh=True)
    taken = claim(tmp_path / "c", "anything", 0)
    assert taken is not None
    with pytest.raises(hkd.RequestError, match="fresh: another process is working in"):
        hkd.compare(request, fresh=True)
    taken.release()
    hkd.compare(request, fresh=True)
    assert engine.started == ["alone/resnet8-0"] * 2


def test_fresh_may_ask_for_something_else(tmp_path: Path, engine: InstantEngine) -> None:
    hkd.compare(config(tmp_path / "c", methods=("ce",)))
    hkd.compare(config(tmp_path / "c", methods=("ce",), epochs=2), fresh=True)
    assert engine.started == ["alone/resnet8-0"] * 2


def test_a_claim_is_of_one(tmp_path: Path) -> None:
    first = claim(tmp_path, "key", 0)
    assert first is not None
    assert claim(tmp_path, "key", 0) is None
    assert claim(tmp_path, "key", 1) is not None
    first.release()
    assert claim(tmp_path, "key", 0) is not None


@pytest.mark.parametrize(
    ("text", "name"),
    [("hkd(k=4)+kd", "hkd_k=4_+kd"), ("timm:resnet18", "timm_resnet18"), ("../../x", "x"), ("a/b c", "a_b_c")],
)
def test_names_of_files(text: str, name: str) -> None:
    assert file_name(text) == name


# -- commands ---------------------------------------------------------------------------------------------------------

LINES = ("ce", "kd", "kd(kd_temperature=2)", "at(ce_weight=0)", "hkd(k=4,negatives=same,smoothing=0.5)+kd", "hkd")


@pytest.mark.parametrize("line", LINES)
def test_a_command_makes_the_specification(tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"methods": (line,), "mean": (0.1, 0.2, 0.3), "flip": False, "workers": 0, "holdout": 0.25, "threads": 2}
    for run in plan_of(config(tmp_path / "c", **fields)).values():
        if run.spec.method is not None:
            finish(run.teacher.folder, run.teacher.resolved, 50)
        words = command_of(run.spec)
        assert words[:3] == [sys.executable, "-m", "hkd"]
        assert main([*words[3:], "--print-config"]) == 0
        (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
        printed = RunSpec.load(tmp_path / "printed.yaml")
        assert printed == run.spec
        assert printed.key() == run.identity[0]


def test_every_setting_of_every_method_is_in_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for name in methods:
        if not methods[name].settings:
            continue
        flat = {"method": name, "run": "-"}
        settings = {}
        for key, value in vars(methods[name].Config()).items():
            if isinstance(value, bool):
                settings[key] = not value
            elif isinstance(value, int):
                settings[key] = value + 1
            elif isinstance(value, float):
                settings[key] = value * 0.875
        spec = RunSpec.from_flat(flat | {"settings": settings})
        assert main([*command_of(spec)[3:], "--print-config"]) == 0
        printed = capsys.readouterr().out
        asked = {option: value for option, value in spec.to_flat().items() if option not in RECORDED}
        assert asked == hkd.files.parse_yaml(printed), name


def test_the_defaults_of_a_command_need_no_words() -> None:
    spec = RunSpec.from_flat(DEFAULTS["train"])
    assert command_of(spec)[1:] == ["-m", "hkd", "train"]
    assert MethodRequest.parse("hkd").options == {"method": "hkd"}


def test_a_dry_run_prints_commands_that_train_what_is_missing(
    tmp_path: Path, engine: InstantEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = ["compare", "--teachers", "resnet14", "--students", "resnet8", "--methods", "kd", "--trials", "1"]
    compare += ["--run", str(tmp_path / "a study"), *SMALL]
    environment = os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", "") + os.pathsep + "src"}
    done = subprocess.run(
        [sys.executable, "-m", "hkd", *compare, "--dry-run"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:-1:2]] == ["missing", "missing"]
    assert lines[0].split(maxsplit=1)[1] == "teacher resnet14"
    assert lines[-1] == "2 runs: 0 finished, 2 to go; an estimate needs a finished run"
    assert not (tmp_path / "a study").exists()
    for line in lines[1:-1:2]:
        assert shlex.split(line)[1:3] == ["-m", "hkd"]
        subprocess.run(["bash", "-c", line], check=True, env=environment, capture_output=True)
    assert main(compare) == 0
    assert engine.started == [], "the comparison has nothing left to train"
    (row,) = json.loads((tmp_path / "a study" / "comparison.json").read_text())["pairs"][0]["methods"]
    assert row["seeds"] == [0]
    assert RunFolder(row["runs"][0]).predictions()[0].shape == (355,)


def test_a_library_s_network_is_measured_with_weights() -> None:
    """Whatever is in memory may be NaN, which is like nothing."""
    parts._blank.cache_clear()
    before = torch.get_rng_state()
    for _ in range(2):
        network = parts._blank("timm:resnet26", 10, 32)
        assert all(value.isfinite().all() for value in network.state_dict().values())
        parts._blank.cache_clear()
    assert torch.equal(torch.get_rng_state(), before)

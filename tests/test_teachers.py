"""Whole runs with several teachers: what they leave, how they continue, what they share with runs of one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hkd
from hkd import trainer
from hkd.cli import main
from hkd.models.weights import weights_digest
from hkd.runtime.run_folder import RunFolder, RunState
from hkd.runtime.teacher_cache import tables_in

SMALL: dict[str, Any] = {
    "limit_train": 20, "batch_size": 50, "tensorboard": False, "device": "cpu", "epochs": 2, "student": "resnet8",
}  # fmt: skip


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two run folders."""
    runs = [tmp_path_factory.mktemp("teachers") / name for name in ("resnet8", "wrn_16_1")]
    for run in runs:
        hkd.train(hkd.TrainConfig(**SMALL | {"run": str(run), "student": run.name}))
    return list(map(str, runs))


def distilled(run: Path, teachers: Any, **changes: Any) -> hkd.Result:
    return hkd.distill(hkd.DistillConfig(**SMALL | {"run": str(run), "teacher_checkpoint": teachers} | changes))


def same_weights(*runs: hkd.Result) -> bool:
    first, *others = (load_file(run.weights) for run in runs)
    return all(torch.equal(first[name], other[name]) for other in others for name in first)


@pytest.mark.parametrize("method", ["kd", "hkd+kd"])
def test_the_command(tmp_path: Path, teachers: list[str], capsys: pytest.CaptureFixture[str], method: str) -> None:
    run = tmp_path / "run"
    words = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items() if name != "tensorboard"]
    words += ["--no-tensorboard", "--method", method, "--run", str(run)]
    words += [word for place in teachers for word in ("--teacher-checkpoint", place)]
    assert main(["distill", *words]) == 0
    assert capsys.readouterr().out.count("teacher:    top-1") == 2
    summary = json.loads((run / "summary.json").read_text())
    assert len(summary["teachers_top1"]) == 2 and summary["teacher_top1"] == summary["teachers_top1"][0]
    measured = [json.loads((Path(place) / "summary.json").read_text())["top1_last"] for place in teachers]
    assert summary["teachers_top1"] == pytest.approx(measured)
    spec = RunFolder(run).spec
    assert spec.teacher_names == "resnet8+wrn_16_1" and summary["key"] == spec.key()
    assert [teacher.digest.split()[0] for teacher in spec.teachers] == ["run", "run"]
    assert main(["distill", *words]) == 0
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(hkd.RequestError, match="teacher"):
        distilled(run, teachers[::-1], method=method)


def test_one_in_a_list_is_one(tmp_path: Path, teachers: list[str]) -> None:
    runs = [distilled(tmp_path / str(n), one, method="crd+kd") for n, one in enumerate((teachers[0], teachers[:1]))]
    assert same_weights(*runs) and runs[0].summary["key"] == runs[1].summary["key"]
    assert "teachers_top1" not in runs[0].summary


def test_both_teachers_count(tmp_path: Path, teachers: list[str]) -> None:
    asked = [teachers, teachers[:1], teachers[1:]]
    runs = [distilled(tmp_path / str(n), one, method="kd") for n, one in enumerate(asked)]
    assert not any(same_weights(runs[a], runs[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert len({run.summary["key"] for run in runs}) == 3


def test_tables_are_those_of_runs_with_one_teacher(tmp_path: Path, teachers: list[str]) -> None:
    cached = {"method": "hkd+kd", "teacher_cache": str(tmp_path / "tables"), "teacher_cache_dtype": "float32"}
    first = distilled(tmp_path / "one", teachers[0], **cached)
    assert first.summary["teacher_cache"].keys() == {"hits", "misses", "bytes", "dtype"}
    half = distilled(tmp_path / "half", teachers, **cached).summary["teacher_cache"]
    assert [(table["hits"], table["misses"]) for table in half["teachers"]] == [(400, 0), (0, 400)]
    assert (half["hits"], half["misses"]) == (400, 400)
    assert half["bytes"] == sum(table["bytes"] for table in half["teachers"])
    assert len(tables_in(tmp_path / "tables")) == 2
    second = distilled(tmp_path / "other", teachers[1], **cached)
    assert second.summary["teacher_cache"]["hits"] == 400, "read from what the run of both has written"


def test_tables_stand_for_the_teachers(tmp_path: Path, teachers: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit, while they are filled and when the teachers are not needed any more."""
    cached = {"method": "hkd+kd", "teacher_cache": str(tmp_path / "tables"), "teacher_cache_dtype": "float32"}
    runs = [distilled(tmp_path / "live", teachers, method="hkd+kd")]
    runs += [distilled(tmp_path / name, teachers, **cached) for name in ("filling", "filled")]
    assert [run.summary["teacher_cache"]["hits"] for run in runs[1:]] == [0, 800]
    assert same_weights(*runs) and "teacher 100 % read" in capsys.readouterr().err
    assert runs[2].summary["teachers_top1"] == runs[0].summary["teachers_top1"]
    distilled(tmp_path / "tiny", teachers, **cached | {"teacher_cache_gb": 1e-9})
    assert capsys.readouterr().err.count("teacher cache: not used, it would take") == 1


def test_an_interrupted_run_continues(tmp_path: Path, teachers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = distilled(tmp_path / "whole", teachers, settings={"num_negatives": 50})
    evaluate, calls = trainer.evaluate_model, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 4:  # after the teachers and the first epoch
            raise KeyboardInterrupt
        return evaluate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate_model", interrupted)
        with pytest.raises(KeyboardInterrupt):
            distilled(tmp_path / "parts", teachers, settings={"num_negatives": 50})
    assert RunFolder(tmp_path / "parts").state is RunState.BEGUN
    assert same_weights(whole, distilled(tmp_path / "parts", teachers, settings={"num_negatives": 50}))


def test_modules_teach(tmp_path: Path, teachers: list[str]) -> None:
    modules = []
    for name, place in zip(("resnet8", "wrn_16_1"), teachers, strict=True):
        modules.append(hkd.create_model(name, 10))
        hkd.load_checkpoint(modules[-1], Path(place) / "model.safetensors")
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    config = hkd.DistillConfig(**SMALL | {"run": str(tmp_path / "modules"), "method": "hkd+kd"})
    run = hkd.distill(config, teacher=modules)
    spec = RunFolder(run.run).spec
    assert [teacher.digest for teacher in spec.teachers] == [f"weights {weights_digest(module)}" for module in modules]
    for module, state in zip(modules, before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    assert hkd.distill(config, teacher=modules).skipped

    blank = [hkd.create_model(name, 10) for name in ("resnet8", "wrn_16_1")]
    config = dataclasses.replace(config, run=str(tmp_path / "loaded"), teacher_checkpoint=teachers)
    assert same_weights(run, hkd.distill(config, teacher=blank))


def test_what_is_refused(tmp_path: Path, teachers: list[str]) -> None:
    modules = [hkd.create_model("resnet8", 10) for _ in range(2)]
    config = hkd.DistillConfig(**SMALL | {"run": str(tmp_path / "run"), "method": "kd"})
    changed = dataclasses.replace
    wrong: list[tuple[Any, Any, str]] = [
        (changed(config, teacher_checkpoint=teachers[0]), modules, "teacher_checkpoint: expected 2, one for each"),
        (changed(config, teacher_checkpoint=teachers), modules[:1], "teacher_checkpoint: expected 1, one for each"),
        (
            changed(config, teacher_checkpoint=teachers, teacher=["vgg8", "vgg8"]),
            modules,
            "student: a network is passed",
        ),
        (config, [modules[0], modules[0]], "teacher: the same network is passed twice"),
        (
            changed(config, method="hkd", pseudo_labels=0.9),
            modules,
            "pseudo_labels: are the classes of one teacher; got 2",
        ),
        (changed(config, method="at"), modules, "method: AT needs features; several teachers serve"),
    ]
    for asked, given, message in wrong:
        with pytest.raises(hkd.RequestError, match=f"^{message}"):
            hkd.distill(asked, teacher=given)
    with pytest.raises(hkd.RequestError, match="^student: the same network is passed as student and as teacher"):
        hkd.distill(changed(config, student=None), student=modules[1], teacher=modules)
    assert not (tmp_path / "run").exists()


def test_teachers_of_two_normalisations(tmp_path: Path, teachers: list[str]) -> None:
    """They see the same images, so one has to be named."""
    other = tmp_path / "other"
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    hkd.train(hkd.TrainConfig(**SMALL | half | {"run": str(other), "epochs": 1}))
    mixed = [teachers[0], str(other)]
    with pytest.raises(hkd.RequestError, match="^mean: the teachers learnt in different normalisations; name one"):
        distilled(tmp_path / "run", mixed, method="kd")
    assert distilled(tmp_path / "run", mixed, method="kd", **half).summary["epochs"] == 2
    assert distilled(tmp_path / "same", [str(other)] * 2, method="kd").summary["epochs"] == 2


def test_a_report_shows_them(tmp_path: Path, teachers: list[str]) -> None:
    run = distilled(tmp_path / "both", teachers, method="kd")
    distilled(tmp_path / "hkd", teachers)
    page = tmp_path / "report.html"
    assert main(["report", str(tmp_path), "--output", str(page)]) == 0
    assert "resnet8+wrn_16_1 → resnet8" in page.read_text()
    words = ["topology", str(run.run), "--run", str(tmp_path / "t"), "--images", "50", "--device", "cpu"]
    assert main(words) == 0
    assert len(json.loads((tmp_path / "t" / "topology.json").read_text())["rows"]) == 2

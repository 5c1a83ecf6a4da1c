"""Run folders from elsewhere whose files hold anything: each reader answers in one line, or reads what can be read."""

import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hkd
from hkd import trainer as loop
from hkd.cli import main
from hkd.files import read_yaml
from hkd.report.collect import RESULTS, read_run, results
from hkd.runtime.run_folder import RunFolder
from hkd.studies.search import Search
from tests.faults.runs import asked, teacher
from tests.report.fakes import fake_run

MISSING = object()
VALUES = {
    "missing": MISSING, "null": None, "true": True, "text": "x", "list": [1, "a"], "mapping": {"a": 1}, "nan": math.nan,
    "infinity": math.inf, "huge": 10**400, "negative": -(10**12), "megabyte": "x" * 2**20, "escapes": "\x1b[2J\n\u2028",
    "half": "\ud800",
}  # fmt: skip
DEEP = "[" * 10_000 + "]" * 10_000
NETWORK = {"label": "a", "key": "k", "seed": 0, "weights": "w"}
GOOD: dict[str, dict[str, Any]] = {
    "summary.json": {"top1_last": 50.0, "top1_best": 50.0, "best_epoch": 1, "top5_last": 90.0, "epochs": 2,
                     "parameters": 9, "seconds": 1.0, "machine": "a CPU"},
    "failed.json": {"state": "failed", "message": "out of luck", "status": 1},
    "metrics.jsonl": {"epoch": 1, "loss": 2.0, "test_top1": 50.0},
    "config.yaml": {"lr": 0.05, "epochs": 2, "student": "resnet8", "dataset": "digits", "milestones": [0.5], "seed": 0,
                    "format": 2, "method": "kd", "data_digest": "a", "run": "r"},
    "sweep.json": {"field": "lr", "values": [0.1], "methods": ["kd"],
                   "points": [{"method": "kd", "lr": 0.1, "top1_last": 50.0}]},
    "search.json": {"search": ["lr=0.1..1"], "method": "kd", "best": None,
                    "tries": [{"try": 0, "values": {"lr": 0.2}}]},
    "topology.json": {"teacher": "t", "images": 10, "neighbours": 2, "rows": [NETWORK | {"linear_cka": 0.5}]},
    "transfer.json": {"protocol": [], "datasets": ["digits"], "rows": [NETWORK | {"dataset": "digits", "top1": 9.0}]},
}  # fmt: skip
KINDS = ("empty", "not UTF-8", "cut", "deep", "a folder", "a link", "a pipe", "a list")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its teacher and everything that a report shows."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    fake_run(folder, method="kd", limit_train=4)
    fake_run(folder / "teacher", limit_train=4, student="resnet8", seed=1)
    for name in RESULTS:
        (folder / f"{name}.json").write_text(json.dumps(GOOD[f"{name}.json"]))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "runs" / "run")
    return tmp_path / "runs" / "run"


def written(file: Path, text: str) -> None:
    file.write_bytes(text.encode(errors="surrogatepass"))


def forge_field(run: Path, name: str, field: str, value: Any) -> None:
    """Another value in one field of a file of plain data."""
    values = read_yaml(run / name) if name.endswith("yaml") else GOOD[name]
    values = {key: one for key, one in values.items() if key != field} | ({} if value is MISSING else {field: value})
    written(run / name, json.dumps(values) + "\n")


def forge_file(file: Path, kind: str) -> None:
    """Something else in place of a whole file."""
    outside = file.parents[2] / "outside"
    if file.is_file():
        file.rename(outside)
    else:
        outside.write_text("{}")
    content = outside.read_bytes()
    match kind:
        case "a folder":
            file.mkdir()
        case "a link":
            file.symlink_to(outside)
        case "a pipe":
            os.mkfifo(file)
        case _:
            file.write_bytes({
                "empty": b"", "not UTF-8": b"\xff\xfe" + content, "cut": content[: len(content) // 2],
                "deep": DEEP.encode(), "a list": b"[1, 2]\n",
            }[kind])  # fmt: skip


def read(run: Path) -> list[str]:
    """What each reader of a run folder says against it."""
    folder, said = RunFolder(run), []
    readers: list[Callable[[], Any]] = [
        lambda: folder.state, lambda: folder.result, lambda: folder.failure, folder.rows, folder.predictions,
        lambda: getattr(read_run(folder), "key", None), lambda: folder.begun,
        *(lambda name=name: list(results([run], name)) for name in RESULTS),
    ]  # fmt: skip
    for reader in readers:
        try:
            reader()
        except hkd.RequestError as error:
            said.append(str(error))
    return said


def one_line(text: str) -> bool:
    return text.isprintable() and len(text) < 6000 and not re.search(r"[a-z]Error\b", text)


FIELDS = [(name, field, value) for name, fields in GOOD.items() for field in fields for value in VALUES]


@pytest.mark.parametrize("name", GOOD)
def test_a_forged_field_is_told_in_one_line(run: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """About 600 in all."""
    told = 0
    cases = [(field, value) for one, field, value in FIELDS if one == name]
    original = (run / name).read_bytes() if (run / name).exists() else None
    for field, value in cases:
        forge_field(run, name, field, VALUES[value])
        said = read(run)
        notes = capsys.readouterr().err.splitlines()
        assert all(map(one_line, [*said, *notes])), (field, value, said, notes)
        told += any(name in line for line in [*said, *notes])
        if original is not None:
            (run / name).write_bytes(original)
    assert told > len(cases) // 3


@pytest.mark.parametrize("kind", KINDS)
def test_something_else_in_place_of_a_file_is_told_in_one_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    for name in (*GOOD, "predictions.npz", "student.safetensors"):
        run = tmp_path / name / "runs" / "run"
        shutil.copytree(finished, run)
        forge_file(run / name, kind)
        before = (tmp_path / name / "outside").read_bytes()
        said = read(run)
        notes = capsys.readouterr().err.splitlines()
        assert all(map(one_line, [*said, *notes])), (name, said, notes)
        empty = (name, kind) in (("metrics.jsonl", "empty"), ("metrics.jsonl", "cut"), ("metrics.jsonl", "deep"))
        assert empty or any(name in line for line in [*said, *notes]), (name, kind, said, notes)
        assert (tmp_path / name / "outside").read_bytes() == before


def array(descr: str, shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


ARRAYS = {
    "another shape": array("'<i8'", "(3,)", bytes(8)), "a terabyte": array("'<i8'", "(10**12,)", bytes(8)),
    "huge": array("'<i8'", "(1000000000000,)", bytes(8)), "two dimensions": array("'<i8'", "(1, 1)", bytes(8)),
    "floats": array("'<f8'", "(1,)", bytes(8)), "objects": array("'|O'", "(1,)", bytes(8)),
    "negative": array("'<i8'", "(1,)", (2**64 - 1).to_bytes(8, "little")), "none": array("'<i8'", "(0,)"),
    "no class": array("'<i8'", "(1,)", (2**62).to_bytes(8, "little")), "deep": array(DEEP[:9000], "(1,)", bytes(8)),
    "code": array("__import__('os')", "(1,)", bytes(8)),
    "minus signs": array("-" * 9000 + "1", "(1,)", bytes(8)),
    "no array": b"x", "a negative side": array("'<i8'", "(-1,)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ARRAYS)
def test_forged_predictions_are_told_in_one_line(run: Path, kind: str) -> None:
    with zipfile.ZipFile(run / "predictions.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("predicted", "label"):
            archive.writestr(f"{name}.npy", ARRAYS[kind])
    with pytest.raises(hkd.RequestError, match=r"predictions.npz is missing or corrupt \(") as error:
        RunFolder(run).predictions()
    assert one_line(str(error.value))


def test_predictions_that_numpy_does_not_compress_so_are_refused(run: Path) -> None:
    with zipfile.ZipFile(run / "predictions.npz", "w", zipfile.ZIP_LZMA) as archive:
        for name in ("predicted", "label"):
            archive.writestr(f"{name}.npy", array("'<i8'", "(1,)", bytes(8)))
    with pytest.raises(hkd.RequestError, match="compressed otherwise than NumPy does"):
        RunFolder(run).predictions()


def test_names_that_no_file_can_have_do_not_end_a_report(run: Path, tmp_path: Path) -> None:
    for field in ("teacher_checkpoint", "data_root"):
        values = read_yaml(run / "config.yaml") | {field: "a" * 300}
        (run / "config.yaml").write_text(json.dumps(values))
        assert main(["report", str(run), "--output", str(tmp_path / f"{field}.html")]) == 0


def test_the_name_of_a_folder_does_not_reach_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, run.with_name("run\x1b[2J\nhkd: all is well"))
    assert main(["report", str(run.parent), "--output", str(run.parents[1] / "r.html")]) == 0
    notes = capsys.readouterr().err
    assert "is not counted" in notes and "\x1b" not in notes and "\nhkd: all" not in notes


def test_a_run_s_file_does_not_say_where_to_download_to(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    for name in ("cifar100", "stl10", "tiny-imagenet"):
        values = read_yaml(run / "config.yaml") | {"dataset": name, "data_root": str(place), "holdout": 0.0}
        (run / "config.yaml").write_text(json.dumps(values))
        assert main(["evaluate", str(run), "--device", "cpu"]) == 2
        told = capsys.readouterr().err
        assert one_line(told.removesuffix("\n")) and "name a folder to download it to with --data-root" in told
        assert not place.exists()


def test_predictions_that_unpack_to_gigabytes_are_refused(run: Path) -> None:
    with zipfile.ZipFile(run / "predictions.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("predicted", "label"):
            archive.writestr(f"{name}.npy", array("'<i8'", "(2097153,)", bytes(8 * 2097153)))
    with pytest.raises(hkd.RequestError, match="its arrays are too large"):
        RunFolder(run).predictions()


COMMANDS = {
    "report": "report {run} --output {out}/report.html", "evaluate": "evaluate {run} --device cpu",
    "export": "export {run} --formats safetensors --output {out}/export",
    "topology": "topology {run} --run {out}/topology --device cpu --images 20 --neighbours 2",
    "transfer": "transfer {run} --run {out}/transfer --device cpu --datasets digits",
}  # fmt: skip
FORGERIES: dict[str, Callable[[Path], Any]] = {
    "top1 is a text": lambda run: forge_field(run, "summary.json", "top1_last", "\x1b[2J"),
    "summary is deep": lambda run: written(run / "summary.json", DEEP),
    "metrics are NaN": lambda run: forge_field(run, "metrics.jsonl", "loss", math.nan),
    "metrics are gone": lambda run: (run / "metrics.jsonl").unlink(),
    "lr is a mapping": lambda run: forge_field(run, "config.yaml", "lr", {"a": 1}),
    "config has no digest": lambda run: forge_field(run, "config.yaml", "data_digest", MISSING),
    "classes beyond those": lambda run: predictions(run, 20),
    "other images": lambda run: predictions(run, 0),
    "weights are a link": lambda run: forge_file(run / "student.safetensors", "a link"),
    "weights are a folder": lambda run: forge_file(run / "student.safetensors", "a folder"),
    "teacher is a link": lambda run: (run / "teacher").rename(run.parents[1] / "t")
    and (run / "teacher").symlink_to(run.parents[1] / "t"),
}  # fmt: skip


def predictions(run: Path, label: int) -> None:
    np.savez(run / "predictions.npz", predicted=np.full(3, label), label=np.full(3, label))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_answer_forged_runs_in_one_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    slow = command in ("topology", "transfer")  # those that get as far as the images
    for number, (name, forge) in enumerate(FORGERIES.items()):
        if slow and not name.startswith(("lr", "weights")):
            continue
        run = tmp_path / str(number) / "runs" / "run"
        shutil.copytree(finished, run)
        forge(run)
        status = main(COMMANDS[command].format(run=run, out=tmp_path / str(number) / "out").split())
        told = capsys.readouterr().err
        lines = [line for line in told.splitlines() if line.startswith("hkd: ")]
        assert status in (0, 2) and len(lines) == (status == 2), (name, status, told)
        assert told.replace("\n", "").isprintable() and "Traceback" not in told and "Error" not in told, (name, told)


def in_state(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda saved: saved["state"].update(values)


def part(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda saved: saved.update(values)


def momentum(value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda saved: saved["optimizer"]["state"][0].update(momentum_buffer=value)


def group(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda saved: saved["optimizer"]["param_groups"][0].update(values)


STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no state": lambda saved: saved.pop("state"), "no student": lambda saved: saved.pop("student"),
    "student is a list": part(student=[1]), "another network": part(student={"a": torch.ones(1)}),
    "origin is a text": part(origin="x"), "epoch is a text": in_state(epoch="x"),
    "epoch is huge": in_state(epoch=10**30), "step is negative": in_state(step=-1),
    "rows are texts": in_state(rows=["x"]),
    "a row is NaN": in_state(rows=[{"epoch": math.nan}]), "sums are texts": in_state(sums={"loss": "x"}),
    "sums are many": in_state(sums={"loss": torch.ones(3)}), "no sums": in_state(sums=None),
    "optimizer is a text": part(optimizer="x"), "momentum of another shape": momentum(torch.ones(7)),
    "momentum is a text": momentum("x"), "steps are a text": group(step="x"),
    "steps are many": group(step=torch.ones(3)), "no groups": lambda saved: saved["optimizer"].update(param_groups=[]),
    "random is gone": part(random={}),
    "random is a float": part(random={"cpu": torch.ones(3)}), "method is a text": part(method="x"),
    "format is a text": part(format="\x1b[2J"),
}  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended after its second epoch."""
    folder = tmp_path_factory.mktemp("begun")
    teacher(folder)

    class Killed(BaseException):
        pass

    def epoch(self: Any, row: dict[str, Any], *rest: Any) -> None:
        if row["epoch"] == 2:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Progress, "epoch", epoch)
        with pytest.raises(Killed):
            hkd.distill(asked(folder / "run", save_minutes=10.0))
    return folder


def resumed(begun: Path, place: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    shutil.copytree(begun, place, dirs_exist_ok=True)
    (place / "run" / "checkpoints" / "previous.pt").unlink()
    last = place / "run" / "checkpoints" / "last.pt"
    state = torch.load(last, weights_only=True)
    change(state)
    torch.save(state, last)
    hkd.distill(asked(place / "run", save_minutes=10.0))


@pytest.mark.parametrize("kind", STATES)
def test_a_forged_checkpoint_is_told_in_one_line(begun: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(hkd.RequestError, match=r"last.pt .*; start over with --fresh$") as error:
        resumed(begun, tmp_path, STATES[kind])
    assert one_line(str(error.value))


def test_the_optimiser_s_settings_are_not_taken_from_a_file(begun: Path, tmp_path: Path) -> None:
    resumed(begun, tmp_path, lambda state: state["optimizer"].update(param_groups="x"))
    assert RunFolder(tmp_path / "run").result["epochs"] == 6


def test_a_checkpoint_that_unpacks_to_gigabytes_is_not_read(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    (tmp_path / "run" / "checkpoints" / "previous.pt").unlink()
    with zipfile.ZipFile(tmp_path / "run" / "checkpoints" / "last.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**24))
    with pytest.raises(hkd.RequestError, match="last.pt is corrupt; start over with --fresh"):
        hkd.distill(asked(tmp_path / "run"))


@pytest.mark.parametrize("values", [{"lr": 7}, {"lr": "x"}, {"weight_decay": 0.1}, {}, {"lr": math.nan}])
def test_a_search_believes_no_value_out_of_its_ranges(tmp_path: Path, values: dict[str, Any]) -> None:
    from types import SimpleNamespace

    from hkd.studies.ranges import Range

    search = GOOD["search.json"] | {"tries": [{"try": 0, "values": values}]}
    (tmp_path / "search.json").write_text(json.dumps(search))
    ours = SimpleNamespace(
        plan=SimpleNamespace(folder=tmp_path), config=SimpleNamespace(search=tuple(search["search"])),
        request=SimpleNamespace(label="kd"), ranges=[Range.parse("lr=0.1..1")],
    )  # fmt: skip
    with pytest.raises(hkd.RequestError, match=r"search.json is corrupt \(tries: "):
        Search._read(ours)  # type: ignore[arg-type]

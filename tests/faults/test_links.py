"""Nothing inside a folder of this project is read or written through a link."""

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import hkd
from hkd.analysis import features
from hkd.cli import main
from hkd.data.download import no_downloads
from hkd.deploy.card import plain
from hkd.errors import RequestError
from hkd.files import appending, inside
from hkd.report.panels import draw
from hkd.report.samples import picture_in
from hkd.runtime.run_folder import WRITTEN, RunFolder
from hkd.runtime.teacher_cache import prune, tables_in
from hkd.studies.claims import any_claimed, claim
from hkd.studies.plan import Plan
from hkd.trained import find_trained
from tests.faults.runs import asked, teacher
from tests.report.fakes import fake_run, fake_spec

SECRET = b"private key"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder that no command is given, with a file in it."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "secret").write_bytes(SECRET)
    return folder


def untouched(folder: Path) -> bool:
    return {file.name: file.read_bytes() for file in folder.iterdir()} == {"secret": SECRET}


def linked(place: Path, target: Path) -> Path:
    """A link instead of what is at a place."""
    if place.is_file():
        place.unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir():
        place.rename(place.with_name("moved"))
    place.symlink_to(target)
    return place


def test_a_folder_may_be_a_link_and_what_is_in_it_may_not(tmp_path: Path, elsewhere: Path) -> None:
    (tmp_path / "run").symlink_to(elsewhere)
    assert inside(tmp_path / "run", "secret").read_bytes() == SECRET
    (elsewhere / "link").symlink_to(tmp_path)
    (elsewhere / "dangling").symlink_to(tmp_path / "nothing")
    for names in (("link",), ("link", "elsewhere"), ("dangling",)):
        with pytest.raises(RequestError, match=rf"^run: {tmp_path}/run/{names[0]} is a link; nothing in a folder is"):
            inside(tmp_path / "run", *names)


@pytest.mark.parametrize("names", [*WRITTEN, ("checkpoints",)], ids="/".join)
def test_a_run_folder_with_a_link_is_refused_before_anything_is_trained(
    tmp_path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...]
) -> None:
    teacher(tmp_path)
    is_folder = names[-1] in ("tensorboard", "teacher", "checkpoints")
    link = linked(tmp_path.joinpath("run", *names), elsewhere if is_folder else elsewhere / "secret")
    options = ["--run", str(tmp_path / "run"), "--teacher-checkpoint", str(tmp_path / "teacher.safetensors")]
    assert main(["distill", *options, "--device", "cpu", "--epochs", "1", "--limit-train", "4"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith(f"hkd: run: {link} is a link")
    assert untouched(elsewhere) and {file.name for file in (tmp_path / "run").iterdir()} == {names[0]}


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "summary.json", "metrics.jsonl"])
def test_a_report_reads_through_no_link(
    tmp_path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = fake_run(tmp_path / "run", limit_train=4)
    (run / name).rename(elsewhere / name)
    (run / name).symlink_to(elsewhere / name)
    assert main(["report", str(run), "--output", str(tmp_path / "report.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(run / name) in line and "link" in line and not (tmp_path / "report.html").exists()


def test_weights_in_a_folder_may_not_be_a_link_and_a_named_file_may(tmp_path: Path, elsewhere: Path) -> None:
    run = fake_run(tmp_path / "run", limit_train=4)
    weights = (run / "model.safetensors").rename(elsewhere / "w.safetensors")
    (run / "model.safetensors").symlink_to(weights)
    with pytest.raises(RequestError, match="model.safetensors is a link"):
        find_trained(run)
    (tmp_path / "w.safetensors").symlink_to(weights)
    assert find_trained(tmp_path / "w.safetensors").name == "resnet8"


def test_only_a_png_file_becomes_a_picture_of_a_report(
    tmp_path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("RGB", (2, 2)).save(tmp_path / "good.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "gif.png", "GIF")
    (tmp_path / "linked.png").symlink_to(tmp_path / "good.png")
    (tmp_path / "key.png").symlink_to(elsewhere / "secret")
    (tmp_path / "text.png").write_bytes(SECRET)
    (tmp_path / "folder.png").mkdir()
    encoded = base64.b64encode((tmp_path / "good.png").read_bytes()).decode()
    assert picture_in(tmp_path, "good.png") == f"data:image/png;base64,{encoded}"
    assert picture_in(tmp_path, "missing.png") == "" and not capsys.readouterr().err
    for name in ("gif", "linked", "key", "text", "folder"):
        assert picture_in(tmp_path, f"{name}.png") == ""
        assert capsys.readouterr().err.startswith(f"note: {tmp_path}/{name}.png is not shown (")


def test_panels_replace_links(tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hkd.report.panels.static", lambda *_: SimpleNamespace(savefig=savefig))
    monkeypatch.setattr("hkd.report.panels.interactive", lambda *_: "page")
    names = [f"topology.{suffix}" for suffix in ("png", "svg", "html")]
    for name in names:
        (tmp_path / name).symlink_to(elsewhere / "secret")
    draw([], torch.zeros(0).numpy(), [], tmp_path)
    assert untouched(elsewhere) and not any((tmp_path / name).is_symlink() for name in names)


def savefig(file: Path, **_: Any) -> None:
    file.write_bytes(b"picture")


def test_a_study_starts_and_writes_nothing_through_a_link(tmp_path: Path, elsewhere: Path) -> None:
    study = tmp_path / "study"
    linked(study / ".claims", elsewhere)
    with pytest.raises(RequestError, match=r"\.claims is a link"):
        claim(study, "key", 0)
    with pytest.raises(RequestError, match=r"\.claims is a link"):
        any_claimed(study)
    plan = Plan(str(tmp_path / "other"), "compare")
    linked(tmp_path / "other" / "alone", elsewhere)
    with pytest.raises(RequestError, match="alone is a link"):
        plan.add(fake_spec(limit_train=4), ("alone", "resnet8-0"), "resnet8 alone")
    linked(tmp_path / "log.txt", elsewhere / "secret")
    with pytest.raises(RequestError, match="cannot write to"):
        appending(tmp_path / "log.txt")
    assert untouched(elsewhere)


def test_locks_are_not_taken_through_a_link(tmp_path: Path, elsewhere: Path) -> None:
    linked(tmp_path / "run" / ".lock", elsewhere / "secret")
    with pytest.raises(RequestError, match=r"\.lock is a link"):
        _ = RunFolder(tmp_path / "run").is_locked
    assert untouched(elsewhere)


def test_pruning_deletes_tables_and_nothing_else(tmp_path: Path, elsewhere: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "table").mkdir(parents=True)
    for folder in (elsewhere, cache / "table"):
        (folder / "header.json").write_text('{"teacher": "a digest"}')
        (folder / "rows.bin").write_bytes(bytes(10_000))
    (cache / "linked").symlink_to(elsewhere)
    (cache / "table" / "mine.txt").write_text("kept")
    assert [table.path.name for table in tables_in(cache)] == ["table"]
    prune(cache, 0)
    assert [file.name for file in (cache / "table").iterdir()] == ["mine.txt"]
    assert (elsewhere / "header.json").is_file() and (elsewhere / "rows.bin").is_file()


def test_features_are_not_read_or_kept_through_a_link(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked(tmp_path / "cache", elsewhere)
    with pytest.raises(RequestError, match="cache is a link"):
        features.extract(None, None, None, tmp_path / "cache")  # type: ignore[arg-type]
    assert untouched(elsewhere)


def test_an_export_replaces_links(tmp_path: Path, elsewhere: Path) -> None:
    run = fake_run(tmp_path / "run", limit_train=4)
    names = ["MODEL_CARD.md", "model.safetensors", "model.pt2"]
    for name in names:
        linked(run / "export" / name, elsewhere / "secret")
    hkd.export(hkd.ExportConfig(checkpoint=str(run), formats=("safetensors", "torch")))
    assert untouched(elsewhere) and not any((run / "export" / name).is_symlink() for name in names)


def test_an_export_folder_that_is_a_link_is_refused(
    tmp_path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fake_run(tmp_path / "run", limit_train=4)
    linked(run / "export", elsewhere)
    with pytest.raises(RequestError, match="export is a link"):
        hkd.export(hkd.ExportConfig(checkpoint=str(run), formats=("safetensors",)))
    assert untouched(elsewhere)


@pytest.mark.parametrize("format", ["onnx", "torch", "safetensors"])
def test_a_full_disk_in_an_export_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    run = fake_run(tmp_path / "run", limit_train=4)
    name = {"onnx": "model.onnx", "torch": "model.pt2", "safetensors": "model.safetensors"}[format]
    (run / "export").mkdir()
    (run / "export" / name).write_bytes(b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(hkd.TrainingError, match=r"cannot write to .*export \(No space left on device\)"):
        hkd.export(hkd.ExportConfig(checkpoint=str(run), formats=(format,)))
    assert [file.name for file in (run / "export").iterdir()] == [name]
    assert (run / "export" / name).read_bytes() == b"before"


def test_names_from_files_are_plain_text_in_a_model_card() -> None:
    text = plain("<img src=x>\n# [a](javascript:b) `c` ![d](e) f_g | \x1b[2J")
    assert not any(mark in text for mark in "<>\n\x1b") and text.startswith("&lt;img src=x&gt;\\\\n\\# \\[a\\](")
    assert plain("tabby cat") == "tabby cat"


@pytest.mark.parametrize("name", ["cifar100", "stl10", "tiny-imagenet"])
def test_a_report_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise AssertionError("downloads")

    for place in ("torchvision.datasets.utils.download_url", "torchvision.datasets.cifar.download_and_extract_archive",
                  "torchvision.datasets.stl10.download_and_extract_archive"):  # fmt: skip
        monkeypatch.setattr(place, download)
    with no_downloads(), pytest.raises(RequestError, match=f"{name} is not complete under"):
        hkd.load_dataset(name, "test", tmp_path)
    with pytest.raises(AssertionError):
        hkd.load_dataset(name, "test", tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_curves_on_a_full_disk_are_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.flush", full)
    teacher(tmp_path)
    assert hkd.distill(asked(tmp_path / "run", tensorboard=True, epochs=2)).summary["epochs"] == 2
    told = capsys.readouterr().err
    assert told.count("warning: the curves cannot be written (No space left on device)") == 1
    assert "Traceback" not in told

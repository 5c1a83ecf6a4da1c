"""What breaks during a run, and what the run does about it."""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import safetensors.torch
import torch

import hkd
from hkd import api
from hkd import trainer as loop
from hkd.data import Dataset
from hkd.data.stream_loader import StreamLoader
from hkd.distiller import Distiller
from hkd.errors import Stopped
from hkd.methods import methods
from hkd.methods.hkd import HKD
from hkd.runtime import run_folder
from hkd.runtime.run_folder import RunFolder
from tests.data.test_datasets import class_folders, write_files
from tests.faults.runs import asked, outcome, teacher

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    pass


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    """A folder with the same teacher."""
    (tmp_path / "teacher.safetensors").write_bytes((whole / "teacher.safetensors").read_bytes())
    return tmp_path


def interrupted(config: hkd.DistillConfig, monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Leaves a run after so many epochs."""
    log = loop.Progress.epoch

    def epoch(self: Any, row: dict[str, Any], *rest: Any) -> None:
        log(self, row, *rest)
        if row["epoch"] == epochs:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.Progress, "epoch", epoch)
        with pytest.raises(Killed):
            hkd.distill(config)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "missing"])
def test_a_broken_checkpoint_falls_back_to_the_one_before(
    whole: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    config = asked(place / "run", save_minutes=10.0)
    interrupted(config, monkeypatch, 3)
    last = place / "run" / "checkpoints" / "last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    {
        "cut": lambda: last.write_bytes(content[:-1000]), "flipped": lambda: last.write_bytes(content),
        "empty": lambda: last.write_bytes(b""), "missing": last.unlink,
    }[damage]()  # fmt: skip
    hkd.distill(config)
    told = capsys.readouterr().err
    assert ("last.pt is corrupt; continuing from" in told) == (damage != "missing")
    assert outcome(place / "run") == outcome(whole / "run")


def test_a_broken_checkpoint_never_takes_the_place_of_a_whole_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save after the fall back, which is killed between its two renames."""
    config = asked(place / "run", save_minutes=10.0)
    interrupted(config, monkeypatch, 3)
    folder = RunFolder(place / "run")
    folder.last.write_bytes(folder.last.read_bytes()[:-1000])
    state = folder.load_checkpoint()
    assert state is not None
    replace = Path.replace

    def killed_at_the_last(self: Path, target: Path) -> Path:
        if self.name == "new.pt":
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed_at_the_last)
        with pytest.raises(KeyboardInterrupt):
            folder.save_checkpoint(state)
    after = RunFolder(place / "run").load_checkpoint()
    assert after is not None and after.keys() == state.keys()


def test_a_full_disk_while_saving_is_warned_of_and_tried_again(
    whole: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """/dev/full answers every write with "no space left on device"."""
    config = asked(place / "run", save_minutes=10.0, keep_checkpoints=True)
    save, calls = RunFolder.save_checkpoint, []

    @contextlib.contextmanager
    def on_a_full_disk(path: Path) -> Iterator[BinaryIO]:
        with Path("/dev/full").open("wb") as file:
            yield file

    def on_a_full_disk_first(self: RunFolder, state: dict[str, Any]) -> bool:
        calls.append(state)
        with monkeypatch.context() as patch:
            if len(calls) <= 2:
                patch.setattr(run_folder, "replacing", on_a_full_disk)
            return save(self, state)

    monkeypatch.setattr(RunFolder, "save_checkpoint", on_a_full_disk_first)
    hkd.distill(config)
    told = capsys.readouterr().err
    assert told.count("warning: the checkpoint could not be saved") == 2 and "No space left on device" in told
    assert outcome(place / "run") == outcome(whole / "run")
    assert (place / "run" / "checkpoints" / "last.pt").is_file()


def test_a_disk_that_fills_while_writing_leaves_what_was_there(
    whole: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = asked(place / "run", save_minutes=10.0)
    fsync, calls = os.fsync, []

    def on_a_full_disk(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", on_a_full_disk)
        with pytest.raises(hkd.TrainingError, match=r"No space left on device\); the same command continues"):
            hkd.distill(config)
    assert "warning: the checkpoint could not be saved" in capsys.readouterr().err
    assert not [file for file in (place / "run").rglob("*") if "partial" in file.name]
    hkd.distill(config)
    assert outcome(place / "run") == outcome(whole / "run")


def test_a_full_disk_at_the_end_says_how_to_continue(whole: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = asked(place / "run")
    with monkeypatch.context() as patch:
        patch.setattr(
            RunFolder, "finish", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(hkd.TrainingError, match=r"No space left on device\); the same command continues"):
            hkd.distill(config)
    hkd.distill(config)
    assert outcome(place / "run") == outcome(whole / "run")


def test_another_teacher_is_noticed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = asked(place / "run")
    interrupted(config, monkeypatch, 2)
    torch.manual_seed(1)
    teacher(place)
    with pytest.raises(hkd.RequestError, match="teacher: the teacher's weights are not what the run in"):
        hkd.distill(config)


def test_a_second_process_on_a_run_folder_is_refused(place: Path) -> None:
    folder = RunFolder(place / "run")
    folder.open(hkd.TrainConfig(run=str(place / "run")).spec(), fresh=False)
    assert not folder.is_locked and RunFolder(place / "run").is_locked
    code = "import sys; from hkd.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    options = ["train", "--run", str(place / "run"), "--epochs", "1", "--limit-train", "4", "--device", "cpu"]
    command = [sys.executable, "-c", code, *options, "--no-tensorboard"]
    second = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert second.returncode == 2
    assert second.stderr == (
        f"hkd: run: another process is working in {place / 'run'}; wait for it, or name another folder with --run\n"
    )
    folder.close()
    assert not RunFolder(place / "run").is_locked
    third = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert third.returncode == 0, third.stderr
    assert not (place / "run" / ".lock").exists()


class Spoilt(HKD):
    """HKD whose terms are NaN at some steps."""

    spoilt: frozenset[int] = frozenset()
    at_call: Any = staticmethod(lambda call: None)

    def forward(self, *arguments: Any) -> dict[str, torch.Tensor]:
        terms = super().forward(*arguments)
        self.calls = getattr(self, "calls", 0) + 1
        self.at_call(self.calls)
        return {name: term * (torch.nan if self.calls in self.spoilt else 1.0) for name, term in terms.items()}


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> type[Spoilt]:
    monkeypatch.setitem(methods._entries, "hkd", Spoilt)
    return Spoilt


def test_a_loss_that_is_nan_names_the_step_and_its_terms(
    place: Path, spoilt: type[Spoilt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spoilt, "spoilt", frozenset({7}))
    with pytest.raises(hkd.TrainingError) as error:
        hkd.distill(asked(place / "run", save_minutes=10.0))
    told = str(error.value)
    assert "in epoch 2, step 3 (loss nan, ce " in told and "individual_student nan" in told
    assert f"the checkpoint before it is {place / 'run' / 'checkpoints' / 'last.pt'}" in told
    assert "--skip-bad-steps" in told
    monkeypatch.setattr(spoilt, "spoilt", frozenset())
    assert hkd.distill(asked(place / "run", save_minutes=10.0)).summary["epochs"] == 6


def test_bad_steps_can_be_skipped_up_to_a_number(
    place: Path, spoilt: type[Spoilt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spoilt, "spoilt", frozenset({3, 9}))
    result = hkd.distill(asked(place / "run", skip_bad_steps=2))
    assert result.summary["skipped_steps"] == 2
    assert all(value.isfinite().all() for value in result.model.state_dict().values())
    monkeypatch.setattr(spoilt, "spoilt", frozenset({3, 9, 11}))
    with pytest.raises(hkd.TrainingError, match="at 3 steps, the last with loss nan"):
        hkd.distill(asked(place / "other", skip_bad_steps=2))


def test_an_epoch_of_bad_steps_stops_even_where_they_may_be_skipped(
    place: Path, spoilt: type[Spoilt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spoilt, "spoilt", frozenset(range(1, 5)))
    with pytest.raises(hkd.TrainingError, match="in epoch 1, in every step"):
        hkd.distill(asked(place / "run", skip_bad_steps=10))


def state_of(distiller: Distiller) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in distiller.state_dict().items()}


def test_a_skipped_step_leaves_everything_as_it_was(
    place: Path, spoilt: type[Spoilt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, running statistics, memory banks, and the draw that comes next."""
    train_step, changed = loop.Trainer.train_step, []

    def watch(self: loop.Trainer, step: int, batch: hkd.Batch) -> None:
        before, draws = state_of(self.distiller), self.distiller.method.loss.sampler.draws
        train_step(self, step, batch)
        after = state_of(self.distiller)
        changed.append({name for name in before if not torch.equal(before[name], after[name])})
        if draws != self.distiller.method.loss.sampler.draws:
            changed[-1].add("draws")

    monkeypatch.setattr(loop.Trainer, "train_step", watch)
    monkeypatch.setattr(spoilt, "spoilt", frozenset({3, 6}))
    hkd.distill(asked(place / "run", skip_bad_steps=2, epochs=2))
    assert [bool(names) for names in changed] == [True, True, False, True, True, False, True, True]
    assert {"draws", "method.loss.student.bank.rows", "student.bn1.running_mean", "student.conv1.weight"} <= changed[0]


@pytest.mark.parametrize("method", ["crd", "at", "sskd", "vid"])
def test_a_skipped_step_leaves_other_methods_as_they_were(
    place: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    train_step, step_loss, kept = loop.Trainer.train_step, Distiller.forward, []

    def spoil(self: Distiller, *arguments: Any, **teacher: Any) -> Any:
        out = step_loss(self, *arguments, **teacher)
        return out._replace(loss=out.loss * torch.nan) if self.training and spoil.now else out

    def watch(self: loop.Trainer, step: int, batch: hkd.Batch) -> None:
        spoil.now = step == 2
        before = state_of(self.distiller)
        train_step(self, step, batch)
        if spoil.now:
            after = state_of(self.distiller)
            kept.append([name for name in before if not torch.equal(before[name], after[name])])

    spoil.now = False
    monkeypatch.setattr(Distiller, "forward", spoil)
    monkeypatch.setattr(loop.Trainer, "train_step", watch)
    settings = {"init_epochs": 1} if method == "sskd" else {}
    hkd.distill(asked(place / "run", method=method, settings=settings, skip_bad_steps=9, epochs=2))
    assert kept == [[]] * (3 if method == "sskd" else 2)


def test_a_skipped_step_honours_the_stop_request(
    place: Path, spoilt: type[Spoilt], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = asked(place / "run", skip_bad_steps=2, save_minutes=10.0)
    monkeypatch.setattr(spoilt, "spoilt", frozenset({3, 6}))
    whole = hkd.distill(asked(place / "whole", skip_bad_steps=2)).model.state_dict()

    monkeypatch.setattr(
        spoilt, "at_call", staticmethod(lambda call: call == 3 and os.kill(os.getpid(), signal.SIGTERM))
    )
    with pytest.raises(Stopped, match="stopped after step 3 of epoch 1; the same command continues from there"):
        hkd.distill(config)
    monkeypatch.setattr(spoilt, "at_call", staticmethod(lambda call: None))
    monkeypatch.setattr(spoilt, "spoilt", frozenset({3}))  # the sixth step of the run is the third of this start
    result = hkd.distill(config)
    assert result.summary["skipped_steps"] == 2
    assert all(torch.equal(value, whole[name]) for name, value in result.model.state_dict().items())


@pytest.mark.parametrize("left", ["checkpoints", ".config.yaml.1a2b.partial", ".lock", "log.txt", "failed.json"])
def test_a_start_that_was_cut_short_is_no_obstacle(whole: Path, place: Path, left: str) -> None:
    (place / "run").mkdir()
    (place / "run" / left).mkdir() if left == "checkpoints" else (place / "run" / left).write_text("")
    hkd.distill(asked(place / "run"))
    assert outcome(place / "run") == outcome(whole / "run")


def test_a_full_disk_is_noticed_by_what_writes_weights(
    whole: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights' library has an error of its own for it."""
    write, full = safetensors.torch.save_file, [True]

    def on_a_full_disk(state: Any, file: str, **rest: Any) -> None:
        if full[0] and ("best" in file or "student" in file):
            raise safetensors.SafetensorError("No space left on device")
        write(state, file, **rest)

    monkeypatch.setattr(safetensors.torch, "save_file", on_a_full_disk)
    with pytest.raises(hkd.TrainingError, match="No space left on device.*the same command continues"):
        hkd.distill(asked(place / "run"))
    assert "warning: the best network could not be saved" in capsys.readouterr().err
    full[0] = False
    hkd.distill(asked(place / "run"))
    assert outcome(place / "run") == outcome(whole / "run")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
              RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)  # fmt: skip
def test_out_of_memory_says_what_to_lower(place: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(loop.Trainer, "train_step", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(hkd.TrainingError, match="out of memory with 64 images in a step on cpu; lower --batch-size"):
        hkd.distill(asked(place / "run"))


BAD = {"train/cat/0.png": b"no image", "train/dog/1.png": b""}


def photos(folder: Path) -> str:
    return f"folder:{write_files(folder / 'photos', class_folders() | BAD)}"


def test_unreadable_images_are_counted_and_named_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = hkd.TrainConfig(
        run=str(tmp_path / "t"), dataset=photos(tmp_path), epochs=1, device="cpu", tensorboard=False
    )
    with pytest.raises(hkd.RequestError) as error:
        hkd.train(config)
    told = str(error.value)
    assert "2 of 12 images taken from" in told
    assert "train/cat/0.png" in told and "train/dog/1.png" in told and "--bad-images skip" in told
    assert not (tmp_path / "t").exists()
    result = hkd.train(replace(config, bad_images="skip"))
    assert "warning: skipped, 2 of" in capsys.readouterr().err
    assert result.summary["train_images"] == 10


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_of_a_stream_are_replaced_where_asked(
    tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    fields: dict[str, Any] = {
        "dataset": photos(tmp_path), "image_size": 100, "epochs": 1, "device": "cpu", "tensorboard": False,
        "workers": workers,
    }  # fmt: skip
    with pytest.raises(hkd.RequestError, match=r"cannot read .*\.png"):
        hkd.train(hkd.TrainConfig(run=str(tmp_path / "stops"), **fields))
    result = hkd.train(hkd.TrainConfig(run=str(tmp_path / "skips"), bad_images="skip", **fields))
    assert result.summary["epochs"] == 1
    assert "warning: skipped, dataset: cannot read" in capfd.readouterr().err


@pytest.mark.parametrize("way", ["exits", "is killed"])
def test_a_worker_that_dies_is_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    data = f"folder:{write_files(tmp_path / 'photos', class_folders())}"
    parent = os.getpid()

    def decode(self: Dataset, index: int, side: int | None = None) -> Any:
        if os.getpid() != parent:
            os._exit(9) if way == "exits" else os.kill(os.getpid(), signal.SIGKILL)
        return original(self, index, side)

    kind = type(hkd.load_dataset(data, "train", image_size=100))
    original = kind.decode
    monkeypatch.setattr(kind, "decode", decode)
    config = hkd.TrainConfig(
        run=str(tmp_path / "t"), dataset=data, image_size=100, epochs=1, device="cpu", workers=1, tensorboard=False
    )
    with pytest.raises(hkd.TrainingError, match="a process that decodes images died .* lower --workers"):
        hkd.train(config)


def test_a_worker_that_dies_while_the_run_saves_is_not_taken_for_a_full_disk(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Torch raises it in the main thread, wherever that is."""

    def save(*_: Any, **__: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(run_folder, "save_model", save)
    with pytest.raises(hkd.TrainingError, match="a process that decodes images died"):
        hkd.distill(asked(place / "run"))
    assert "could not be saved" not in capsys.readouterr().err


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_that_dies_when_it_is_not_needed_any_more_is_nothing_to_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch raises it where it waits for the workers' end, and then no more."""
    data = hkd.load_dataset(f"folder:{write_files(tmp_path / 'photos', class_folders())}", image_size=100)
    loader = hkd.data.make_loader(data, 4, torch.device("cpu"), train=True, workers=2)
    assert isinstance(loader, StreamLoader) and len(list(loader.epoch(0))) == 3
    kind, ends = type(loader._loader._iterator), []
    shutdown = kind._shutdown_workers

    def interrupted(self: Any) -> None:
        shutdown(self)
        ends.append(True)
        if len(ends) == 1:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(kind, "_shutdown_workers", interrupted)
    del loader
    gc.collect()
    assert ends


def test_the_checkpoints_folder_does_not_grow(whole: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(asked(place / "run"), monkeypatch, 4)
    kept = {file.name for file in (place / "run" / "checkpoints").iterdir()}
    assert kept == {"last.pt", "previous.pt", "best.safetensors"}
    assert [file.name for file in (whole / "run" / "checkpoints").iterdir()] == ["best.safetensors"]


def test_an_unexpected_error_is_one_line_unless_asked(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hkd.cli import main

    monkeypatch.setattr(api, "Trainer", lambda *_: json.loads("{"))
    options = ["train", "--run", str(place / "t"), "--epochs", "1", "--limit-train", "4", "--device", "cpu"]
    assert main(options) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("hkd: failed: JSONDecodeError: ") and told.endswith("; --debug shows where")
    with pytest.raises(json.JSONDecodeError):
        main([*options, "--debug"])

"""Every reader of outside files and requests, with valid files for it to be changed.

A target takes a folder that holds the files, and may raise RequestError alone.
"""

import contextlib
import io
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors.torch
import torch
import yaml
from torch import nn

import hkd
from hkd.cli import main
from hkd.cli.commands import CONFIGS
from hkd.config import ReportConfig, SweepConfig
from hkd.data import prepare
from hkd.data.decode import _read_cache, _write_cache
from hkd.files import read_yaml
from hkd.models.weights import read_about
from hkd.options import default_of, options
from hkd.report.collect import find_finished, grouped
from hkd.report.page import write_report
from hkd.report.topology import MEASURES
from hkd.runtime.run_folder import RunFolder
from hkd.runtime.teacher_cache import tables_in
from hkd.runtime.teacher_table import TableKey, TeacherTable
from hkd.spec import RunSpec
from tests.data.test_datasets import class_folders, encoded, picture, tiny_files, zipped
from tests.faults.mutations import NASTY, Files, changed
from tests.models.test_about import GOOD

MODEL = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
RUN = hkd.TrainConfig(run="-", student="resnet8", epochs=1, limit_train=2, device="cpu", tensorboard=False)
KEY = TableKey(
    teacher="t", classes=2, width=2, side=8, padding=0, augmentation="crop", views=2, decode="memory", mean=(0.5,),
    std=(0.5,), teacher_size=8, precision="fp32", folded=True, dtype="float16",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        read: what is done with the folder.
        good: makes valid files, some sets of them.
        change: of a set of files.
    """

    read: Callable[[Path], None]
    good: Callable[[Path], list[Files]]
    change: Callable[[Files, random.Random], Files] = changed


def files_of(folder: Path) -> Files:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".lock")
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


# -- weights ----------------------------------------------------------------------------------------------------------


def read_weights(folder: Path) -> None:
    file = folder / "w.safetensors"
    for read in (read_about, hkd.load_model, lambda path: hkd.load_checkpoint(MODEL, path)):
        with contextlib.suppress(hkd.RequestError):
            read(file)
    read_about(file)


def good_weights(folder: Path) -> list[Files]:
    safetensors.torch.save_file(MODEL.state_dict(), folder / "w.safetensors", metadata={"hkd": json.dumps(GOOD)})
    small = files_of(folder)
    hkd.save_model(hkd.create_model("resnet8", 10), folder / "w.safetensors", mean=[0.5] * 3, std=[0.1] * 3)
    return [small, files_of(folder)]


def read_pickle(folder: Path) -> None:
    hkd.load_checkpoint(MODEL, folder / "w.pt")


def good_pickle(folder: Path) -> list[Files]:
    sets = []
    for new in (True, False):
        torch.save({"model": MODEL.state_dict(), "epoch": 3}, folder / "w.pt", _use_new_zipfile_serialization=new)
        sets.append(files_of(folder))
    return sets


# -- runs and studies -------------------------------------------------------------------------------------------------


@cache
def trained() -> tuple[Files, Files]:
    """A finished run, and one that was stopped after its first step."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        hkd.train(hkd.TrainConfig(**vars(RUN) | {"run": str(run), "keep_checkpoints": True}))
        whole = files_of(run)
        begun = {name: data for name, data in whole.items() if name in ("config.yaml", "checkpoints/last.pt")}
        return {name: data for name, data in whole.items() if not name.startswith("checkpoints")}, begun


def read_run(folder: Path) -> None:
    run = RunFolder(folder)
    for part in ("state", "summary", "failure", "spec", "weights"):
        with contextlib.suppress(hkd.RequestError):
            getattr(run, part)
    for call in (run.rows, run.predictions, lambda: run.spec.resolved().key()):
        with contextlib.suppress(hkd.RequestError):
            call()
    groups = grouped(find_finished([str(folder)])[0])
    assert all(group.label for group in groups)


def good_run(folder: Path) -> list[Files]:
    failed = {"state": "failed", "message": "m", "status": 1}
    return [trained()[0], trained()[0] | {"failed.json": json.dumps(failed).encode()}]


def read_report(folder: Path) -> None:
    write_report(ReportConfig(runs=(str(folder / "in"),), output=str(folder / "out.html")))


def good_report(folder: Path) -> list[Files]:
    """A run, and results of other commands beside it, in which any number may be anything."""
    row = {"label": "kd", "key": "k", "seed": 0, "weights": "r/student.safetensors", "dataset": "d", "top1": 1.0}
    point = {"method": "kd", "lr": 0.1, "seed": 0, "top1_last": 50.0, "top1_best": 51.0, "key": "k", "run": "r"}
    attempt = {"try": 0, "state": "complete", "top1_holdout": 1.0, "epochs": 1, "values": {"lr": 0.1}, "run": "r"}
    results = {
        "sweep": {"field": "lr", "values": [0.1, 0.2], "methods": ["kd"], "points": [point, point | {"lr": 0.2}]},
        "search": {"search": ["lr=0.1..1"], "method": "kd", "best": attempt, "tries": [attempt]},
        "topology": {"rows": [row | dict.fromkeys(MEASURES, 0.5)], "teacher": "t", "images": 3, "neighbours": 2},
        "transfer": {"rows": [row, row | {"seed": 1, "weights": "s"}], "protocol": ["p"], "datasets": ["d"]},
    }
    run = {f"in/run/{name}": data for name, data in trained()[0].items()}
    return [run, run | {f"in/{name}.json": json.dumps(numbers).encode() for name, numbers in results.items()}]


def read_checkpoint(folder: Path) -> None:
    hkd.train(hkd.TrainConfig(**vars(RUN) | {"run": str(folder)}))


def good_checkpoint(folder: Path) -> list[Files]:
    return [trained()[1]]


def read_yaml_file(folder: Path) -> None:
    for read in (read_yaml, RunSpec.load):
        with contextlib.suppress(hkd.RequestError):
            read(folder / "config.yaml")


def good_yaml(folder: Path) -> list[Files]:
    odd = b"a: &x [1, 2]\nb: *x\nc: !!binary aGs=\nd: 2026-01-01\n<<: {e: 1_0}\n"
    recipes = [file.read_bytes() for file in sorted((Path(hkd.__file__).parents[2] / "recipes").rglob("*.yaml"))]
    return [{"config.yaml": data} for data in (trained()[0]["config.yaml"], odd, *recipes)]


def read_study(folder: Path) -> None:
    """The files of a study: what kind it is, who trains what, what a search has proposed."""
    search = SweepConfig(
        run=str(folder / "study"), methods=("kd",), search=("kd_temperature=1..8",), holdout=0.2, tries=3, epochs=1,
        limit_train=5, device="cpu", tensorboard=False, dry_run=True, teacher="resnet8", student="resnet8",
    )  # fmt: skip
    hkd.sweep(search)


def good_study(folder: Path) -> list[Files]:
    row = {
        "try": 0,
        "state": "complete",
        "top1_holdout": 1.0,
        "epochs": 1,
        "values": {"kd_temperature": 2.0},
        "run": "r",
    }
    numbers = {"search": ["kd_temperature=1..8"], "method": "kd", "best": row, "tries": [row, row | {"try": 1}]}
    files = {"search.json": json.dumps(numbers).encode(), "study.yaml": b"kind: search\n", ".claims/ab-0": b""}
    return [
        {f"study/{name}": data for name, data in files.items()} | {"study/run/config.yaml": trained()[1]["config.yaml"]}
    ]


# -- caches -----------------------------------------------------------------------------------------------------------


def read_image_cache(folder: Path) -> None:
    images = _read_cache(folder / "c.safetensors", 2, 2)
    assert images is None or images.shape == (2, 3, 2, 2)


def good_image_cache(folder: Path) -> list[Files]:
    _write_cache(folder / "c.safetensors", torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2))
    return [files_of(folder)]


def read_table(folder: Path) -> None:
    for table in tables_in(folder):
        assert table.describe().isprintable(), table.describe()
    table = TeacherTable(folder, KEY, np.arange(3, dtype=np.uint32), torch.arange(3))
    numbers, known = table.read(torch.arange(3), torch.zeros(3, dtype=torch.int64))
    expected = np.arange(12, dtype=np.float16).reshape(3, 4)
    assert (numbers[known] == expected[known]).all(), "a forged row was believed"
    _ = table.header, table.bytes


def good_table(folder: Path) -> list[Files]:
    table = TeacherTable(folder, KEY, np.arange(3, dtype=np.uint32), torch.arange(3))
    table.write(torch.arange(3), torch.zeros(3, dtype=torch.int64), np.arange(12, dtype=np.float16).reshape(3, 4))
    table.note(accuracy={"d": 50.0})
    return [files_of(folder)]


# -- data -------------------------------------------------------------------------------------------------------------


def looked_at(name: str, split: str, root: Path | str = "data") -> None:
    data = hkd.load_dataset(name, split, root, image_size=8)
    for index in range(min(len(data), 4)):
        with contextlib.suppress(hkd.RequestError):
            assert data[index][0].shape == (3, 8, 8)
    assert prepare(data, None, 0, "skip").info.num_classes > 0


def read_archive(folder: Path) -> None:
    for split in ("train", "val"):
        with contextlib.suppress(hkd.RequestError):
            looked_at(f"folder:{folder / 'photos.zip'}", split)


def good_archive(folder: Path) -> list[Files]:
    zipped(folder / "photos.zip", class_folders((4, 4), train=1, val=1))
    plain = files_of(folder)
    zipped(folder / "photos.zip", class_folders((4, 4), train=1, val=1), top="photos/")
    return [plain, files_of(folder)]


def read_folder(folder: Path) -> None:
    for name in (f"folder:{folder}", "imagenet"):
        for split in ("train", "val"):
            with contextlib.suppress(hkd.RequestError):
                looked_at(name, split, folder)


def good_folder(folder: Path) -> list[Files]:
    formats = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP", "ppm": "PPM", "tif": "TIFF"}
    odd = {f"train/cat/{ending}.{ending}": encoded(picture((9, 7), 3), kind) for ending, kind in formats.items()}
    modes = {
        f"train/dog/{mode[0]}.tif": encoded(picture((5, 4), 1).convert(mode), "TIFF")
        for mode in ("CMYK", "LA", "I;16", "1", "P")
    }
    return [class_folders((4, 4), train=2, val=1) | odd, class_folders((4, 4), train=1, val=1) | modes]


def read_tiny(folder: Path) -> None:
    for split in ("train", "val"):
        with contextlib.suppress(hkd.RequestError):
            looked_at("tiny-imagenet", split, folder / "tiny-imagenet-200")


def good_tiny(folder: Path) -> list[Files]:
    return [{f"tiny-imagenet-200/{name}": data for name, data in tiny_files().items()}]


def read_batches(folder: Path) -> None:
    """CIFAR-100 and STL-10 have checksums: a changed file is downloaded again, which cannot be here."""
    with mock.patch("urllib.request.urlopen", side_effect=OSError("no network")):
        for name in ("cifar100", "stl10"):
            with contextlib.suppress(hkd.RequestError):
                looked_at(name, "train", folder)


def good_batches(folder: Path) -> list[Files]:
    names = ["cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"]
    names += ["stl10_binary/train_X.bin", "stl10_binary/train_y.bin", "stl10_binary/class_names.txt"]
    return [
        dict.fromkeys(names, b"\x80\x04}q\x00."),
        {"cifar-100-python.tar.gz": b"\x1f\x8b", "stl10_binary.tar.gz": b""},
    ]


# -- requests ---------------------------------------------------------------------------------------------------------


def asked(argv: list[str]) -> None:
    """Parses a command line; nothing is done."""
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        assert main([argv[0], "--print-config", "--debug", *argv[1:]]) == 0


def read_request(folder: Path) -> None:
    """A line is a word."""
    asked((folder / "argv.words").read_text(errors="surrogateescape").split("\n"))


def good_request(folder: Path) -> list[Files]:
    sets = []
    for command, config in CONFIGS.items():
        flags = [f"--{option.name.replace('_', '-')}" for option in options(config)]
        words = [f"{flag}={_plain(default_of(o))}" for flag, o in zip(flags, options(config), strict=True)]
        sets.append({"argv.words": "\n".join([command, *words]).encode()})
    return sets


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def change_request(files: Files, choice: random.Random) -> Files:
    """Some of the options, with values of other options or nasty ones, and words out of place."""
    command, *words = files["argv.words"].decode().split("\n")
    words = choice.sample(words, choice.randint(1, min(4, len(words))))
    for index, word in enumerate(words):
        flag, _, value = word.partition("=")
        kind = choice.random()
        if kind < 0.6:
            value = re.sub(r"\n", " ", str(choice.choice(NASTY)))[: choice.choice((20, 10**5))]
        elif kind < 0.7:
            value = f"{value},{value}={value}({value}"
        words[index] = choice.choice(
            (f"{flag}={value}", f"{flag}={value}", flag, value, f"{flag}.{value}={value}", "--")
        )
    words = [word for word in words if not word.startswith(("--plugin", "--debug"))]
    return {"argv.words": "\n".join([command, *words]).encode(errors="replace")}


def read_mapping(folder: Path) -> None:
    for command in CONFIGS:
        with contextlib.suppress(hkd.RequestError):
            asked([command, "--config", str(folder / "config.yaml")])


def good_mapping(folder: Path) -> list[Files]:
    sets = []
    for config in CONFIGS.values():
        values = {entry.name: default_of(entry) for entry in options(config)}
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        sets.append({"config.yaml": yaml.safe_dump({n: v for n, v in values.items() if v is not None}).encode()})
    return sets


TARGETS = {
    "weights": Target(read_weights, good_weights), "pickle": Target(read_pickle, good_pickle),
    "run": Target(read_run, good_run), "report": Target(read_report, good_report),
    "checkpoint": Target(read_checkpoint, good_checkpoint), "yaml": Target(read_yaml_file, good_yaml),
    "study": Target(read_study, good_study), "image cache": Target(read_image_cache, good_image_cache),
    "teacher table": Target(read_table, good_table), "archive": Target(read_archive, good_archive),
    "folder": Target(read_folder, good_folder), "tiny-imagenet": Target(read_tiny, good_tiny),
    "cifar and stl": Target(read_batches, good_batches), "options in yaml": Target(read_mapping, good_mapping),
    "command line": Target(read_request, good_request, change_request),
}  # fmt: skip

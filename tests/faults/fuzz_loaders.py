"""Throws bytes at what reads files from outside; only a RequestError of one line may come back.

    python -m tests.faults.fuzz_loaders [TARGET | all | each] [-max_total_time=60]

``all``, which is the default, lets the first byte of an input choose among the targets, in one process. ``each`` runs
one target after the other in a process of its own, and shares the time among them.
"""

import io
import json
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hkd.data", "hkd.files", "hkd.models", "hkd.outside", "PIL", "yaml"]):
    import safetensors.torch
    import torch
    from torch import nn

    import hkd
    from hkd.data import DatasetInfo, FileDataset
    from hkd.data.decode import _read_cache, _write_cache
    from hkd.data.files import Files
    from hkd.files import read_json, read_yaml
    from hkd.models import model_of_file
    from hkd.models.about import FIELDS
    from hkd.models.weights import read_about

from tests.data.test_datasets import class_folders, encoded, picture
from tests.models.test_about import GOOD

FOLDER = Path(tempfile.mkdtemp())
MODEL = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


class One(Files):
    """A folder of one file."""

    path, names, fingerprint = Path("folder"), ["image.png"], ""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, name: str) -> bytes:
        return self.data

    def size(self, name: str) -> int:
        return len(self.data)

    def empty_folders(self, folder: str = "") -> list[str]:
        return []


def written(data: bytes, name: str) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


def archive(data: bytes) -> None:
    dataset = hkd.load_dataset(f"folder:{written(data, 'photos.zip')}", image_size=8)
    for index in range(min(len(dataset), 4)):
        assert dataset[index][0].shape == (3, 8, 8)


def image(data: bytes) -> None:
    dataset = FileDataset(One(data), One.names, torch.tensor([0]), DatasetInfo("fuzz", ("a", "b"), image_size=8))
    assert dataset[0][0].shape == (3, 8, 8)


def about(data: bytes) -> None:
    """The JSON text beside the weights."""
    file = FOLDER / "about.safetensors"
    text = data.decode("latin-1")
    header = json.dumps({"__metadata__": {"hkd": text}}).encode()
    values = read_about(written(struct.pack("<Q", len(header)) + header, file.name))
    assert set(values) <= set(FIELDS)
    model_of_file(values, file)


def header(data: bytes) -> None:
    file = written(data, "weights.safetensors")
    read_about(file)
    hkd.load_checkpoint(MODEL, file)


def pickle(data: bytes) -> None:
    hkd.load_checkpoint(MODEL, written(data, "weights.pt"))


def cache(data: bytes) -> None:
    with redirect_stderr(io.StringIO()):
        images = _read_cache(written(data, "cache.safetensors"), 2, 2)
    assert images is None or images.shape == (2, 3, 2, 2)


def yaml(data: bytes) -> None:
    values = read_yaml(written(data, "config.yaml"))
    assert all(isinstance(name, str) for name in values)


def json_file(data: bytes) -> None:
    assert isinstance(read_json(written(data, "summary.json")), dict)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "archive": archive, "image": image, "about": about, "header": header, "pickle": pickle, "cache": cache,
    "yaml": yaml, "json": json_file,
}  # fmt: skip


def called(target: Callable[[bytes], None], data: bytes) -> None:
    try:
        target(data)
    except hkd.RequestError as error:
        text = str(error)
        if not text.isprintable() or len(text) > 1000:
            raise AssertionError(f"more than one short line: {text!r}") from error


def chosen(data: bytes) -> None:
    if data:
        called(list(TARGETS.values())[data[0] % len(TARGETS)], data[1:])


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return buffer.getvalue()


def good_files() -> dict[str, list[bytes]]:
    """What each target reads without an error, to be changed."""
    safetensors.torch.save_file(MODEL.state_dict(), FOLDER / "s", metadata={"hkd": json.dumps(GOOD)})
    saved = []
    for new in (True, False):
        torch.save({"model": MODEL.state_dict(), "epoch": 3}, FOLDER / "t", _use_new_zipfile_serialization=new)
        saved.append((FOLDER / "t").read_bytes())
    _write_cache(FOLDER / "c.safetensors", torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2))
    pictures = [encoded(picture((5, 4), 1), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF")]
    modes = [encoded(picture((5, 4), 1).convert(mode), "TIFF") for mode in ("CMYK", "LA", "I;16", "1", "P")]
    config = {"format": 2, "student": "resnet8", "mean": [0.1, 0.2, 0.3], "plugins": ["a"], "lr": 1e-3, "flip": None}
    flow = json.dumps(config).encode()
    block = "".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items()).encode()
    return {
        "archive": [zipped(class_folders((4, 4), train=1, val=1))],
        "image": pictures + modes,
        "about": [json.dumps(GOOD).encode()],
        "header": [(FOLDER / "s").read_bytes()],
        "pickle": saved,
        "cache": [(FOLDER / "c.safetensors").read_bytes()],
        "yaml": [block, flow, b"a: &x [1, 2]\nb: *x\nc: !!binary aGs=\nd: 2026-01-01\n<<: {e: 1_0}\n"],
        "json": [flow],
    }


def corpus(target: str) -> Path:
    """A folder of good files."""
    folder = FOLDER / "corpus"
    folder.mkdir()
    for number, (name, files) in enumerate(good_files().items()):
        for index, data in enumerate(files if target in (name, "all") else []):
            (folder / f"{name}{index}").write_bytes(bytes([number]) * (target == "all") + data)
    return folder


def each(options: list[str]) -> int:
    """Every target in a process of its own. Returns how many failed."""
    seconds = next((int(one.split("=")[1]) for one in options if one.startswith("-max_total_time=")), 600)
    options = [one for one in options if not one.startswith("-max_total_time=")]
    failed = []
    for name in TARGETS:
        command = [sys.executable, "-m", __spec__.name, name, f"-max_total_time={max(1, seconds // len(TARGETS))}"]
        if subprocess.run([*command, *options], check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else f"{len(TARGETS)} targets, nothing found", flush=True)
    return len(failed)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    named = sys.argv[1] if sys.argv[1:] and not sys.argv[1].startswith("-") else "all"
    rest = [one for one in sys.argv[1:] if one != named]
    if named == "each":
        sys.exit(min(each(rest), 1))
    words = [*FIELDS, "__metadata__", "dtype", "shape", "data_offsets", "U8", "F32", "images", "sha256", "hkd"]
    dictionary = written("".join(f'"\\"{word}\\""\n' for word in words).encode(), "words")
    target = chosen if named == "all" else lambda data: called(TARGETS[named], data)
    limits = ["-rss_limit_mb=4096", "-timeout=20", f"-dict={dictionary}"]
    atheris.Setup([sys.argv[0], *limits, *rest, str(corpus(named))], target)
    atheris.Fuzz()

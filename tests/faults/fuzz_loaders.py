"""Throws bytes at what reads files from outside; only a RequestError may come back.

python -m tests.faults.fuzz_loaders [-max_total_time=60]
"""

import io
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hkd.data.files", "hkd.data.base", "hkd.data.folder", "hkd.models.weights"]):
    import hkd
    from hkd.models.weights import read_about

from tests.data.test_datasets import class_folders

warnings.simplefilter("ignore")
FOLDER = Path(tempfile.mkdtemp())
MODEL = hkd.create_model("resnet8", 10)
READERS = ("archive", "picture", "safetensors", "torch")


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def read(kind: str, data: bytes) -> None:
    if kind in ("archive", "picture"):
        path = FOLDER / "photos.zip"
        path.write_bytes(data if kind == "archive" else zipped(class_folders() | {"train/cat/0.png": data}))
        dataset = hkd.load_dataset(f"folder:{path}", image_size=8)
        for index in range(min(len(dataset), 4)):
            assert dataset[index][0].shape == (3, 8, 8)
    else:
        path = FOLDER / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
        path.write_bytes(data)
        read_about(path)
        hkd.load_checkpoint(MODEL, path)


def one(data: bytes) -> None:
    if data:
        try:
            read(READERS[data[0] % len(READERS)], data[1:])
        except hkd.RequestError as error:
            if "\n" in str(error):
                raise AssertionError("more than one line") from error


def seeds(folder: Path) -> None:
    """Good files, which are then changed."""
    folder.mkdir()
    hkd.save_model(MODEL, FOLDER / "seed.safetensors")
    for number, data in enumerate(
        (zipped(class_folders()), class_folders()["train/cat/0.png"], (FOLDER / "seed.safetensors").read_bytes())
    ):
        (folder / str(number)).write_bytes(bytes([number]) + data)


if __name__ == "__main__":
    corpus = FOLDER / "corpus"
    seeds(corpus)
    atheris.Setup([sys.argv[0], *sys.argv[1:], "-rss_limit_mb=4096", str(corpus)], one)
    atheris.Fuzz()

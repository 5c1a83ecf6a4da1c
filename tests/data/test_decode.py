"""Small data sets in memory, and decoded on disk."""

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
import torch

import hkd
from hkd.data import FileDataset, prepare
from tests.data.test_datasets import class_folders, encoded, picture, write_files


def test_a_decoded_folder_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_files(tmp_path / "photos", class_folders())
    first = prepare(hkd.load_dataset(f"folder:{path}"), tmp_path / "cache")
    monkeypatch.setattr(FileDataset, "image", None)  # the second start decodes nothing
    second = prepare(hkd.load_dataset(f"folder:{path}"), tmp_path / "cache")
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)


def test_a_changed_folder_is_decoded_again(tmp_path: Path) -> None:
    path = write_files(tmp_path / "photos", class_folders())
    before = prepare(hkd.load_dataset(f"folder:{path}"), tmp_path / "cache").images
    write_files(path, {"train/cat/0.png": encoded(picture((12, 12), 999))})
    after = prepare(hkd.load_dataset(f"folder:{path}"), tmp_path / "cache").images
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1:], after[1:])


def test_a_broken_cache_is_made_again(tmp_path: Path) -> None:
    path = write_files(tmp_path / "photos", class_folders())
    before = prepare(hkd.load_dataset(f"folder:{path}"), tmp_path / "cache").images
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(prepare(hkd.load_dataset(f"folder:{path}"), tmp_path / "cache").images, before)


def test_decoded_images_that_changed_on_disk_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_files(tmp_path / "photos", class_folders())
    before = prepare(hkd.load_dataset(f"folder:{path}"), tmp_path / "cache").images
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # still a readable file, but for one pixel
    assert torch.equal(prepare(hkd.load_dataset(f"folder:{path}"), tmp_path / "cache").images, before)
    assert "is damaged; the images are decoded again" in capsys.readouterr().err
    assert file.read_bytes() == content, "it has been made again"
    assert [*(tmp_path / "cache").iterdir()] == [file]


def forged(path: Path, header: object, pixels: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + pixels)


SIZE = 12 * 3 * 12 * 12
PIXELS = bytes(SIZE)
META = {"__metadata__": {"sha256": hashlib.sha256(PIXELS).hexdigest()}}
IMAGES = {"dtype": "U8", "shape": [12, 3, 12, 12], "data_offsets": [0, SIZE]}


@pytest.mark.parametrize(
    ("header", "pixels"),
    [
        (META, b""), ({"images": IMAGES}, PIXELS), (META | {"images": IMAGES}, PIXELS[:-1]),
        (META | {"images": IMAGES | {"dtype": "F32"}}, PIXELS * 4),
        (META | {"images": IMAGES | {"dtype": "I8"}}, PIXELS),
        (META | {"images": IMAGES | {"shape": [SIZE]}}, PIXELS), (META | {"images": IMAGES | {"shape": []}}, PIXELS),
        (META | {"images": IMAGES | {"shape": [13, 3, 12, 12]}}, PIXELS),
        (META | {"images": IMAGES, "more": IMAGES}, PIXELS),
        (META | {"images": IMAGES | {"data_offsets": [SIZE, 0]}}, PIXELS), (META | {"images": 3}, PIXELS),
        ({"__metadata__": {"sha256": None}, "images": IMAGES}, PIXELS), ({"__metadata__": 3, "images": IMAGES}, PIXELS),
        ({"__metadata__": {"sha256": ["x"]}, "images": IMAGES}, PIXELS), ([], PIXELS), (b"[" * 10**5, PIXELS),
        (b"\xff", PIXELS), (b"", b""),
    ],
)  # fmt: skip
def test_a_forged_cache_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], header: object, pixels: bytes
) -> None:
    path = write_files(tmp_path / "photos", class_folders())
    before = prepare(hkd.load_dataset(f"folder:{path}"), tmp_path / "cache").images
    (file,) = (tmp_path / "cache").iterdir()
    forged(file, header, pixels)
    assert torch.equal(prepare(hkd.load_dataset(f"folder:{path}"), tmp_path / "cache").images, before)
    assert capsys.readouterr().err == f"warning: {file} is damaged; the images are decoded again\n"


def test_what_a_forged_cache_would_have_to_say(tmp_path: Path) -> None:
    """The tests above change one thing in a file that is read."""
    path = write_files(tmp_path / "photos", class_folders())
    prepare(hkd.load_dataset(f"folder:{path}"), tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    forged(file, META | {"images": IMAGES}, PIXELS)
    assert not prepare(hkd.load_dataset(f"folder:{path}"), tmp_path / "cache").images.any()


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "folder", "huge"])
def test_a_cache_is_a_regular_file_of_its_size(tmp_path: Path, kind: str) -> None:
    path = write_files(tmp_path / "photos", class_folders())
    before = prepare(hkd.load_dataset(f"folder:{path}"), tmp_path / "cache").images
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    if kind == "huge":
        with file.open("r+b") as sparse:
            sparse.truncate(2**40)
    else:
        file.unlink()
        other = tmp_path / "other.safetensors"
        if kind == "link":
            forged(other, META | {"images": IMAGES}, PIXELS)
        if kind in ("link", "dangling"):
            file.symlink_to(other)
        elif kind == "fifo":
            os.mkfifo(file)
        else:
            file.mkdir()
    assert torch.equal(prepare(hkd.load_dataset(f"folder:{path}"), tmp_path / "cache").images, before)
    if kind != "folder":
        assert not file.is_symlink() and file.read_bytes() == content, "replaced, and not written through a link"


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    path = write_files(tmp_path / "photos", class_folders())
    (tmp_path / "file").write_bytes(b"")
    assert len(prepare(hkd.load_dataset(f"folder:{path}"), tmp_path / "file" / "cache")) == 12


def test_unreadable_images_are_skipped_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = {"train/cat/1.png": b"no image", "train/eel/3.png": b"no image"}
    data = hkd.load_dataset(f"folder:{write_files(tmp_path / 'photos', class_folders() | bad)}")
    with pytest.raises(hkd.RequestError) as error:
        prepare(data, tmp_path / "cache")
    assert str(error.value) == (
        f"dataset: 2 of 12 images taken from {tmp_path / 'photos'} cannot be read: train/cat/1.png, train/eel/3.png; "
        "fix or remove them, or skip them with --bad-images skip"
    )
    readable = prepare(data, tmp_path / "cache", workers=2, bad_images="skip")
    assert "warning: skipped, 2 of 12 images taken from" in capsys.readouterr().err
    assert readable.positions.tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert readable.labels.tolist() == [0] * 3 + [1] * 4 + [2] * 3
    assert torch.equal(readable[1][0], data[2][0])
    assert not (tmp_path / "cache").exists(), "only whole data sets are kept"

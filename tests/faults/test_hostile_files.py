"""Files from outside that mean harm."""

import io
import os
import pickle
import resource
import stat
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

import hkd
from hkd.data.files import LARGEST_FILE, Archive
from tests.data.test_datasets import class_folders, write_files, zipped


class Harmful:
    def __reduce__(self) -> tuple:
        return os.system, ("touch harm-was-done",)


@pytest.mark.parametrize("form", ["pickle", "torch", "zip-in-a-state-dict"])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights.pt"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Harmful()))
    else:
        torch.save(Harmful() if form == "torch" else {"model": {"conv1.weight": Harmful()}}, file)
    model = hkd.create_model("resnet8", 10)
    with pytest.raises(hkd.RequestError, match="holds more than weights and is not loaded|truncated or corrupt"):
        hkd.load_checkpoint(model, file)
    assert not (tmp_path / "harm-was-done").exists()


def test_a_run_folder_s_checkpoint_is_no_way_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = hkd.TrainConfig(run="run", epochs=1, limit_train=4, device="cpu", tensorboard=False, keep_checkpoints=True)
    hkd.train(asked)
    for name in ("last.pt", "previous.pt"):
        torch.save(Harmful(), tmp_path / "run" / "checkpoints" / name)
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(hkd.RequestError, match="is corrupt"):
        hkd.train(asked)
    assert not (tmp_path / "harm-was-done").exists()


@pytest.mark.parametrize(
    "name", ["../../evil.png", "train/../../evil.png", "/etc/evil.png", "C:/evil.png", "..\\evil.png"]
)
def test_an_entry_outside_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "photos.zip", class_folders())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"evil")
    with pytest.raises(hkd.RequestError, match="has an entry outside itself, .*evil.png"):
        hkd.load_dataset(f"folder:{path}")
    assert not list(tmp_path.rglob("evil.png"))


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "photos.zip", class_folders())
    link = zipfile.ZipInfo("train/cat/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(hkd.RequestError, match="has a link, 'train/cat/link.png'"):
        hkd.load_dataset(f"folder:{path}")


def test_a_bomb_of_ten_gigabytes_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "photos.zip", class_folders())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train/cat/bomb.png", b"")
        archive.getinfo("train/cat/bomb.png").file_size = 10 * 2**30  # what the table of contents will say
    with pytest.raises(hkd.RequestError, match=r"has a file of 10\.7 GB, 'train/cat/bomb.png'"):
        hkd.load_dataset(f"folder:{path}")


def test_an_entry_that_lies_about_its_size_is_cut(tmp_path: Path) -> None:
    """An archive says 100 bytes and holds a gigabyte: no more than it says is unpacked."""
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in class_folders().items():
            archive.writestr(name, data)
        with archive.open("train/cat/liar.png", "w") as file:
            for _ in range(64):
                file.write(bytes(2**24))
        archive.getinfo("train/cat/liar.png").file_size = 100
    files = Archive(path)
    assert files.size("train/cat/liar.png") == 100
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(hkd.RequestError, match="cannot read train/cat/liar.png"):
        files.read("train/cat/liar.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024, "kB"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_without_a_limit_are_refused(tmp_path: Path, method: int) -> None:
    path = zipped(tmp_path / "photos.zip", class_folders())
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr("train/cat/odd.png", bytes(1000))
    with pytest.raises(hkd.RequestError, match="has an unusual compression"):
        hkd.load_dataset(f"folder:{path}")


@pytest.mark.parametrize(
    "name", ["train/cat/\x1b[2J\n.png", "train/c\x1b[2Jat/0.png", "train/cat/" + "x" * 60_000 + ".png"]
)
def test_names_in_an_archive_are_escaped_and_shortened(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "photos.zip", class_folders() | {name: b"no image"})
    with pytest.raises(hkd.RequestError, match="^dataset: ") as error:
        hkd.data.prepare(hkd.load_dataset(f"folder:{path}", image_size=8))
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_an_archive_of_odd_entries_is_one_line(tmp_path: Path) -> None:
    """Entries without a name, of bytes that are no text, and with a password."""
    good = zipped(tmp_path / "good.zip", class_folders()).read_bytes()
    place = good.rindex(b"train/cat/0.png")  # in the table of contents
    entry = good.rindex(b"PK\x01\x02", 0, place)
    nameless = bytearray(good)
    nameless[place] = 0  # Python cuts a name at its first zero byte
    wrong_text = bytearray(good)
    wrong_text[entry + 9] |= 8  # "this name is UTF-8"
    wrong_text[place] = 0xFF
    for data in (nameless, wrong_text):
        (tmp_path / "odd.zip").write_bytes(data)
        with pytest.raises(hkd.RequestError, match=r"^dataset: \S+odd.zip is not a readable zip archive") as error:
            hkd.load_dataset(f"folder:{tmp_path / 'odd.zip'}")
        assert str(error.value).isprintable()
    locked = bytearray(good)
    locked[entry + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(hkd.RequestError, match="cannot read train/cat/0.png .*encrypted"):
        hkd.load_dataset(f"folder:{tmp_path / 'locked.zip'}", image_size=8)[0]


def test_an_image_that_is_listed_twice_is_one_image(tmp_path: Path) -> None:
    path = zipped(tmp_path / "photos.zip", class_folders())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("train/cat/0.png", class_folders()["train/cat/1.png"])
    assert len(hkd.load_dataset(f"folder:{path}")) == 12


def test_an_archive_that_changes_while_it_is_read_is_one_line(tmp_path: Path) -> None:
    data = hkd.load_dataset(f"folder:{zipped(tmp_path / 'photos.zip', class_folders())}", image_size=8)
    data.files._archive = None
    (tmp_path / "photos.zip").write_bytes(b"")
    with pytest.raises(hkd.RequestError, match="cannot read train/cat/0.png"):
        data[0]


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path) -> None:
    """30000 x 30000 in a few kilobytes would take 2.7 GB in memory."""
    raw = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(raw, "PNG")
    files = class_folders() | {"train/cat/0.png": raw.getvalue()}
    path = zipped(tmp_path / "photos.zip", files)
    with pytest.raises(hkd.RequestError, match="exceeds limit of .* pixels|decompression bomb"):
        hkd.load_dataset(f"folder:{path}", image_size=32)[0]


def test_a_huge_file_in_a_folder_is_not_read(tmp_path: Path) -> None:
    root = write_files(tmp_path / "photos", class_folders())
    with (root / "train" / "cat" / "0.png").open("wb") as file:
        file.truncate(LARGEST_FILE + 1)  # a sparse file takes no room
    with pytest.raises(hkd.RequestError, match=r"larger than 256 MiB"):
        hkd.load_dataset(f"folder:{root}", image_size=32)[0]


def test_downloads_are_encrypted_and_checked() -> None:
    import inspect

    import torchvision.datasets as known

    from hkd.data import stl10, tiny_imagenet

    assert tiny_imagenet.URL.startswith("https://") and len(tiny_imagenet.MD5) == 32
    assert known.CIFAR100.url.startswith("https://") and len(known.CIFAR100.tgz_md5) == 32
    assert 'replace("http://", "https://")' in inspect.getsource(stl10) and len(known.STL10.tgz_md5) == 32

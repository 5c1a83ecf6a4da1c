"""Folders that are made to hang, to count twice, or to lead elsewhere."""

import os
from pathlib import Path

import pytest

import hkd
from hkd.data import open_data
from hkd.data.files import Folder, open_files
from hkd.data.spec import DataSpec
from tests.data.test_datasets import class_folders, encoded, picture, write_files, zipped

ODD = b"caf\xe9.png"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_files(tmp_path / "photos", class_folders())


def test_a_folder_that_links_to_itself_is_visited_once(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, target in (
        ("train/cat/again", "."),
        ("train/all", ".."),
        ("up", "../photos"),
        ("val/eel/x", "../../.."),
    ):
        (photos / place).symlink_to(target, target_is_directory=True)
    train, val = (hkd.load_dataset(f"folder:{photos}", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (12, 6)
    assert train.info.classes == ("cat", "dog", "eel")
    assert "that a link leads to a second time: 4\n" in capsys.readouterr().err


def test_many_links_between_folders_do_not_multiply(tmp_path: Path) -> None:
    """Twelve folders that link to each other: 12! paths for a walk that only looks out for circles."""
    for n in range(12):
        (tmp_path / f"{n}").mkdir()
        for other in range(12):
            (tmp_path / f"{n}" / f"to{other}").symlink_to(f"../{other}", target_is_directory=True)
    write_files(tmp_path, class_folders())
    assert len(hkd.load_dataset(f"folder:{tmp_path}")) == 12


def test_a_link_does_not_take_the_place_of_the_folder_itself(photos: Path) -> None:
    """``a`` comes before ``train`` and leads to it."""
    (photos / "a").symlink_to("train", target_is_directory=True)
    (photos / "train" / "aaa").symlink_to("cat", target_is_directory=True)
    data = hkd.load_dataset(f"folder:{photos}")
    assert len(data) == 12 and data.info.classes == ("cat", "dog", "eel")


def test_linked_folders_and_files_are_followed(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "links" / "val").mkdir(parents=True)
    (tmp_path / "links" / "train").symlink_to(photos / "train")
    for name in ("cat", "dog", "eel"):
        (tmp_path / "links" / "val" / name).mkdir()
        (tmp_path / "links" / "val" / name / "0.jpg").symlink_to(photos / "val" / name / "0.jpg")
    assert [len(hkd.load_dataset(f"folder:{tmp_path / 'links'}", split)) for split in ("train", "val")] == [12, 3]


def test_pipes_and_devices_are_skipped(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(photos / "train" / "cat" / "pipe.png")
    os.mknod(photos / "train" / "cat" / "socket.png", 0o140600)
    (photos / "train" / "cat" / "zero.png").symlink_to("/dev/zero")
    assert len(hkd.load_dataset(f"folder:{photos}")) == 12
    hkd.load_dataset(f"folder:{photos}", "val")
    warning = f"warning: skipped files or folders in {photos} that are not regular files: 3\n"
    assert capsys.readouterr().err == warning, "one line, once"


def test_a_file_that_becomes_a_pipe_is_not_waited_for(photos: Path) -> None:
    data = hkd.load_dataset(f"folder:{photos}")
    (photos / "train" / "cat" / "0.png").unlink()
    os.mkfifo(photos / "train" / "cat" / "0.png")
    with pytest.raises(hkd.RequestError, match="0.png is not a regular file"):
        data[0]


@pytest.mark.parametrize("place", ["/proc", "/proc/self", "/sys", "/dev", "/dev/../proc/self/fd"])
def test_the_system_s_folders_are_refused(tmp_path: Path, photos: Path, place: str) -> None:
    with pytest.raises(hkd.RequestError, match=f"^dataset: {place} leads to files of the operating system"):
        hkd.load_dataset(f"folder:{place}")
    (photos / "train" / "cat" / "more").symlink_to(place)
    with pytest.raises(hkd.RequestError, match="train/cat/more leads to files of the operating system"):
        hkd.load_dataset(f"folder:{photos}")


def test_a_link_to_a_file_of_the_system_is_refused(photos: Path) -> None:
    (photos / "train" / "cat" / "0.png").unlink()
    (photos / "train" / "cat" / "0.png").symlink_to("/proc/self/environ")
    with pytest.raises(hkd.RequestError, match="train/cat/0.png leads to files of the operating system"):
        hkd.load_dataset(f"folder:{photos}")
    with pytest.raises(hkd.RequestError, match="is not a regular file"):
        open_files(Path("/proc/self/environ"))


def test_names_that_are_not_utf_8_are_counted(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (b"train/cat/", b"train/dog/", b"train/"):
        Path(os.fsdecode(os.fsencode(photos) + b"/" + folder + ODD)).write_bytes(encoded(picture((9, 9), 1)))
    os.mkdir(os.fsencode(photos) + b"/train/" + b"\xff\xfe")
    data = open_data(DataSpec(dataset=f"folder:{photos}"))
    assert len(data.train) == 12 and len(data.digest) == 16
    err = capsys.readouterr().err
    assert err == f"warning: skipped files or folders in {photos} whose names are not UTF-8: 4\n"


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_images_outside_class_folders_are_counted(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = encoded(picture((12, 12), 1))
    stray = ("train/a.png", "a.png", "more/b.png", "val/a.png", "val/b.png", "train/.cache/a.png", "__MACOSX/x/a.png")
    files = class_folders() | dict.fromkeys(stray, image) | {"readme.txt": b""}
    place = tmp_path / "photos"
    path = write_files(place, files) if form == "folder" else zipped(tmp_path / "photos.zip", files)
    assert len(hkd.load_dataset(f"folder:{path}")) == 12
    first = f"warning: skipped images in {path} that lie outside the class folders: 3, first a.png\n"
    assert capsys.readouterr().err == first
    assert len(hkd.load_dataset(f"folder:{path}", "val")) == 6
    assert capsys.readouterr().err == first.replace(": 3, first a", ": 2, first val/a")


def test_images_beside_bare_class_folders_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {n.removeprefix("train/"): c for n, c in class_folders(val=0).items()}
    write_files(tmp_path / "photos", files | {"x.png": files["cat/0.png"]})
    assert len(hkd.load_dataset(f"folder:{tmp_path / 'photos'}")) == 12
    assert "class folders: 1, first x.png" in capsys.readouterr().err


def test_too_many_files_are_refused(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hkd.data.walk.MOST_FILES", 17)
    with pytest.raises(hkd.RequestError, match="has more than 17 files or folders"):
        hkd.load_dataset(f"folder:{photos}")
    monkeypatch.setattr("hkd.data.files.MOST_FILES", 17)
    with pytest.raises(hkd.RequestError, match="has more than 17 files"):
        hkd.load_dataset(f"folder:{zipped(photos / 'p.zip', class_folders())}")


def test_only_files_below_the_folder_are_read(photos: Path) -> None:
    files = Folder(photos)
    (photos.parent / "secret.png").write_bytes(b"secret")
    for name in ("../secret.png", str(photos.parent / "secret.png"), "train/../../secret.png", "nothing.png"):
        with pytest.raises(hkd.RequestError, match="no file"):
            files.read(name)
        assert files.size(name) == 0


def test_names_are_escaped_where_they_are_printed(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "train" / "cat" / "\x1b[2J\n0.png").write_bytes(b"no image")
    (photos / "train" / "\x1b[2J.png").write_bytes(b"")
    data = hkd.load_dataset(f"folder:{photos}", image_size=8)
    with pytest.raises(hkd.RequestError) as error:
        data[0]
    assert str(error.value).isprintable()
    with pytest.raises(hkd.RequestError) as error:
        hkd.data.prepare(data)
    assert str(error.value).isprintable()
    assert capsys.readouterr().err.replace("\n", "").isprintable()


def test_classes_with_control_characters_are_refused(photos: Path) -> None:
    for split in ("train", "val"):
        (photos / split / "cat").rename(photos / split / "c\x1bat\n")
    with pytest.raises(hkd.RequestError, match=r"class folders without control characters in .*'c\\x1bat\\n'") as error:
        hkd.load_dataset(f"folder:{photos}")
    assert str(error.value).isprintable()

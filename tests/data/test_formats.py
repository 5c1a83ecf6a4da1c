"""Which files are images, and what is said of the others."""

import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import features

import hkd
from hkd.data import formats
from hkd.data.formats import FORMATS, described, readable_formats, readable_suffixes
from tests.data.test_datasets import class_folders, encoded, picture, write_files


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installation without further readers."""
    monkeypatch.setattr(formats, "_has_heif", lambda: False)
    monkeypatch.setattr(formats, "_has_avif", lambda: False)
    for cached in (readable_formats, readable_suffixes):
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in (readable_formats, readable_suffixes):
        cached.cache_clear()


@pytest.mark.usefixtures("plain")
def test_pictures_that_are_not_read_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("train/cat/a.HEIC", "train/dog/b.heic", "train/cat/c.avif", "train/cat/d.gif", "train/cat/e.txt")
    hidden = ("train/.cache/f.heic", "g.heic", "val/cat/h.heif")
    path = write_files(tmp_path / "photos", class_folders() | dict.fromkeys((*more, *hidden), b""))
    assert len(hkd.load_dataset(f"folder:{path}")) == 12
    assert capsys.readouterr().err == (
        f"warning: left out of {path}/train: 1 .avif (pip install 'hkd[heif]' reads them), "
        "1 .gif (save them as PNG or JPEG), 2 .heic (pip install 'hkd[heif]' reads them)\n"
    )
    hkd.load_dataset(f"folder:{path}", "val")
    assert capsys.readouterr().err == f"warning: left out of {path}/val: 1 .heif (pip install 'hkd[heif]' reads them)\n"
    assert readable_formats() == FORMATS


@pytest.mark.usefixtures("plain")
def test_a_class_of_pictures_that_are_not_read(tmp_path: Path) -> None:
    bare = {"cat/0.png": encoded(picture((12, 12), 0)), "dog/0.heic": b"", "dog/1.heic": b"", "dog/2.txt": b""}
    path = write_files(tmp_path / "photos", bare)
    with pytest.raises(hkd.RequestError, match=r"class 'dog' has no images in .*; it has 2 .heic \(pip install 'hkd"):
        hkd.load_dataset(f"folder:{path}")
    (tmp_path / "photos.csv").write_text("path,label\nphotos/dog/0.heic,dog\n")
    with pytest.raises(
        hkd.RequestError, match=r"line 2: expected an image .*; got photos/dog/0.heic; pip install 'hkd"
    ):
        hkd.load_dataset(f"csv:{tmp_path / 'photos.csv'}")


def test_what_is_read_is_not_told() -> None:
    assert described(["a.jpg", "b.txt", "c"]) == ""
    for suffix in formats.HEIF | formats.AVIF:
        assert (described([f"a{suffix}"]) == "") is (suffix in readable_suffixes())


@pytest.mark.skipif("avif" not in features.modules or not features.check_module("avif"), reason="Pillow without AVIF")
def test_avif_is_read_where_pillow_reads_it(tmp_path: Path) -> None:
    """AVIF loses details, so that pixels are compared with what Pillow itself decodes."""
    data = encoded(picture((16, 16), 1), "AVIF")
    path = write_files(tmp_path, class_folders((16, 16)) | {"train/cat/z.avif": data})
    train = hkd.load_dataset(f"folder:{path}")
    assert isinstance(train, hkd.data.FileDataset) and train.names[4] == "train/cat/z.avif"
    assert torch.equal(train[4][0], hkd.data.images.to_tensor(hkd.data.images.open_image(data)))


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="needs hkd[heif]")
def test_heic_is_read_where_its_reader_is_installed(tmp_path: Path) -> None:
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(picture((64, 48), 1)).save(buffer, quality=-1, matrix_coefficients=0, chroma=444)
    path = write_files(tmp_path, class_folders((64, 48)) | {"train/cat/z.HEIC": buffer.getvalue()})
    train = hkd.load_dataset(f"folder:{path}")
    image = train[4][0]
    assert isinstance(train, hkd.data.FileDataset) and train.names[4] == "train/cat/z.HEIC"
    assert image.shape == (3, 48, 64)
    expected = hkd.data.images.to_tensor(picture((64, 48), 1))
    assert (image.float() - expected).abs().mean() < 2

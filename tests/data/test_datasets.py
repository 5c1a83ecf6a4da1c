"""Each data set on small files in its exact official format."""

import hashlib
import io
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import hkd
from hkd.data import datasets, prepare
from hkd.data.files import Folder


def picture(size: tuple[int, int], seed: int, mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode)


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def zipped(path: Path, files: dict[str, bytes], top: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)
    return path


def class_folders(
    size: tuple[int, int] = (12, 12), train: int = 4, val: int = 2, evaluation: str = "val"
) -> dict[str, bytes]:
    files = {}
    for c, name in enumerate(("cat", "dog", "eel")):
        for i in range(train):
            files[f"train/{name}/{i}.png"] = encoded(picture(size, 100 * c + i))
        for i in range(val):
            files[f"{evaluation}/{name}/{i}.jpg"] = encoded(picture(size, 100 * c + 50 + i), "JPEG")
    return files


def test_digits() -> None:
    train, test = hkd.load_dataset("digits"), hkd.load_dataset("digits", split="val")
    assert len(train) + len(test) == 1797
    image, label, index = train[7]
    assert image.shape == (3, 8, 8) and image.dtype == torch.uint8
    assert (label, index) == (int(train.labels[7]), 7)
    assert train.info.num_classes == 10
    assert test.labels.bincount().min() >= 34, "every class is in the test split"
    scaled = train.images.double() / 255
    assert scaled.mean().item() == pytest.approx(train.info.mean[0], abs=1e-3)
    assert scaled.std().item() == pytest.approx(train.info.std[0], abs=1e-3)
    assert hkd.load_dataset("digits", image_size=32)[0][0].shape == (3, 32, 32)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_cifar100_from_its_official_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    data = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
    for name in ("train", "test"):
        (folder / name).write_bytes(
            pickle.dumps({"data": data, "fine_labels": [3, 1, 4, 1, 5, 99], "coarse_labels": [0] * 6})
        )
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"c{i}" for i in range(100)]}))
    CIFAR100 = torchvision.datasets.CIFAR100
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5(folder / "train")]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5(folder / "test")]])
    monkeypatch.setattr(CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": md5(folder / "meta")})
    for split in ("train", "test"):
        data_set = hkd.load_dataset("cifar100", split, tmp_path)
        assert data_set.labels.tolist() == [3, 1, 4, 1, 5, 99]
        assert data_set.info.num_classes == 100 and data_set.info.classes[99] == "c99"
        # A row of the file holds the red, green and blue planes one after another.
        assert torch.equal(data_set[2][0], torch.from_numpy(data[2]).view(3, 32, 32))


def test_stl10_from_its_official_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 96, 96), dtype=np.uint8)
    for name in ("train_X", "test_X", "unlabeled_X"):
        (folder / f"{name}.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())  # stored column by column
    for name in ("train_y", "test_y"):
        (folder / f"{name}.bin").write_bytes(bytes([1, 10, 2, 2]))
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck")
    (folder / "fold_indices.txt").write_text("0 1\n2 3\n")
    STL10 = torchvision.datasets.STL10
    monkeypatch.setattr(
        STL10, "train_list", [[f, md5(folder / f)] for f in ("train_X.bin", "train_y.bin", "unlabeled_X.bin")]
    )
    monkeypatch.setattr(STL10, "test_list", [[f, md5(folder / f)] for f in ("test_X.bin", "test_y.bin")])
    found = hkd.load_dataset("stl10", "train", tmp_path)
    assert found.labels.tolist() == [0, 9, 1, 1]
    assert torch.equal(found[1][0], torch.from_numpy(images[1]))
    assert found.info.classes[9] == "truck"
    unlabeled = hkd.load_dataset("stl10", "unlabeled", tmp_path, image_size=32)
    assert unlabeled.labels.tolist() == [-1] * 4
    assert unlabeled[0][0].shape == (3, 32, 32)


def tiny_files() -> dict[str, bytes]:
    files = {"wnids.txt": b"n02\nn01\n", "words.txt": b"n01\tcat, true cat\nn02\treel\nn03\tunused\n"}
    for wnid in ("n01", "n02"):
        for i in range(3):
            mode = "L" if i == 2 else "RGB"
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = encoded(picture((64, 64), i, mode), "JPEG")
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"x\t0\t0\t1\t1\n"
    rows = ["val_0.JPEG\tn01\t0\t0\t9\t9", "val_1.JPEG\tn02\t0\t0\t9\t9"]
    files["val/val_annotations.txt"] = ("\n".join(rows) + "\n").encode()
    for i in range(2):
        files[f"val/images/val_{i}.JPEG"] = encoded(picture((64, 64), i), "JPEG")
        files[f"test/images/test_{i}.JPEG"] = encoded(picture((64, 64), i), "JPEG")
    return files


@pytest.mark.parametrize("form", ["zip", "folder", "root"])
def test_tiny_imagenet_from_its_official_layout(tmp_path: Path, form: str) -> None:
    root = tmp_path
    if form == "zip":
        zipped(tmp_path / "tiny-imagenet-200.zip", tiny_files(), top="tiny-imagenet-200/")
    else:
        root = write_files(tmp_path / "tiny-imagenet-200", tiny_files())
        root = root if form == "root" else tmp_path
    train, val = (hkd.load_dataset("tiny-imagenet", split, root) for split in ("train", "test"))
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1], "labels follow wnids.txt"
    assert val.labels.tolist() == [1, 0], "validation labels come from val_annotations.txt"
    assert train.info.classes == ("reel", "cat")
    grey = train[2][0]
    assert grey.shape == (3, 64, 64) and torch.equal(grey[0], grey[1])
    assert hkd.load_dataset("tiny-imagenet", "val", root, image_size=32)[0][0].shape == (3, 32, 32)


@pytest.mark.parametrize(("split", "name"), [("train", "wnids.txt"), ("val", "val/val_annotations.txt")])
def test_a_name_that_tiny_imagenet_lists_twice_is_refused(tmp_path: Path, split: str, name: str) -> None:
    """Some kilobytes of repeated names would stand for any number of images."""
    files = tiny_files()
    root = write_files(tmp_path / "tiny", files | {name: files[name] * 2})
    with pytest.raises(hkd.RequestError, match=f"is listed twice in {Path(name).name} of "):
        hkd.load_dataset("tiny-imagenet", split, root)


def test_the_official_tiny_imagenet_sample() -> None:
    sample = Path(__file__).parents[2] / "data" / "tiny-imagenet-200-sample.zip"
    if not sample.is_file():
        pytest.skip("the TinyImageNet sample does not lie in data/")
    train, val = hkd.load_dataset("tiny-imagenet", "train", sample), hkd.load_dataset("tiny-imagenet", "val", sample)
    assert (len(train), len(val), train.info.num_classes) == (3000, 1000, 200)
    assert train.labels.bincount().tolist() == [15] * 200
    assert val.labels.bincount().tolist() == [5] * 200


@pytest.mark.parametrize("form", ["folder", "zip", "zip-with-top"])
@pytest.mark.parametrize("evaluation", ["val", "test"])
def test_class_folders(tmp_path: Path, form: str, evaluation: str) -> None:
    files = class_folders(evaluation=evaluation)
    if form == "folder":
        path = write_files(tmp_path / "photos", files)
    else:
        path = zipped(tmp_path / "photos.zip", files, top="photos/" if form == "zip-with-top" else "")
    train, val = hkd.load_dataset(f"folder:{path}"), hkd.load_dataset(f"folder:{path}", "val")
    assert train.info.classes == ("cat", "dog", "eel")
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert val.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert train.info.image_size == 12, "squares of one size keep it"
    expected = torch.from_numpy(np.array(picture((12, 12), 101))).permute(2, 0, 1)
    assert torch.equal(train[5][0], expected)


def test_images_of_any_size_are_resized_where_asked(tmp_path: Path) -> None:
    path = write_files(tmp_path, class_folders((20, 14)))
    assert hkd.load_dataset(f"folder:{path}").info.image_size is None
    assert hkd.load_dataset(f"folder:{path}", image_size=10)[0][0].shape == (3, 10, 10)


def test_imagenet_is_a_prepared_folder(tmp_path: Path) -> None:
    write_files(tmp_path / "imagenet", class_folders((40, 30)))
    found = hkd.load_dataset("imagenet", "val", tmp_path)
    assert len(found) == 6 and found.info.name == "imagenet"


def test_any_picture_becomes_rgb(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    turned = picture((30, 20), 1)
    exif = turned.getexif()
    exif[274] = 6  # the camera was held upright
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    files = class_folders() | {
        "train/cat/0.png": encoded(Image.fromarray(ramp)),
        "train/cat/1.png": buffer.getvalue(),
        "train/cat/2.png": encoded(clear),
        "train/cat/3.png": encoded(picture((8, 8), 2).convert("CMYK"), "TIFF"),
    }
    data = hkd.load_dataset(f"folder:{write_files(tmp_path, files)}")
    assert data[0][0].double().mean().item() == pytest.approx(127.5, abs=1)
    assert data[1][0].shape == (3, 30, 20)
    assert data[2][0].min() == 255
    assert data[3][0].shape == (3, 8, 8)


def test_linked_class_folders_are_followed_and_dangling_links_skipped(tmp_path: Path) -> None:
    real = write_files(tmp_path / "real", class_folders())
    (tmp_path / "photos").mkdir()
    for split in ("train", "val"):
        (tmp_path / "photos" / split).symlink_to(real / split)
    (real / "train" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert len(hkd.load_dataset(f"folder:{tmp_path / 'photos'}")) == 12


def test_faulty_arrays_are_refused() -> None:
    info = hkd.data.DatasetInfo("own", ("a", "b"))
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    for wrong, labels in ((images[:, :, :4], [0, 1]), (images.float(), [0, 1]), (images[:1], [0, 1]), (images[:0], [])):
        with pytest.raises(hkd.RequestError, match="expected square uint8 images"):
            hkd.data.ArrayDataset(wrong, torch.tensor(labels), info)
    with pytest.raises(hkd.RequestError, match=r"expected labels in \[0, 1\], the 2 classes of own, .*; got 0 to 2"):
        hkd.data.ArrayDataset(images, torch.tensor([0, 2]), info)


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1], np.array([0, 1]), torch.tensor([0.5, 1]), torch.tensor([torch.nan, 1]), torch.tensor([0, 1, 1]),
        torch.tensor([[0, 1]]), torch.tensor(1), torch.tensor([0j, 1]), None, torch.tensor([0, -2]),
    ],
    ids=str,
)  # fmt: skip
def test_faulty_labels_are_refused(labels: Any, tmp_path: Path) -> None:
    info = hkd.data.DatasetInfo("own", ("a", "b"))
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    for make in (
        lambda: hkd.data.ArrayDataset(images, labels, info),
        lambda: hkd.data.FileDataset(Folder(tmp_path), ["a.png", "b.png"], labels, info),
    ):
        with pytest.raises(hkd.RequestError, match="^dataset: expected .*labels"):
            make()


@pytest.mark.parametrize("form", ["memory", "files"])
def test_indices(tmp_path: Path, form: str) -> None:
    if form == "memory":
        data = hkd.load_dataset("digits", "test")
    else:
        data = hkd.load_dataset(f"folder:{write_files(tmp_path, class_folders())}")
    count = len(data)
    for index in (count - 1, -1, np.int64(count - 1), torch.tensor(count - 1)):
        assert data[index][1:] == (int(data.labels[-1]), count - 1)
        assert torch.equal(data[index][0], data.image(count - 1))
    for wrong in (count, -count - 1, 10**30):
        with pytest.raises(hkd.RequestError, match=rf"^index: expected 0 to {count - 1}; got ") as error:
            data[wrong]
        assert isinstance(error.value, IndexError)
    for wrong in (1.0, "1", None, slice(3), [1], torch.tensor([0.5])):
        with pytest.raises(hkd.RequestError, match="^index: expected a whole number; got "):
            data[wrong]
    assert [label for _, label, _ in data] == data.labels.tolist(), "a loop ends"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": Path("digits")}, "^dataset: expected a name"), ({"name": None}, "^dataset: expected a name"),
        ({"name": "a\x1b[2J"}, r"^dataset: .*got 'a\\x1b\[2J'"), ({"name": "x" * 10**6}, "^dataset: unknown name 'xxx"),
        ({"name": "folder:a\0b"}, "^dataset: expected a name without control"),
        ({"split": None}, "^split: expected one of"),
        ({"split": 0}, "^split: expected one of train, test for digits; got 0"), ({"split": ["train"]}, "^split: "),
        ({"root": None}, "^data_root: expected a path"), ({"root": 3}, "^data_root: expected a path"),
        ({"name": "folder:" + "x" * 5000}, "^dataset: "),
    ],
)  # fmt: skip
def test_arguments_of_other_types(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(hkd.RequestError, match=message) as error:
        hkd.load_dataset(**({"name": "digits"} | arguments))
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "^batch_size: expected a whole number from 1; got 0"),
        ({"batch_size": 2.0}, "^batch_size: "), ({"batch_size": None}, "^batch_size: "),
        ({"workers": -1}, "^workers: expected a whole number from 0"),
        ({"dataset": [(1, 2)]}, "^dataset: expected an ArrayDataset or a FileDataset; got list"),
    ],
)  # fmt: skip
def test_loaders_of_other_things(arguments: dict[str, Any], message: str) -> None:
    usual = {"dataset": hkd.load_dataset("digits"), "batch_size": 4, "device": torch.device("cpu"), "train": True}
    with pytest.raises(hkd.RequestError, match=message):
        hkd.data.make_loader(**(usual | arguments))
    with pytest.raises(hkd.RequestError, match="^dataset: expected an ArrayDataset"):
        prepare([(1, 2)])


def test_the_lists_of_tiny_imagenet_do_not_lead_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded(picture((8, 8), 1)))
    rows = b"../../../secret.png\tn01\t0\t0\t9\t9\nval_0.JPEG\tn01\t0\t0\t9\t9\n"
    root = write_files(tmp_path / "tiny", tiny_files() | {"val/val_annotations.txt": rows})
    data = hkd.load_dataset("tiny-imagenet", "val", root)
    with pytest.raises(hkd.RequestError, match="no file val/images/../../../secret.png"):
        data[0]
    assert data[1][0].shape == (3, 64, 64) and len(data.fingerprint) == 64
    write_files(root, {"val/val_annotations.txt": b"\xff\xfe"})
    with pytest.raises(hkd.RequestError, match="val_annotations.txt of .* is not UTF-8"):
        hkd.load_dataset("tiny-imagenet", "val", root)
    write_files(root, {"val/val_annotations.txt": b"a\x1b[2J\t" + b"n" * 10**6})
    with pytest.raises(hkd.RequestError, match="an image and its class") as error:
        hkd.load_dataset("tiny-imagenet", "val", root)
    assert str(error.value).isprintable() and len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("digit", "train", "did you mean digits"),
        ("digits", "extra", "split: expected one of train, test for digits; got 'extra'"),
        ("folder", "train", "folder:PATH"),
        ("folder:/nowhere", "train", "no folder or .zip archive at /nowhere"),
    ],
)
def test_wrong_names(name: str, split: str, message: str) -> None:
    with pytest.raises(hkd.RequestError, match=message):
        hkd.load_dataset(name, split)


def without(files: dict[str, bytes], prefix: str) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if not name.startswith(prefix)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (without(class_folders(), "train"), "needs the folders train/ and val/, .*; got val"),
        ({"readme.txt": b""}, "needs the folders train/ and val/, .*; got no folders"),
        (class_folders() | {"val/cow/1.png": encoded(picture((12, 12), 1))}, "'cow' is in one of them"),
        (without(without(class_folders(), "train/eel"), "train/dog"), "at least two class folders"),
        (
            class_folders() | {"train/cat/0.png": b"no image"},
            "1 of 12 images taken from .* cannot be read: train/cat/0.png",
        ),
        (without(class_folders(), "train/cat") | {"train/cat/readme.txt": b""}, "'cat' has no images"),
    ],
)
def test_faulty_folders(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    path = write_files(tmp_path, files)
    with pytest.raises(hkd.RequestError, match=message):
        [prepare(hkd.load_dataset(f"folder:{path}", split)) for split in ("train", "val")]


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("inside", ["", "train/"])
def test_class_folders_without_an_evaluation_split(tmp_path: Path, form: str, inside: str) -> None:
    files = {n.replace("train/", inside): c for n, c in without(class_folders(), "val").items()}
    hidden = {".git/HEAD.png": b"", "__MACOSX/cat/._0.png": b"", f"{inside}.cache/0.png": b""}
    path = tmp_path / "photos"
    path = write_files(path, files | hidden) if form == "folder" else zipped(tmp_path / "photos.zip", files | hidden)
    data = hkd.load_dataset(f"folder:{path}")
    assert data.info.classes == ("cat", "dog", "eel")
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    words = r"has no evaluation split \(val/, test/, .*\); only a training makes one, .*--holdout"
    with pytest.raises(hkd.RequestError, match=words):
        hkd.load_dataset(f"folder:{path}", "val")


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize(
    ("training", "evaluation"),
    [("Train", "Test"), ("TRAIN", "Validation"), ("train", "valid"), ("Training", "Testing"), ("training", "VAL")],
)
def test_splits_in_capitals(tmp_path: Path, form: str, training: str, evaluation: str) -> None:
    files = {n.replace("train/", f"{training}/"): c for n, c in class_folders(evaluation=evaluation).items()}
    files["readme.png"] = b""
    path = write_files(tmp_path / "p", files) if form == "folder" else zipped(tmp_path / "p.zip", files)
    train, val = hkd.load_dataset(f"folder:{path}"), hkd.load_dataset(f"folder:{path}", "val")
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and val.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_class_may_be_called_as_a_split_is(tmp_path: Path) -> None:
    vehicles = {f"{name}/{i}.png": encoded(picture((12, 12), i)) for name in ("Bus", "Train", "test") for i in (1, 2)}
    path = write_files(tmp_path / "bare", vehicles)
    assert hkd.load_dataset(f"folder:{path}").info.classes == ("Bus", "Train", "test")
    write_files(tmp_path / "parted", {f"{split}/{n}": c for split in ("Train", "Val") for n, c in vehicles.items()})
    for split in ("train", "val"):
        assert hkd.load_dataset(f"folder:{tmp_path / 'parted'}", split).info.classes == ("Bus", "Train", "test")


def test_two_splits_of_one_name(tmp_path: Path) -> None:
    files = class_folders() | {f"Val/{n}": c for n, c in without(class_folders(), "val").items()}
    path = zipped(tmp_path / "photos.zip", files)
    with pytest.raises(hkd.RequestError, match="expected one of Val/ and val/ in .*photos.zip; got both"):
        hkd.load_dataset(f"folder:{path}")


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("inside", ["train/", "val/", ""])
def test_an_empty_class_folder_is_named(tmp_path: Path, form: str, inside: str) -> None:
    files = class_folders() if inside else {n[6:]: c for n, c in without(class_folders(), "val").items()}
    empty = [f"{inside}{name}/" for name in ("cow/old", "gnu", ".cache")]
    if form == "folder":
        path = write_files(tmp_path / "photos", files)
        for name in empty:
            (path / name).mkdir(parents=True)
    else:
        path = zipped(tmp_path / "photos.zip", files | dict.fromkeys(empty, b""))
    with pytest.raises(hkd.RequestError) as error:
        hkd.load_dataset(f"folder:{path}", "train" if inside != "val/" else "val")
    place = path / inside.rstrip("/")
    assert str(error.value) == (
        f"dataset: class folder 'cow' in {place} is empty, and so are 1 more; put images into it, or delete it"
    )


def test_imagenet_is_not_taken_for_a_folder_of_classes(tmp_path: Path) -> None:
    write_files(tmp_path, {n.replace("train/", ""): c for n, c in class_folders().items()})
    with pytest.raises(
        hkd.RequestError, match="needs the folders train/ and val/, with a folder for each class in them;"
    ):
        hkd.load_dataset("imagenet", "train", tmp_path)


def test_a_registered_data_set_is_opened_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "noise" not in hkd.list_datasets()
    monkeypatch.setattr(datasets, "_entries", dict(datasets._entries))

    @datasets.register("noise")
    def noise(split: str, root: Path, image_size: int | None) -> hkd.data.ArrayDataset:
        assert (split, root) == ("train", tmp_path)
        images = torch.zeros(4, 3, image_size or 5, image_size or 5, dtype=torch.uint8)
        return hkd.data.ArrayDataset(images, torch.arange(4) % 2, hkd.data.DatasetInfo("noise", ("a", "b")))

    datasets.register("wrong")(lambda *_: [])  # type: ignore[arg-type, return-value]
    assert "noise" in hkd.list_datasets()
    assert hkd.load_dataset("noise", "train", tmp_path, image_size=7).info.image_size == 7
    with pytest.raises(hkd.RequestError, match="expected an ArrayDataset or a FileDataset .* of wrong; got list"):
        hkd.load_dataset("wrong")


def test_the_specification_needs_no_torch() -> None:
    program = (
        "import sys, hkd.data.spec, hkd.data; assert hkd.data.DataSpec().dataset == 'digits'; "
        "heavy = {'torch', 'torchvision', 'numpy', 'PIL'} & {*sys.modules}; assert not heavy, heavy; "
        "from hkd.data import *; assert load_dataset and open_data"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_exported_name_is_there() -> None:
    assert all(getattr(hkd.data, name) is not None for name in hkd.data.__all__)
    assert {*hkd.data.__all__} <= {*dir(hkd.data)}
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = hkd.data.nothing


def test_a_corrupt_archive_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "photos.zip", class_folders())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(hkd.RequestError, match="not a readable zip"):
        hkd.load_dataset(f"folder:{path}")


def test_missing_data_that_cannot_be_fetched_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", no_network)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    monkeypatch.setattr("torchvision.datasets.stl10.download_and_extract_archive", no_network)
    for name in ("cifar100", "stl10", "tiny-imagenet"):
        with pytest.raises(hkd.RequestError, match=rf"{name} is not complete under .* \(no route to host\)"):
            hkd.load_dataset(name, root=tmp_path)

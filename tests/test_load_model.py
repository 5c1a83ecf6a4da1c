"""A trained network as its user gets it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hkd
from hkd.data import make_loader, prepare
from hkd.trained import find_trained, open_test
from tests.data.awkward import awkward
from tests.data.test_datasets import class_folders, write_files


@pytest.fixture(scope="module", params=[64, 100])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and its images, which have an evaluation image of each awkward kind; decoded into memory, and streamed."""
    folder = tmp_path_factory.mktemp("photos")
    files = class_folders((140, 120), train=2, val=1) | {f"val/cat/{name}": data for name, data in awkward().items()}
    write_files(folder / "photos", files)
    config = hkd.TrainConfig(
        run=str(folder / "run"), dataset=f"folder:{folder / 'photos'}", image_size=request.param, epochs=1, workers=0,
        device="cpu", student="resnet8x4", tensorboard=False,
    )  # fmt: skip
    return hkd.train(config).run, folder / "photos"


def test_its_transform_is_the_evaluation_s(run: tuple[Path, Path]) -> None:
    model = hkd.load_model(run[0])
    assert model.classes == ["cat", "dog", "eel"] and not model.training
    data = prepare(open_test(hkd.EvaluateConfig(checkpoint=str(run[0])), find_trained(run[0])))
    batches = make_loader(data, 4, torch.device("cpu"), train=False).epoch(0)
    seen = torch.cat([batch.image for batch in batches])
    names = hkd.load_dataset(f"folder:{run[1]}", "test").names
    assert len(names) == len(seen) == 11
    for name, image in zip(names, seen, strict=True):
        own = model.transform(Image.open(run[1] / name))
        assert own.dtype == torch.float32
        torch.testing.assert_close(own, image, rtol=0, atol=0, msg=name)


def test_a_run_and_its_file_are_the_same_network(run: tuple[Path, Path]) -> None:
    of_run, of_file = hkd.load_model(run[0]), hkd.load_model(run[0] / "model.safetensors")
    image = of_run.transform(Image.new("RGBA", (30, 40), (255, 0, 0, 100)))[None]
    with torch.no_grad():
        torch.testing.assert_close(of_run(image).logits, of_file(image).logits, rtol=0, atol=0)
    again = pickle.loads(pickle.dumps(copy.deepcopy(of_run)))
    assert again.classes == of_run.classes and again.transform == of_run.transform


def test_transparency_is_white_and_a_rotation_is_followed(run: tuple[Path, Path]) -> None:
    model = hkd.load_model(run[0])
    clear = Image.new("RGBA", (50, 50), (0, 0, 0, 0))
    torch.testing.assert_close(model.transform(clear), model.transform(Image.new("RGB", (50, 50), "white")))
    pixels = np.zeros((60, 90, 3), dtype=np.uint8)
    pixels[:30] = 255
    plain, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = plain.copy()
    turned.info["exif"] = exif.tobytes()
    turned._exif = None
    torch.testing.assert_close(model.transform(turned), model.transform(plain.rotate(180)))


def test_what_is_no_picture_is_refused(run: tuple[Path, Path]) -> None:
    model = hkd.load_model(run[0])
    for wrong in ("a.jpg", np.zeros((8, 8, 3), dtype=np.uint8), None, Image.new("F", (8, 8))):
        with pytest.raises(hkd.RequestError, match="^image: expected a"):
            model.transform(wrong)


def test_a_file_that_says_little(tmp_path: Path) -> None:
    hkd.save_model(hkd.create_model("resnet8", 3), tmp_path / "m.safetensors")
    model = hkd.load_model(tmp_path / "m.safetensors")
    assert model.classes == ["0", "1", "2"]
    with pytest.raises(hkd.RequestError, match=r"m\.safetensors does not say its image_size"):
        model.transform(Image.new("RGB", (8, 8)))


def test_a_folder_without_a_network_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(hkd.RequestError, match="^checkpoint: no file"):
        hkd.load_model(tmp_path)


def test_a_run_without_weights_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(hkd.RequestError, match=r"no file .*student\.safetensors or .*model\.safetensors"):
        hkd.load_model(tmp_path)
    (tmp_path / "config.yaml").write_text("student: resnet8\n")
    with pytest.raises(hkd.RequestError, match="is not finished, so it has no weights yet"):
        hkd.load_model(tmp_path)

"""timm's networks of other image sizes, and those in folders."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import hkd
from hkd.models import read_model
from hkd.spec import RunSpec

TINY = "test_vit3"
"""timm's smallest transformer, of 160x160 images."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A network as timm saves it, with a head of 7 classes."""
    torch.manual_seed(0)
    module = timm.create_model("test_resnet", num_classes=7)
    timm.models.save_for_hf(module, tmp_path / "net", safe_serialization=True)
    return tmp_path / "net"


def test_a_transformer_is_built_for_the_images(tmp_path: Path) -> None:
    model = hkd.create_model(f"timm:{TINY}", 10, image_size=32)
    assert (model.image_size, model.info.image_size) == (32, 32)
    assert model.info_at(32).num_classes == 10
    with pytest.raises(hkd.RequestError, match="image_size: timm:test_vit3 does not take images of 32x32"):
        hkd.create_model(f"timm:{TINY}", 10).info_at(32)
    hkd.save_model(model, tmp_path / "m.safetensors", image_size=32)
    loaded, about = read_model(tmp_path / "m.safetensors")
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded.eval()(image).logits, model.eval()(image).logits)
    assert about["image_size"] == 32


@pytest.mark.parametrize(("name", "size"), [("timm:vit_tiny_patch16_224", 8), ("timm:maxvit_tiny_tf_224", 112)])
def test_a_size_that_no_grid_fits_is_told(name: str, size: int) -> None:
    model = hkd.create_model(name, 10, image_size=size)
    with pytest.raises(hkd.RequestError, match=f"image_size: {name} does not take images of {size}x{size}"):
        model.info_at(size)


@pytest.mark.parametrize("name", ["timm:test_resnet", "resnet8", "torchvision:resnet18", "timm:fastvit_t8"])
def test_the_others_are_built_as_ever(name: str) -> None:
    torch.manual_seed(0)
    first = hkd.create_model(name, 10).state_dict()
    torch.manual_seed(0)
    second = hkd.create_model(name, 10, image_size=64).state_dict()
    assert all(value.equal(second[key]) for key, value in first.items())


def test_pretrained_positions_are_resampled(tmp_path: Path) -> None:
    source = timm.create_model(TINY)
    timm.models.save_for_hf(source, tmp_path / "net", safe_serialization=True)
    name = f"timm:local-dir:{tmp_path}/net"
    small: Any = hkd.create_model(name, 10, pretrained=True, image_size=80)
    assert small.module.pos_embed.shape[1] < source.pos_embed.shape[1]
    assert small.module.blocks[0].attn.qkv.weight.equal(source.blocks[0].attn.qkv.weight)


def test_a_folder_of_timm_is_a_network(folder: Path) -> None:
    model: Any = hkd.create_model(f"timm:local-dir:{folder}", 7, pretrained=True)
    assert model.name == f"timm:local-dir:{folder}" and model.normalisation is not None
    source = timm.create_model(f"local-dir:{folder}", pretrained=True)
    image = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model.eval()(image).logits, source.eval()(image))
    other: Any = hkd.create_model(f"timm:local-dir:{folder}", 5, pretrained=True)
    assert other.module.conv1[0].weight.equal(source.conv1[0].weight) if hasattr(source.conv1, "0") else True
    assert other.info.num_classes == 5


def test_a_folder_without_a_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(hkd.RequestError, match=r"model: expected a folder with the config.json of timm; got .*nothing"):
        hkd.create_model(f"timm:local-dir:{tmp_path}/nothing", 7)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "no_such_network"}))
    with pytest.raises(hkd.RequestError, match="timm cannot build local-dir:.*no_such_network"):
        hkd.create_model(f"timm:local-dir:{tmp_path}", 7)
    with pytest.raises(hkd.RequestError, match="model: expected a"):
        hkd.create_model(f"timm:local-dir:{tmp_path}/{'x' * 250}", 7)


def test_the_content_of_a_folder_is_in_the_key(folder: Path) -> None:
    def key() -> str:
        flat = {"dataset": "digits", "student": f"timm:local-dir:{folder}", "student_pretrained": True}
        return RunSpec.from_flat(flat | {"limit_train": 4}).key()

    before = key()
    assert key() == before
    timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=7), folder, safe_serialization=True)
    assert key() != before


def test_a_run_with_a_transformer_at_another_size(tmp_path: Path) -> None:
    small = {"limit_train": 4, "epochs": 1, "device": "cpu", "tensorboard": False, "image_size": 32}
    result = hkd.train(hkd.TrainConfig(run=str(tmp_path / "t"), student=f"timm:{TINY}", **small))
    found = hkd.evaluate(hkd.EvaluateConfig(checkpoint=str(tmp_path / "t"), device="cpu"))
    assert found.top1 == pytest.approx(result.summary["top1_last"])

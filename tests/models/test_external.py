"""Foreign networks as models."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hkd
from hkd.models import Model
from hkd.types import ModelOutput


class Own(nn.Module):
    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(12, num_classes)
        self.aside = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.body(self.stem(x)).mean(dim=(2, 3))
        self.aside(pooled)
        return self.head(pooled)


class Scaled(Own):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def factory(num_classes: int) -> nn.Module:
    return Own(num_classes)


def test_an_own_module_is_understood() -> None:
    module = Own()
    model = hkd.wrap_model(module, image_size=32)
    image = torch.randn(2, 3, 32, 32)
    out = model(image)
    torch.testing.assert_close(out.logits, module(image))
    torch.testing.assert_close(out.logits, module.head(out.embedding))
    assert model.info.stages == ((8, 16, 16), (12, 8, 8))
    assert model.info.embedding_dim == 12
    out.logits.sum().backward()
    assert module.stem[0].weight.grad is not None


def test_wrapping_leaves_the_modes_alone() -> None:
    module = Own().train()
    module.body.eval()
    assert hkd.wrap_model(module, image_size=32).info.num_classes == 5
    assert module.training and not module.body.training


def test_wrappers_can_be_copied_pickled_and_doubled(tmp_path: Path) -> None:
    module, image = Own(), torch.randn(2, 3, 32, 32)
    first = hkd.wrap_model(module, image_size=32)
    expected = first(image)
    second = hkd.wrap_model(module, image_size=32)
    torch.save(first, tmp_path / "whole.pt")
    for wrapper in (first, second, copy.deepcopy(first), torch.load(tmp_path / "whole.pt", weights_only=False)):
        out = wrapper(image)
        torch.testing.assert_close(out.embedding, expected.embedding)
        assert len(out.features) == 2
        assert wrapper._seen is None, "no activation outlives the step"


def test_a_model_is_not_wrapped_again() -> None:
    model = hkd.create_model("resnet8", 10)
    assert hkd.wrap_model(model) is model


def test_a_classifier_that_cannot_be_found_is_asked_for() -> None:
    with pytest.raises(hkd.RequestError, match=r"classifier: the output of Scaled.* wrap_model\(..., classifier="):
        hkd.wrap_model(Scaled(), image_size=32)
    model = hkd.wrap_model(Scaled(), image_size=32, classifier="head")
    assert model.info.embedding_dim == 12


def test_a_classifier_of_a_wrong_name_comes_with_near_misses() -> None:
    with pytest.raises(hkd.RequestError, match="did you mean head"):
        hkd.wrap_model(Scaled(), image_size=32, classifier="heads")


def test_a_module_that_is_no_classifier_is_refused() -> None:
    with pytest.raises(hkd.RequestError, match="expected one tensor of logits"):
        hkd.wrap_model(nn.Conv2d(3, 4, 3), image_size=32)
    with pytest.raises(hkd.RequestError, match="does not run on a 32x32 image"):
        hkd.wrap_model(nn.Linear(7, 2), image_size=32)


@pytest.mark.parametrize(
    ("name", "embedding_dim", "stages"),
    [
        ("torchvision:resnet18", 512, [64, 64, 128, 256, 512]),
        ("torchvision:mobilenet_v3_small", 1024, None),
        ("timm:resnet10t", 512, None),
        ("timm:vit_tiny_patch16_224", 192, [192]),
        ("timm:mobilenetv3_small_050", 1024, None),
        ("timm:swin_tiny_patch4_window7_224", 768, [96, 192, 384, 768]),  # maps with channels last
        ("torchvision:swin_t", 768, [96, 192, 384, 768]),
    ],
)
def test_library_networks(name: str, embedding_dim: int, stages: list[int] | None) -> None:
    model = hkd.create_model(name, num_classes=6)
    info = model.info
    assert (info.name, info.num_classes, info.embedding_dim) == (name, 6, embedding_dim)
    if stages is not None:
        assert [channels for channels, _, _ in info.stages] == stages
    sides = [height for _, height, _ in info.stages]
    assert sides == sorted(sides, reverse=True)
    with torch.no_grad():
        maps = model.eval()(torch.randn(2, 3, info.image_size, info.image_size)).features
    assert [tuple(m.shape) for m in maps] == [(2, *stage) for stage in info.stages]


def test_a_factory_is_a_model_name() -> None:
    model = hkd.create_model("tests.models.test_external:factory", 4)
    assert model.info.num_classes == 4
    assert model.name == "tests.models.test_external:factory"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "did you mean timm:resnet18 or torchvision:resnet18"), ("timm:qq", "nearest of 1,.*: "),
        ("timm:resnet343", "did you mean resnet34"), ("torchvision:resnet19", "did you mean resnet1"),
        ("nowhere:make", "cannot import"), ("tests.models.test_external:missing", "cannot import"),
        (":make", "cannot import"), ("tests.models.test_external:Scaled", "classifier: the output of Scaled"),
        ("tests.models.test_external:copy", "fails"), ("timm:resnet18.nosuch", "timm cannot build resnet18.nosuch"),
    ],
)  # fmt: skip
def test_library_names_that_are_wrong(name: str, message: str) -> None:
    with pytest.raises(hkd.RequestError, match=message):
        hkd.create_model(name, 4)


def test_a_factory_in_the_working_directory_is_found(tmp_path: Path) -> None:
    (tmp_path / "mynet.py").write_text("from tests.models.test_external import Own\ndef make(n): return Own(n)\n")
    code = "import hkd; assert hkd.create_model('mynet:make', 4).info.num_classes == 4"
    script = tmp_path / "elsewhere" / "run.py"
    script.parent.mkdir()
    script.write_text(code)
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, check=True)


def test_an_image_that_is_too_small_is_told() -> None:
    model = hkd.create_model("vgg8", 10)
    with pytest.raises(hkd.RequestError, match="image_size: vgg8 does not take images of 2x2"):
        model.info_at(2)
    assert model.training


def test_pretrained_zoo_networks_do_not_exist() -> None:
    with pytest.raises(hkd.RequestError, match="pretrained"):
        hkd.create_model("resnet8", 10, pretrained=True)


class Dropped(Own):
    """Drops parts of the average before it is classified."""

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.body(self.stem(x)).mean(dim=(2, 3))
        return self.head(nn.functional.dropout(pooled, 0.2, self.training))


CLASSIFYING = (
    "resnet8", "wrn_16_1", "MobileNetV2", "ShuffleV1", "ShuffleV2", "vgg8", "ResNet50", "torchvision:resnet18",
    "timm:resnet10t", "torchvision:swin_t", "own",
)  # fmt: skip


@pytest.mark.parametrize("name", CLASSIFYING)
def test_the_classifier_of_averages_serves_other_vectors(name: str) -> None:
    model = hkd.wrap_model(Own(), image_size=32) if name == "own" else hkd.create_model(name, 5)
    model = copy.deepcopy(model).eval().double()
    with torch.no_grad():
        out = model(torch.randn(2, 3, max(64, model.image_size), max(64, model.image_size)).double())
        torch.testing.assert_close(out.pooled.mean(dim=(2, 3)), out.embedding)
        torch.testing.assert_close(model.classify(out.embedding), out.logits)
        cells = model.classify(out.pooled.permute(0, 2, 3, 1))
    assert cells.shape == (2, *out.pooled.shape[2:], 5)
    torch.testing.assert_close(cells.mean(dim=(1, 2)), out.logits)


@pytest.mark.parametrize(
    "name",
    ["timm:convnext_atto", "timm:vit_tiny_patch16_224", "torchvision:mobilenet_v3_small", "torchvision:mobilenet_v2",
     "scaled", "dropped"],
)  # fmt: skip
def test_a_classifier_with_something_before_it_serves_no_other_vectors(name: str) -> None:
    own = {"scaled": (Scaled(), "head"), "dropped": (Dropped(), None)}
    if name in own:
        model = hkd.wrap_model(own[name][0], classifier=own[name][1], image_size=32)
    else:
        model = hkd.create_model(name, 5)
    with pytest.raises(hkd.RequestError, match="model: expected a linear layer that classifies the average .*; got"):
        model.classify(torch.zeros(1, model.info.embedding_dim))


def test_a_model_without_a_classifier_for_other_vectors_says_so() -> None:
    class Plain(Model):
        def forward(self, image: Tensor) -> ModelOutput:
            raise NotImplementedError

    with pytest.raises(hkd.RequestError, match="got Plain, which has no classify"):
        Plain().classify(torch.zeros(1, 3))

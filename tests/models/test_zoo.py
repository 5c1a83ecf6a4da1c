"""One contract for the whole zoo, and each network against its re-statement."""

import pytest
import torch
from torch import nn

import hkd
from tests.reference import zoo

NAMES = (
    "resnet8 resnet14 resnet20 resnet32 resnet44 resnet56 resnet110 resnet8x4 resnet32x4 ResNet50 "
    "wrn_16_1 wrn_16_2 wrn_40_1 wrn_40_2 vgg8 vgg11 vgg13 vgg16 vgg19 MobileNetV2 ShuffleV1 ShuffleV2"
).split()

# Parameters with 100 classes, as the benchmark's papers state them, in millions.
PUBLISHED_MILLIONS = {"resnet20": 0.28, "resnet56": 0.86, "resnet110": 1.73, "resnet32x4": 7.43, "resnet8x4": 1.23,
                      "wrn_40_2": 2.26, "wrn_16_2": 0.70, "vgg13": 9.46, "vgg8": 3.97, "MobileNetV2": 0.81,
                      "ShuffleV1": 0.95, "ShuffleV2": 1.36, "ResNet50": 23.71}  # fmt: skip


def unlike_initial(model: nn.Module) -> nn.Module:
    """Statistics and weights that a mistaken order or a missing layer cannot hide behind."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model


def test_all_networks_of_the_benchmark_are_there() -> None:
    assert set(NAMES) <= set(hkd.list_models())


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_its_restatement(name: str) -> None:
    model = unlike_initial(hkd.create_model(name, num_classes=7)).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        out = model(image)
        expected, used = zoo.logits(name, model.state_dict(), image)
    assert used == set(model.state_dict())
    torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", NAMES)
def test_what_a_network_shows(name: str) -> None:
    model = hkd.create_model(name, num_classes=7).train()
    info = model.info
    assert model.training, "asking for the information leaves the mode alone"
    assert (info.name, info.num_classes) == (name, 7)
    out = model(torch.randn(2, 3, 32, 32))
    assert out.logits.shape == (2, 7)
    assert out.embedding.shape == (2, info.embedding_dim)
    assert tuple(tuple(f.shape[1:]) for f in out.features) == info.stages
    assert len(out.features) == len(out.preactivations) >= 4
    for feature, before in zip(out.features, out.preactivations, strict=True):
        assert feature.shape == before.shape
    if not name.startswith(("wrn", "Mobile", "ShuffleV2")):  # these keep raw sums, linear maps, unshuffled channels
        for feature, before in zip(out.features, out.preactivations, strict=True):
            torch.testing.assert_close(feature, before.relu())
    out.logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("name", "millions"), PUBLISHED_MILLIONS.items())
def test_sizes_are_the_published_ones(name: str, millions: float) -> None:
    assert hkd.create_model(name, 100).info.parameters / 1e6 == pytest.approx(millions, abs=0.011)


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "MobileNetV2", "ShuffleV2", "wrn_16_1"])
@pytest.mark.parametrize("size", [8, 64])
def test_other_image_sizes(name: str, size: int) -> None:
    assert hkd.create_model(name, 3).eval()(torch.randn(2, 3, size, size)).logits.shape == (2, 3)


def test_an_unknown_name_comes_with_near_misses() -> None:
    with pytest.raises(hkd.RequestError, match=r"model: unknown name 'resnet8x5'; did you mean resnet8x4"):
        hkd.create_model("resnet8x5", 10)


def test_fewer_than_two_classes_are_refused() -> None:
    with pytest.raises(hkd.RequestError, match="num_classes"):
        hkd.create_model("resnet8", 1)

"""The list of trained networks that others publish, and their files as their authors write them."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor

import hkd
from hkd.cli import main
from hkd.data.base import Dataset
from hkd.data.cifar100 import cifar100
from hkd.models.start import start_from
from hkd.pretrained import Pretrained, files, list_pretrained, overview, sources
from hkd.types import Channels
from tests.models.test_zoo import unlike_initial
from tests.reference import zoo

ROOT = Path(__file__).parents[2]
ENTRIES = list_pretrained()
CIFAR = [entry for entry in ENTRIES if entry.dataset == "cifar100"]
TORCHVISION = [entry for entry in ENTRIES if entry.title == "torchvision"]
TIMM = [entry for entry in ENTRIES if entry.network.startswith("timm:")]


def named(entry: Pretrained) -> str:
    return entry.name


def test_the_list_is_complete() -> None:
    assert {len(part) for part in (CIFAR, TORCHVISION, TIMM)} == {10, 5, 6} and len(ENTRIES) == 21
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    for entry in ENTRIES:
        assert all((entry.title, entry.published, entry.fetch, entry.file, entry.format)), entry.name
        assert entry.sha256 is None or (len(entry.sha256) in (8, 64) and int(entry.sha256, 16)), entry.name
        assert entry.top1 is None or 60 < entry.top1 < 90, entry.name
        assert entry.top1 is not None or entry.classes == 0, "a classifier has a published accuracy"
        assert len(entry.mean) == len(entry.std) == 3 and all(0 < value < 1 for value in entry.mean + entry.std)


def test_the_document_has_the_tables_of_the_list() -> None:
    text = (ROOT / "docs" / "checkpoints.md").read_text()
    for part in (overview("github"), files(), sources()):
        assert part in text, "run: python -c 'from hkd.pretrained import *; print(overview(\"github\"), ...)'"


@pytest.mark.parametrize("entry", ENTRIES, ids=named)
def test_each_command_is_one(entry: Pretrained, capsys: pytest.CaptureFixture[str]) -> None:
    """It parses, and names the network and its file, or asks for the library's weights."""
    program, *words = shlex.split(entry.command)
    assert program == "hkd" and main([*words, "--print-config"]) == 0
    assert entry.network in words
    assert entry.file in words or "--teacher-pretrained" in words
    assert ("head" in words) == (entry.classes == 0), "a backbone gets a head"
    for name in {entry.network, entry.student} - {""}:
        assert_known(name)


def assert_known(name: str) -> None:
    library, _, own = name.rpartition(":")
    if library == "timm":
        assert timm.is_model(own) and ("." not in own or own in timm.list_pretrained())
    elif library == "torchvision":
        assert own in torchvision.models.list_models()
    else:
        assert own in hkd.list_models()


@pytest.mark.parametrize("entry", TORCHVISION, ids=named)
def test_what_is_said_of_torchvision_s_weights_is_what_it_says(entry: Pretrained) -> None:
    weights = torchvision.models.get_weight(entry.name.removeprefix("torchvision/"))
    assert weights.url.endswith(f"/{entry.file}") and f"-{entry.sha256}." in entry.file
    assert weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] == entry.top1
    assert len(weights.meta["categories"]) == entry.classes
    transform = weights.transforms()
    assert (transform.mean, transform.std) == (entry.mean, entry.std)


@pytest.mark.parametrize("entry", TIMM, ids=named)
def test_what_is_said_of_timm_s_weights_is_what_it_says(entry: Pretrained) -> None:
    about = timm.get_pretrained_cfg(entry.network.removeprefix("timm:"))
    assert about.hf_hub_id == entry.name
    assert (list(about.mean), list(about.std)) == (entry.mean, entry.std)
    if entry.classes:
        assert about.num_classes == entry.classes
        assert about.license == (entry.licence or "").lower()
        assert ("288" in entry.note) == (about.test_input_size == (3, 288, 288))


@pytest.mark.parametrize("entry", CIFAR, ids=named)
def test_images_are_normalised_as_the_file_s_were(entry: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the data set's own numbers, or by options in the command."""
    words = shlex.split(entry.command)
    usual = usual_of_cifar100(monkeypatch)
    given = [
        [float(number) for number in words[words.index(option) + 1].split(",")] if option in words else None
        for option in ("--mean", "--std")
    ]
    assert [mean or own for mean, own in zip(given, usual, strict=True)] == [entry.mean, entry.std]


def usual_of_cifar100(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    class Tiny:
        data, targets = np.zeros((2, 32, 32, 3), np.uint8), [0, 1]
        classes = tuple(str(n) for n in range(100))

        def __init__(self, *_: object, **__: object) -> None: ...

    monkeypatch.setattr("torchvision.datasets.CIFAR100", Tiny)
    info = cifar100("train", Path("none"), None).info
    return [list(info.mean), list(info.std)]


# -- files as their authors write them ---------------------------------------------------------------------------------


def norm(name: str) -> Iterator[str]:
    yield from (f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))


def original_names(network: str) -> list[str]:
    """The names of the tensors in RepDistiller's and mdistiller's networks: resnet, resnetv2, wrn and vgg.

    Without the counts of the batch norms, as PyTorch 0.4.0 wrote them, with which RepDistiller was made.
    """
    names: list[str] = []
    if network.startswith("vgg"):
        for block in range(5):
            for layer in (0, 3):
                names += [f"block{block}.{layer}.weight", f"block{block}.{layer}.bias"]
                names += norm(f"block{block}.{layer + 1}")
        return [*names, "classifier.weight", "classifier.bias"]
    if network == "wrn_40_2":
        names = ["conv1.weight"]
        for stage in (1, 2, 3):
            for block in range(6):
                place = f"block{stage}.layer.{block}"
                names += [
                    *norm(f"{place}.bn1"),
                    f"{place}.conv1.weight",
                    *norm(f"{place}.bn2"),
                    f"{place}.conv2.weight",
                ]
                names += [f"{place}.convShortcut.weight"] if block == 0 else []
        return [*names, *norm("bn1"), "fc.weight", "fc.bias"]
    names = ["conv1.weight", *norm("bn1")]
    if network == "ResNet50":
        blocks, layers, shortcut, head = [3, 4, 6, 3], 3, "shortcut", "linear"
    else:
        depth = int(network.removeprefix("resnet").partition("x")[0])
        blocks, layers, shortcut, head = [(depth - 2) // 6] * 3, 2, "downsample", "fc"
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            place = f"layer{stage}.{block}"
            for layer in range(1, layers + 1):
                names += [f"{place}.conv{layer}.weight", *norm(f"{place}.bn{layer}")]
            if block == 0 and (stage > 1 or network.endswith("x4") or network == "ResNet50"):
                names += [f"{place}.{shortcut}.0.weight", *norm(f"{place}.{shortcut}.1")]
    return [*names, f"{head}.weight", f"{head}.bias"]


def original(network: str, classes: int) -> dict[str, Tensor]:
    """Weights under the originals' names."""
    drawn = unlike_initial(hkd.create_model(network, classes)).state_dict()
    return {name: drawn[name] for name in original_names(network)}


def published(path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as RepDistiller's training writes it on a GPU, in PyTorch's old format."""
    content = {
        "epoch": 240, "model": state, "accuracy": np.float64(79.42), "best_acc": torch.tensor(79.42),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 5e-5, "params": [0]}]},
    }  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda _: "cuda:0")
        torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.parametrize("network", sorted({entry.network for entry in CIFAR}))
def test_a_published_file_gives_the_original_s_logits(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = original(network, 100)
    model = hkd.create_model(network, 100).eval()
    hkd.load_checkpoint(model, published(tmp_path / "ckpt_epoch_240.pth", state, monkeypatch))
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, used = zoo.logits(network, state, image)
        torch.testing.assert_close(model(image).logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert {name for name in used if not name.endswith("num_batches_tracked")} == set(state)
    assert not any(value.any() for name, value in model.state_dict().items() if name.endswith("num_batches_tracked"))


def test_a_norm_without_its_statistics_is_still_missed(tmp_path: Path) -> None:
    state = hkd.create_model("resnet8", 10).state_dict()
    kept = {name: value for name, value in state.items() if not name.startswith("bn1.")}
    torch.save({"model": kept}, tmp_path / "m.pth")
    with pytest.raises(hkd.RequestError, match="5 of .* tensors are missing, first bn1.weight"):
        hkd.load_checkpoint(hkd.create_model("resnet8", 10), tmp_path / "m.pth")


OTHER = ((0.5, 0.4, 0.3), (0.3, 0.2, 0.25))


@pytest.mark.parametrize("normalised", [False, True], ids=["usual", "--mean and --std"])
def test_a_published_teacher_teaches_with_its_accuracy(
    normalised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test, state = hkd.load_dataset("digits", "test", image_size=32), original("resnet8", 10)
    labels = torch.tensor([label for _, label, _ in test])
    usual, other = (
        zoo.logits("resnet8", state | {"fc.weight": torch.eye(64), "fc.bias": torch.zeros(64)}, seen(test, *numbers))[0]
        for numbers in ((test.info.mean, test.info.std), OTHER)
    )  # features
    state["fc.weight"] = torch.linalg.lstsq(usual - usual.mean(0), torch.eye(10)[labels]).solution.T.contiguous()
    state["fc.bias"] = -state["fc.weight"] @ usual.mean(0)
    file, run = published(tmp_path / "ckpt_epoch_240.pth", state, monkeypatch), tmp_path / "run"
    words = f"distill --dataset digits --image-size 32 --teacher resnet8 --teacher-weights {file} --student resnet8 "
    words += f"--run {run} --epochs 1 --limit-train 4 --method kd --device cpu --logger none "
    assert main([*words.split(), *("--mean .5,.4,.3 --std .3,.2,.25".split() if normalised else ())]) == 0
    right = [
        100 * ((features @ state["fc.weight"].T + state["fc.bias"]).argmax(dim=1) == labels).double().mean().item()
        for features in (usual, other)
    ]
    assert right[0] > right[1] + 5, "these weights show in which normalisation they see the images"
    top1 = json.loads((run / "summary.json").read_text())["teacher_top1"]
    assert top1 == pytest.approx(right[normalised], abs=0.3)  # an image


def seen(data: Dataset, mean: Channels, std: Channels) -> Tensor:
    images = torch.stack([image for image, _, _ in data]).float() / 255
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_s_files_load(name: str, tmp_path: Path) -> None:
    original = unlike_initial(torchvision.models.get_model(name)).eval()
    torch.save(original.state_dict(), tmp_path / "m.pth")
    model = hkd.create_model(f"torchvision:{name}", 1000).eval()
    start = start_from(model, tmp_path / "m.pth", [str(n) for n in range(1000)])
    assert start.head_fits
    assert model.normalisation == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(image).logits, original(image), rtol=1e-4, atol=1e-4)

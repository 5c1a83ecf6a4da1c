"""Classes of different sizes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hkd
from hkd.data import ArrayDataset, DatasetInfo, MemoryLoader, make_loader
from hkd.data.balance import balanced_order, class_weights, times_before
from hkd.data.stream_loader import AGAIN
from hkd.methods.kd import cross_entropy
from hkd.metrics import Evaluation
from hkd.types import Share
from tests.data.test_datasets import class_folders, encoded, picture, without, write_files
from tests.reference.balance import weighted_cross_entropy

CPU = torch.device("cpu")
SKEWED = torch.tensor([0] * 20 + [1] * 3 + [2] * 7)


def skewed(size: int = 16) -> ArrayDataset:
    images = torch.randint(0, 256, (30, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ArrayDataset(images, SKEWED, DatasetInfo("own", ("a", "b", "c")))


def order(labels: Tensor, seed: int = 0) -> Tensor:
    return balanced_order(labels, torch.Generator().manual_seed(seed))


def test_every_class_is_shown_equally_often() -> None:
    shown = order(SKEWED)
    assert SKEWED[shown].bincount().tolist() == [10, 10, 10]
    counts = shown.bincount(minlength=30)
    assert counts[:20].max() == 1, "of a large class a part is shown, no image twice"
    assert sorted(counts[20:23].tolist()) == [3, 3, 4] and sorted(counts[23:].tolist()) == [1] * 4 + [2] * 3
    assert torch.equal(shown, order(SKEWED)) and not torch.equal(shown, order(SKEWED, 1))
    assert not torch.equal(shown.sort().values, order(SKEWED, 1).sort().values), "another part of the large class"


@pytest.mark.parametrize("labels", [[0, 0, 0, 1, 3], [0, -1, -1, 0, 1, 0], [-1, -1], [2, 2, 2]])
def test_an_epoch_has_as_many_images_as_before(labels: list[int]) -> None:
    of = torch.tensor(labels)
    shown = of[order(of)]
    assert len(shown) == len(of) and (shown < 0).sum() == (of < 0).sum()
    counts = shown[shown >= 0].bincount(minlength=4)
    there = counts[of[of >= 0].unique()]
    assert not len(there) or there.max() - there.min() <= 1


def test_repetitions_are_counted_in_the_order_in_which_they_come() -> None:
    assert times_before(torch.tensor([4, 1, 4, 4, 0, 1])).tolist() == [0, 0, 1, 2, 0, 1]


def test_a_repeated_image_has_other_views() -> None:
    loader = MemoryLoader(skewed(), 8, CPU, train=True, seed=3, strong=True, balance=True)
    batches = list(loader.epoch(5))
    index = torch.cat([batch.index for batch in batches])
    views = torch.cat([batch.view for batch in batches if batch.view is not None])
    strong = torch.cat([batch.strong for batch in batches if batch.strong is not None])
    assert SKEWED[index].bincount().tolist() == [10, 10, 10]
    plain = loader.views(5)
    first = times_before(index) == 0
    assert torch.equal(views[first], plain[index[first]]), "the first time it has the view that it has without balance"
    of_one = views[index == 20]
    assert len(of_one) >= 3 and len(set(of_one.tolist())) == len(of_one)
    assert len({tuple(image.flatten().tolist()) for image in strong[index == 20]}) == len(of_one)
    for batch in batches:
        assert batch.view is not None and batch.place is not None
        assert torch.equal(batch.image, loader.images(batch.index, batch.view))
        assert torch.equal(batch.place[0], batch.index) and torch.equal(batch.place[1], batch.view)


def test_an_epoch_is_continued_and_shared(tmp_path: Path) -> None:
    whole = list(MemoryLoader(skewed(), 8, CPU, train=True, seed=3, balance=True).epoch(5))
    rest = list(MemoryLoader(skewed(), 8, CPU, train=True, seed=3, balance=True).epoch(5, done=2))
    assert all(torch.equal(a.image, b.image) for a, b in zip(whole[2:], rest, strict=True))
    halves = [
        list(MemoryLoader(skewed(), 8, CPU, train=True, seed=3, balance=True, share=Share(rank, 2)).epoch(5))
        for rank in (0, 1)
    ]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(batch.image, torch.cat([part.image for part in parts]))


def test_evaluation_is_not_balanced() -> None:
    (batch,) = MemoryLoader(skewed(), 30, CPU, train=False, balance=True).epoch(0)
    assert batch.index.tolist() == list(range(30))


@pytest.mark.parametrize("workers", [0, 1])
def test_streams_are_balanced(tmp_path: Path, workers: int) -> None:
    files = without(class_folders((40, 30), train=2), "val")
    files |= {f"train/cat/{n}.png": encoded(picture((40, 30), n)) for n in range(2, 12)}
    data = hkd.load_dataset(f"folder:{write_files(tmp_path, files)}")
    loader = make_loader(data, 4, CPU, train=True, seed=1, views=9, workers=workers, balance=True, strong=True)
    batches = list(loader.epoch(2))
    index, view = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("index", "view"))
    strong = torch.cat([batch.strong for batch in batches if batch.strong is not None])
    labels = data.labels[index]
    assert sorted(labels.bincount().tolist()) == [5, 5, 6]
    rare = index == index[labels == 1][0]
    assert rare.sum() >= 2 and len(set(view[rare].tolist())) == rare.sum(), "an image is shown in several views"
    assert len({tuple(image.flatten().tolist()) for image in strong[rare]}) == rare.sum()
    again = list(loader.epoch(2, done=1))
    assert all(torch.equal(a.image, b.image) for a, b in zip(batches[1:], again, strict=True))
    assert AGAIN > 1_000_000, "more than there are epochs"


def test_weights_of_classes() -> None:
    weights = class_weights(torch.tensor([0, 0, 0, 1, -1, 3, 3]), 5)
    assert torch.allclose(weights, torch.tensor([6 / 9, 6 / 3, 1.0, 6 / 6, 1.0]))
    assert class_weights(SKEWED, 3)[SKEWED].mean().item() == pytest.approx(1)
    assert class_weights(torch.tensor([-1, -1]), 2).tolist() == [1, 1]


def test_the_weighted_cross_entropy_against_plain_arithmetic() -> None:
    logits = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    label, weight = torch.tensor([0, 2, -1, 1, 1, 0]), torch.tensor([0.5, 2.0, 1.25])
    found, expected = (f(logits, label, weight) for f in (cross_entropy, weighted_cross_entropy))
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_a_distiller_weighs_the_cross_entropy_of_its_training_alone() -> None:
    weight = class_weights(SKEWED, 3)
    plain, weighed = (hkd.Distiller(hkd.create_model("resnet8", 3), class_weights=w) for w in (None, weight))
    weighed.load_state_dict(plain.state_dict())
    image, label = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 1])
    out = weighed(image, label)
    assert out.logits is not None
    torch.testing.assert_close(out.loss.double(), weighted_cross_entropy(out.logits.double(), label, weight.double()))
    plain.load_state_dict(weighed.state_dict())
    torch.testing.assert_close(plain.eval()(image, label).loss, weighed.eval()(image, label).loss)
    for wrong in (torch.ones(2), [1, 1, 1], torch.tensor([1, -1, 1.0])):
        with pytest.raises(hkd.RequestError, match=r"class_weights: expected \(3,\) numbers from 0; got"):
            hkd.Distiller(hkd.create_model("resnet8", 3), class_weights=wrong)


def test_runs_that_balance(tmp_path: Path) -> None:
    data = skewed(8)
    keys, accuracies = set(), []
    for balance in ("none", "sampler", "loss"):
        config = hkd.TrainConfig(
            student="resnet8", epochs=2, batch_size=10, balance=balance, run=str(tmp_path / balance), device="cpu"
        )
        result = hkd.train(config, train_data=data, test_data=data)
        keys.add(result.summary["key"])
        accuracies.append(result.summary["balanced_accuracy"])
    assert len(keys) == 3 and all(0 <= accuracy <= 100 for accuracy in accuracies)
    weights = [(tmp_path / balance / "model.safetensors").read_bytes() for balance in ("none", "sampler", "loss")]
    assert len(set(weights)) == 3
    spec = hkd.RunSpec.from_flat({"method": "kd", "ce_weight": 0, "balance": "loss"})
    with pytest.raises(hkd.RequestError, match="balance: loss weighs the cross-entropy, whose weight is 0"):
        spec.resolved()
    with pytest.raises(hkd.RequestError, match="balance: expected one of none, sampler, loss; got 'both'"):
        hkd.RunSpec.from_flat({"balance": "both"})


@pytest.mark.parametrize("balance", ["sampler", "loss"])
def test_a_balanced_distillation_with_memories_continues_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, balance: str
) -> None:
    data, teacher = skewed(8), hkd.create_model("resnet8", 3)

    def distilled(run: str) -> hkd.Result:
        settings = {"num_negatives": 8, "embedding_dim": 8}
        config = hkd.DistillConfig(
            method="hkd+kd", epochs=3, batch_size=10, balance=balance, run=str(tmp_path / run), device="cpu", threads=1,
            settings=settings,
        )  # fmt: skip
        student = hkd.create_model("resnet8", 3)
        student.load_state_dict(teacher.state_dict())
        return hkd.distill(config, student, teacher, train_data=data, test_data=data)

    whole, calls = distilled("whole"), 0
    set_epoch = hkd.Distiller.set_epoch

    def die(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        set_epoch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(hkd.Distiller, "set_epoch", die)
        with pytest.raises(KeyboardInterrupt):
            distilled("parts")
    parts = distilled("parts")
    assert whole.weights.read_bytes() == parts.weights.read_bytes()


def test_accuracies_of_classes() -> None:
    label, predicted = torch.tensor([0, 0, 0, 0, 2, 2]), torch.tensor([0, 0, 0, 1, 2, 0])
    found = Evaluation(66.7, 100.0, 1.0, 6, predicted, label, ("a", "b", "c"))
    images, right = found.by_class
    assert images.tolist() == [4, 0, 2] and right.tolist() == [3, 0, 1]
    assert found.balanced_accuracy == pytest.approx((75 + 50) / 2), "of the classes that have images"


def test_without_balance_a_key_stays_as_it_was() -> None:
    keys = {hkd.RunSpec.from_flat(values).key() for values in ({}, {"balance": "none"})}
    assert len(keys) == 1

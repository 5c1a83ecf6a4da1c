"""A loop of one's own does what hkd's loop does; compiled, under autocast and with accumulated gradients, too."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils.data import DataLoader

import hkd
from hkd.data import make_loader, open_data
from hkd.models.fold import fold_batch_norms
from tests.loops.setting import B, Losses, N, build, example, images, plain_loop


@pytest.fixture
def own_loop(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return example("own_loop", monkeypatch)


def test_the_loop_of_the_examples_is_short_and_learns(own_loop: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(inspect.getsource(own_loop.fit).splitlines()) <= 15
    assert len(inspect.getsource(own_loop.Indexed.__getitem__).splitlines()) == 2
    own_loop.main(epochs=3)
    teacher, student = (float(line.split()[1]) for line in capsys.readouterr().out.splitlines())
    assert teacher > 50 and student > 50


@pytest.mark.parametrize("method", ["hkd", "ft"])
def test_the_loop_of_the_examples_is_the_one_the_others_are_compared_with(
    own_loop: ModuleType, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"init_epochs": 1} if method == "ft" else {}
    distiller = build(method, **options)
    losses = Losses(distiller)
    monkeypatch.setattr(own_loop, "DataLoader", lambda data, size, **_: DataLoader(data, size))  # in order
    own_loop.fit(distiller, images(), 2, B)
    assert losses.values == plain_loop(build(method, **options), own_loop.Indexed(images()), 2)
    assert len(losses.values) == (2 + (method == "ft")) * N // B


@pytest.mark.parametrize("method", ["hkd+kd", "crd", "dkd", "kd"])
def test_two_steps_are_those_of_the_projects_loop_to_the_bit(tmp_path: Path, method: str) -> None:
    torch.manual_seed(5)
    teacher = hkd.create_model("resnet14", 10)
    config = hkd.DistillConfig(
        run=str(tmp_path / "run"), student="resnet8", method=method, epochs=1, limit_train=4, batch_size=20, seed=7,
        device="cpu", tensorboard=False, keep_checkpoints=True,
    )  # fmt: skip
    result = hkd.distill(config, teacher=teacher)

    data = open_data(config.spec().data)
    torch.manual_seed(7)
    student = hkd.create_model("resnet8", 10)
    distiller = hkd.Distiller(
        student, teacher, method.removesuffix("+kd"), num_samples=len(data.train), labels=data.train.labels,
        kd_weight=1.0 if "+" in method else None, image_size=data.image_size, seed=7,
    )  # fmt: skip
    fold_batch_norms(distiller.teachers[0], data.image_size)  # as hkd's loop does for speed
    for network in (student, *distiller.teachers):
        network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    distiller.set_epoch(0, 1)
    losses = []
    for batch in make_loader(data.train, 20, torch.device("cpu"), train=True, seed=7).epoch(0):
        out = distiller(batch.image, batch.label, batch.index)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.loss.item())
    assert len(losses) == 2

    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert row["loss"] == pytest.approx(sum(losses) / 2, rel=1e-6), "which is a mean in float32"
    trained = result.model.state_dict()
    for name, value in student.state_dict().items():
        assert torch.equal(trained[name], value), name
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["method"]
    mine = {} if distiller.method is None else distiller.method.state_dict()
    assert saved.keys() == mine.keys()
    assert all(torch.equal(saved[name], value) for name, value in mine.items())


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", hkd.list_methods())
def test_autocast(method: str, own_loop: ModuleType) -> None:
    image, label = images().tensors
    batch = image[:B], label[:B], torch.arange(B)
    options = {} if method == "kd" else {"method_weight": 1.0}
    distiller, exact = build(method, **options), build(method, **options)
    for epoch in range(max(distiller.first_epoch, -1), 1):
        distiller.set_epoch(epoch, 1)
        exact.set_epoch(epoch, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = distiller(*batch, strong=image[:B].flip(3))
        out.loss.backward()
        assert all(term.dtype == torch.float32 and term.isfinite() for term in (out.loss, *out.terms.values()))
        for name, value in exact(*batch, strong=image[:B].flip(3)).terms.items():
            torch.testing.assert_close(out.terms[name], value, rtol=0.25, atol=0.05)
    assert all(p.grad.isfinite().all() for p in distiller.parameters() if p.grad is not None)


# -- accumulation -----------------------------------------------------------------------------------------------------


def test_accumulated_gradients_are_those_of_the_batch_where_images_are_independent() -> None:
    image, label = images().tensors
    whole, parts = build("kd"), build("kd")
    for distiller in (whole, parts):
        for module in distiller.student.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()  # whose statistics are of the micro-batch, too
    whole(image, label, torch.arange(N)).loss.backward()
    for index in torch.arange(N).split(B):
        (parts(image[index], label[index], index).loss / (N / B)).backward()
    for expected, value in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(value.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_graphs_and_banks_are_those_of_the_micro_batch() -> None:
    image, label = images().tensors
    distiller, alone = build("hkd", k=4), build("hkd", k=4)
    first, second = torch.arange(8), torch.arange(8, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        terms = [distiller(image[i], label[i], i).terms for i in (first, second)]
    assert all(torch.equal(terms[0][name], value) for name, value in alone(image[:8], label[:8], first).terms.items())
    bank = distiller.method.loss.student.bank
    assert bank.seen.nonzero().flatten().tolist() == list(range(16)), "both have been to the bank"
    assert distiller.method.loss.sampler.draws == 2
    with pytest.warns(UserWarning, match="k: neighbourhoods of 8 images in a graph of 8; use batches of 16"):
        build("hkd", k=8)(image[:8], label[:8], first)


# -- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["hkd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dkd", "sskd"))])
def test_compiled_networks_stay_two_graphs(method: str) -> None:
    """Draws, warm-ups, epochs and the checks of the first steps compile nothing anew."""
    torch._dynamo.reset()
    image, label = images().tensors
    counter = CompileCounter()
    distiller, eager = build(method), build(method)
    names = set(distiller.state_dict())
    distiller.compile(backend=counter)
    graphs = []
    for epoch in range(5):
        for one in (distiller, eager):
            one.set_epoch(epoch, 5)
        index = torch.randperm(N)[:B]
        out, expected = distiller(image[index], label[index], index), eager(image[index], label[index], index)
        torch.testing.assert_close(out.loss, expected.loss, rtol=1e-6, atol=1e-6)
        out.loss.backward()
        graphs.append(counter.frame_count)
    assert set(graphs) == {graphs[0]} and graphs[0] <= 2
    distiller.eval()
    eager.eval()
    for _ in range(2):
        out = distiller(image, label)
        torch.testing.assert_close(out.logits, eager(image, label).logits, rtol=1e-4, atol=1e-5)
    assert set(distiller.state_dict()) == names, "compiled in place"
    assert counter.frame_count <= graphs[0] + 2


@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    torch._dynamo.reset()
    image, label = images().tensors
    distiller, eager = build("hkd"), build("hkd")
    compiled = torch.compile(distiller)
    for index in torch.arange(N).split(B):
        losses = [one(image[index], label[index], index).loss for one in (compiled, eager)]
        torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)
        losses[0].backward()
    grads = [p.grad for p in distiller.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)

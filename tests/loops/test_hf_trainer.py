"""The subclass of Hugging Face's Trainer in the examples does what a plain loop does."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import SequentialSampler

from hkd.distiller import Distiller
from tests.loops.setting import LABELS, B, Losses, N, build, example, images, plain_loop

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")
EPOCHS = 2


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return example("hf_trainer", monkeypatch)


def trainer(module: ModuleType, distiller: Distiller, folder: Path, epochs: int = EPOCHS, **options: Any) -> Any:
    made = module.make_trainer(
        distiller, images(), images(), output_dir=str(folder), num_train_epochs=epochs - distiller.first_epoch,
        use_cpu=True, report_to="none", disable_tqdm=True, **{"batch_size": B} | options,
    )  # fmt: skip
    made._get_train_sampler = lambda *_: SequentialSampler(range(N))
    return made


@pytest.mark.parametrize(("method", "options"), [("hkd", {}), ("dkd", {}), ("ft", {"init_epochs": 1})])
def test_its_losses_are_those_of_the_plain_loop(
    module: ModuleType, method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    expected = plain_loop(build(method, **options), module.Indexed(images()), EPOCHS)
    distiller = build(method, **options)
    losses, fitted = Losses(distiller), trainer(module, distiller, tmp_path)
    result = fitted.train()
    assert losses.values == pytest.approx(expected, rel=1e-6)
    assert len(expected) == (EPOCHS + (method == "ft")) * N // B
    assert result.training_loss == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert distiller.epochs == EPOCHS and not distiller.teachers[0].training

    found = fitted.evaluate()
    image, label = images().tensors
    distiller.eval()
    assert found["eval_top1"] == pytest.approx(
        100 * (distiller(image, label).logits.argmax(dim=1) == label).float().mean().item()
    )
    assert found["eval_loss"] == pytest.approx(distiller(image, label).loss.item(), rel=1e-4)


def test_a_checkpoint_holds_the_banks_and_not_the_teacher(module: ModuleType, tmp_path: Path) -> None:
    trainer(module, build("hkd"), tmp_path, save_strategy="epoch").train()
    last = tmp_path / f"checkpoint-{EPOCHS * N // B}"
    saved = load_file(last / "model.safetensors")
    assert {name.split(".")[0] for name in saved} == {"student", "method"}
    assert saved["method.loss.student.bank.seen"].all() and len(saved["method.loss.student.bank.rows"]) == len(LABELS)

    other, straight = build("hkd"), build("hkd")
    losses = Losses(other)
    trainer(module, other, tmp_path, EPOCHS + 1).train(resume_from_checkpoint=str(last))
    expected = plain_loop(straight, module.Indexed(images()), EPOCHS + 1)
    assert losses.values == pytest.approx(expected[-N // B :], rel=1e-6)
    for name, value in straight.method.state_dict().items():
        torch.testing.assert_close(other.method.state_dict()[name], value)


def test_accumulated_steps(module: ModuleType, tmp_path: Path) -> None:
    """Two micro-batches a step: the Trainer divides their losses, and each has its graph."""
    distiller = build("hkd", k=4)
    losses = Losses(distiller)
    fitted = trainer(module, distiller, tmp_path, 1, batch_size=B // 2, gradient_accumulation_steps=2)
    fitted.train()
    assert len(losses.values) == 2 * N // B and fitted.state.global_step == N // B
    by_hand = build("hkd", k=4)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    expected = []
    image, label = images().tensors
    for step, index in enumerate(torch.arange(N).split(B // 2)):
        loss = by_hand(image[index], label[index], index).loss
        (loss / 2).backward()
        expected.append(loss.item())
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
    assert losses.values == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_example_runs(module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module.main(epochs=2)

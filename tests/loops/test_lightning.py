"""The Lightning module of the examples does what a plain loop does."""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from hkd.distiller import Distiller
from tests.loops.setting import B, Losses, N, build, example, images, plain_loop

lightning = pytest.importorskip("lightning")
pytestmark = pytest.mark.filterwarnings("ignore")
EPOCHS = 2


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return example("lightning_module", monkeypatch)


def trainer(distiller: Distiller, **options: Any) -> Any:
    return lightning.Trainer(
        max_epochs=EPOCHS - distiller.first_epoch, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip


def loaders(module: ModuleType) -> tuple[DataLoader, DataLoader]:
    return DataLoader(module.Indexed(images()), B), DataLoader(images(), B)


@pytest.mark.parametrize(("method", "options"), [("hkd", {}), ("dkd", {}), ("ft", {"init_epochs": 1})])
def test_its_losses_are_those_of_the_plain_loop(module: ModuleType, method: str, options: dict[str, Any]) -> None:
    expected = plain_loop(build(method, **options), module.Indexed(images()), EPOCHS)
    distiller = build(method, **options)
    losses, fitted = Losses(distiller), trainer(distiller)
    fitted.fit(module.Distillation(distiller), *loaders(module))
    assert losses.values == pytest.approx(expected, rel=1e-6)
    assert len(expected) == (EPOCHS + (method == "ft")) * N // B
    image, label = images().tensors
    hits = distiller.eval()(image, label).logits.argmax(dim=1) == label
    assert fitted.callback_metrics["top1"] == pytest.approx(100 * hits.float().mean().item())
    assert distiller.epochs == EPOCHS and not distiller.teachers[0].training


def test_a_checkpoint_holds_the_banks_and_not_the_teacher(module: ModuleType, tmp_path: Path) -> None:
    distiller = build("hkd")
    fitted = trainer(distiller)
    fitted.fit(module.Distillation(distiller), *loaders(module))
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert {name.split(".")[1] for name in saved} == {"student", "method"}

    other = build("hkd")
    again = lightning.Trainer(max_epochs=EPOCHS + 1, accelerator="cpu", logger=False, enable_checkpointing=False,
                              enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    losses, straight = Losses(other), build("hkd")
    again.fit(module.Distillation(other), *loaders(module), ckpt_path=tmp_path / "last.ckpt")
    assert losses.values == pytest.approx(
        plain_loop(straight, module.Indexed(images()), EPOCHS + 1)[-N // B :], rel=1e-6
    )
    for name, value in straight.method.state_dict().items():
        torch.testing.assert_close(other.method.state_dict()[name], value)


@pytest.mark.slow
def test_the_example_runs(module: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(epochs=3).callback_metrics["top1"] > 50

"""The optimiser, its schedule, accumulation and the moving average of the student."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path

import pytest
import safetensors.torch
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import hkd
from hkd.config import DistillConfig, TrainConfig
from hkd.distiller import Distiller
from hkd.methods.kd import cross_entropy
from hkd.optimisation import OptimisationSpec
from hkd.runtime.optimizers import check_optimizer, make_optimizer, restore
from hkd.runtime.stopping import StopAction, Stopping
from hkd.trainer import Trainer


class Killed(BaseException):
    """Stands for a kill."""


class Plain(nn.Module):
    """A network without batch statistics, in which a batch is the sum of its images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image).mean(dim=(2, 3)))


def config(run: Path, **changes: object) -> TrainConfig:
    values = {"epochs": 2, "batch_size": 16, "limit_train": 8, "device": "cpu", "tensorboard": False, "run": str(run)}
    return TrainConfig(**values | changes)


def test_a_cosine_falls_from_the_learning_rate_behind_a_linear_warm_up() -> None:
    spec = OptimisationSpec(epochs=10, lr=0.4, min_lr=0.1, schedule="cosine", warmup_epochs=4)
    rising = [0.1, 0.2, 0.3, 0.4]
    falling = [0.25 + 0.15 * math.cos(math.pi * e / 6) for e in range(6)]
    assert [spec.lr_at(e) for e in range(10)] == pytest.approx(rising + falling)
    steps = OptimisationSpec(epochs=8, lr=1.0, warmup_epochs=2, milestones=(0.5,))
    assert [steps.lr_at(e) for e in range(8)] == pytest.approx([0.5, 1, 1, 1, 0.1, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "muon"])
def test_biases_and_norms_may_be_spared_the_weight_decay(name: str) -> None:
    distiller = Distiller(hkd.create_model("resnet8", 10))
    spared = make_optimizer(distiller, OptimisationSpec(optimizer=name, decay_all=False, weight_decay=0.3), 0.1)
    decays = {id(p): group["weight_decay"] for group in spared.param_groups for p in group["params"]}
    for key, parameter in distiller.named_parameters():
        assert decays[id(parameter)] == (0.3 if parameter.ndim > 1 else 0), key
    every = make_optimizer(distiller, OptimisationSpec(optimizer=name, weight_decay=0.3), 0.1)
    assert {group["weight_decay"] for group in every.param_groups} == {0.3}
    assert sum(len(group["params"]) for group in every.param_groups) == len(decays)


def test_a_transformer_says_what_else_is_spared() -> None:
    distiller = Distiller(hkd.create_model("timm:vit_tiny_patch16_224", 10))
    optimizer = make_optimizer(distiller, OptimisationSpec(decay_all=False, weight_decay=0.3), 0.1)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = dict(distiller.named_parameters())
    assert decays[id(names["student.module.pos_embed"])] == 0
    assert decays[id(names["student.module.head.weight"])] == 0.3


def test_the_default_is_the_papers() -> None:
    optimizer = make_optimizer(Distiller(Plain()), OptimisationSpec(), 0.05)
    assert type(optimizer) is torch.optim.SGD
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.05, 0.9, 5e-4, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adamww"}, "optimizer: unknown name 'adamww'; did you mean adamw"),
        ({"schedule": "cosine", "min_lr": 0.1}, "min_lr: expected at most the learning rate, 0.05; got 0.1"),
        ({"warmup_epochs": 2}, "warmup_epochs: expected fewer than the 2 epochs, 0 for none; got 2"),
        ({"ema": 1.0}, "ema: expected"),
        ({"clip_grad": 0.0}, "clip_grad: expected"),
        ({"label_smoothing": 1.0}, "label_smoothing: expected"),
        ({"accumulate": 0}, "accumulate: expected"),
        ({"accumulate": 3}, "accumulate: expected a divisor of the batch size, 16, with 2 images or more .* got 3"),
        ({"accumulate": 16}, "accumulate: expected a divisor of the batch size, 16, with 2 images or more .* got 16"),
        ({"optimizer": "adahessian"}, "optimizer: adahessian needs second derivatives"),
        ({"min_lr": 0.01}, "min_lr: expected with --schedule cosine; got 0.01 with multistep"),
        ({"schedule": "step"}, "schedule: expected"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(hkd.RequestError, match=message):
        hkd.train(config(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_an_optimiser_that_cannot_be_built_is_told() -> None:
    spec = OptimisationSpec(optimizer="bnbadamw8bit")
    check_optimizer(spec)
    with pytest.raises(hkd.RequestError, match="optimizer: timm cannot build bnbadamw8bit"):
        make_optimizer(Distiller(Plain()), spec, 0.1)


def test_smoothed_labels() -> None:
    torch.manual_seed(0)
    logits, label, smoothing = torch.randn(5, 4), torch.tensor([0, 3, -1, 2, 1]), 0.2
    total, wide = 0.0, logits.double()
    for row, y in zip(wide, label.tolist(), strict=True):
        if y >= 0:
            log_p = row - row.exp().sum().log()
            total += sum(-(smoothing / 4 + (1 - smoothing) * (c == y)) * log_p[c] for c in range(4))
    torch.testing.assert_close(cross_entropy(logits, label, smoothing=smoothing).double(), total / 4, rtol=1e-6, atol=0)
    distiller = Distiller(Plain(), label_smoothing=smoothing)
    image, label = torch.randn(6, 3, 8, 8), torch.arange(6)
    out = distiller(image, label)
    assert out.loss == cross_entropy(out.logits, label, smoothing=smoothing)
    assert distiller.eval()(image, label).loss == cross_entropy(out.logits, label)


def test_the_parts_of_a_batch_are_a_step_of_all_its_images(tmp_path: Path) -> None:
    """90 images: steps of 32, 32 and 26, which two parts of 16 and 10 make."""
    whole = hkd.train(config(tmp_path / "whole", batch_size=32, limit_train=9), Plain())
    parts = hkd.train(config(tmp_path / "parts", batch_size=32, limit_train=9, accumulate=2), Plain())
    assert parts.summary["images_per_second"] > 0
    for a, b in zip(whole.model.state_dict().values(), parts.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_bad_part_of_a_batch_drops_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever in the step it is; the average does not move, either."""
    forward, train_step, calls, moved = Distiller.forward, Trainer.train_step, [0], []

    def spoiling(self: Distiller, *given: object, **more: object) -> object:
        out = forward(self, *given, **more)
        calls[0] += self.training
        return out._replace(loss=out.loss * torch.nan) if self.training and calls[0] in (3, 6) else out

    def watched(self: Trainer, step: int, batch: hkd.Batch) -> None:
        networks = self.distiller.student, self.kept
        before = [deepcopy(dict(network.named_parameters())) for network in networks]
        train_step(self, step, batch)
        now = [dict(network.named_parameters()) for network in networks]
        student, average = (any(not torch.equal(b[k], n[k]) for k in b) for b, n in zip(before, now, strict=True))
        assert step == 2 or student == average  # the first update of the average is of the decay 0.37
        moved.append(student)

    monkeypatch.setattr(Distiller, "forward", spoiling)
    monkeypatch.setattr(Trainer, "train_step", watched)
    result = hkd.train(config(tmp_path / "run", epochs=1, ema=0.9, accumulate=2, skip_bad_steps=2), Plain())
    assert moved == [False, True, False, False, False, False, False, True, False, True]
    assert result.summary["skipped_steps"] == 2


def test_processes_agree_after_steps_of_the_optimiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every twentieth of them, whatever makes a step; only there can a run be saved."""
    action, asked = Stopping.action, []

    def watched(self: Stopping, step: int) -> StopAction:
        asked.append(step)
        return action(self, step)

    monkeypatch.setattr(Stopping, "action", watched)
    hkd.train(config(tmp_path / "run", epochs=1, batch_size=24, accumulate=3), Plain())
    assert asked == [1, 2, 3, 4]


def test_a_gradient_is_shortened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms, step = [], torch.optim.SGD.step

    def watched(self: torch.optim.SGD, *args: object, **kwargs: object) -> object:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.stack([g.norm() for g in grads]).norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    hkd.train(config(tmp_path / "clipped", clip_grad=0.01, epochs=1), Plain())
    assert norms and all(norm <= 0.0101 for norm in norms)
    norms.clear()
    hkd.train(config(tmp_path / "free", epochs=1), Plain())
    assert max(norms) > 0.02


def test_what_is_kept_is_the_moving_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    students: list[dict[str, Tensor]] = []
    optimise = Trainer._optimise

    def watched(self: Trainer, step: int) -> None:
        if not students:
            students.append(deepcopy(self.distiller.student.state_dict()))
        optimise(self, step)
        students.append(deepcopy(self.distiller.student.state_dict()))

    monkeypatch.setattr(Trainer, "_optimise", watched)
    result = hkd.train(config(tmp_path / "run", student="resnet8", batch_size=32, ema=0.8, accumulate=2))
    first, *later = students
    assert len(later) == 2 * 3
    saved = safetensors.torch.load_file(str(result.weights))
    for name, value in saved.items():
        if value.is_floating_point():
            average = first[name].double()
            if "running" in name:  # the first batch has changed the student's already
                average = torch.full_like(average, float("var" in name))
            for done, student in enumerate(later, 1):
                decay = min(0.8, 1 - (1 + done) ** (-2 / 3))
                average = decay * average + (1 - decay) * student[name]
            torch.testing.assert_close(value.double(), average, rtol=1e-5, atol=1e-6, msg=name)
            assert not torch.equal(value, later[-1][name])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_killed_run_of_all_of_it_ends_with_the_same_bits(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {
        "student": "resnet8", "teacher": "resnet14", "method": "hkd+kd", "epochs": 3, "optimizer": optimizer,
        "lr": 0.01, "schedule": "cosine", "warmup_epochs": 1, "accumulate": 2, "ema": 0.9, "clip_grad": 1.0,
        "label_smoothing": 0.1, "decay_all": False, "batch_size": 32, "limit_train": 8, "device": "cpu",
        "tensorboard": False, "save_minutes": 1e-6,
    }  # fmt: skip
    teacher = hkd.train(config(tmp_path / "teacher", student="resnet14", epochs=1))
    recipe["teacher_checkpoint"] = str(teacher.run)
    whole = hkd.distill(DistillConfig(**recipe, run=str(tmp_path / "whole")))
    train_step, taken = Trainer.train_step, []

    def killing(self: Trainer, step: int, batch: hkd.Batch) -> None:
        train_step(self, step, batch)
        taken.append(step)
        if len(taken) in (8, 9):  # in the second epoch, between two batches of a step and behind its last
            raise Killed

    monkeypatch.setattr(Trainer, "train_step", killing)
    asked = DistillConfig(**recipe, run=str(tmp_path / "parts"))
    for _ in range(2):
        with pytest.raises(Killed):
            hkd.distill(asked)
    parts = hkd.distill(asked)
    assert parts.summary["top1_last"] == whole.summary["top1_last"]
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), parts.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("optimizer", ["adafactor", "adan", "lamb", "lion", "madgrad", "muon", "nadam", "novograd"])
def test_optimisers_continue_where_they_stood(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some count their steps in a group of parameters, some keep a number for each parameter."""
    changes = {"optimizer": optimizer, "lr": 0.01, "decay_all": False, "save_minutes": 1e-6}
    whole = hkd.train(config(tmp_path / "whole", **changes), Plain())
    train_step = Trainer.train_step

    def killing(self: Trainer, step: int, batch: hkd.Batch) -> None:
        if step == 4:
            raise Killed
        train_step(self, step, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", killing)
        with pytest.raises(Killed):
            hkd.train(config(tmp_path / "parts", **changes), Plain())
    parts = hkd.train(config(tmp_path / "parts", **changes), Plain())
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), parts.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_the_training_does_not_inherit_the_steps_of_an_initialisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step, counts = Trainer.train_step, []

    def watched(self: Trainer, step: int, batch: hkd.Batch) -> None:
        train_step(self, step, batch)
        counts.append((self.state.epoch, int(self.optimizer.param_groups[0]["step"])))

    hkd.train(config(tmp_path / "teacher", student="resnet14", epochs=1))
    monkeypatch.setattr(Trainer, "train_step", watched)
    hkd.distill(
        DistillConfig(
            run=str(tmp_path / "run"), student="resnet8", teacher="resnet14", method="ft",
            settings={"init_epochs": 1}, teacher_checkpoint=str(tmp_path / "teacher"), optimizer="lamb", epochs=1,
            batch_size=40, limit_train=8, device="cpu", tensorboard=False,
        )
    )  # fmt: skip
    assert counts == [(-1, 1), (-1, 2), (0, 1), (0, 2)]


def test_an_optimiser_s_own_generator_continues() -> None:
    """Kron balances its preconditioners by draws of its own."""
    weights = [nn.Parameter(torch.ones(3, 3)) for _ in range(2)]
    first, second = (create_optimizer_v2([w], "kron", lr=0.1) for w in weights)
    for optimizer, weight, steps in ((first, weights[0], 3), (second, weights[1], 1)):
        for _ in range(steps):
            weight.grad = torch.ones(3, 3)
            optimizer.step()
    assert first.rng.getstate() != second.rng.getstate()
    restore(second, first.state_dict())
    assert first.rng.getstate() == second.rng.getstate()

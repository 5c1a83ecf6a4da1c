"""The optimiser of a run, and the moving average of its student."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from hkd.distiller import Distiller
from hkd.errors import RequestError, unknown
from hkd.optimisation import OptimisationSpec

SGD = "sgd"
"""torch's, with plain momentum, as in the paper; timm means Nesterov's by this name."""
COUNT = "step"
"""Where lamb and adan count their steps, in a group of parameters; others have it in the state of each."""
MOMENTA: dict[str, torch.Size | None] = {"momentum_buffer": None, "exp_avg": None, "exp_avg_sq": torch.Size(())}
"""Their shape, where it may be another than the parameter's: novograd has one second moment for each."""


def _timm(module: str) -> Any:
    """A part of timm, imported when it is needed."""
    return importlib.import_module(f"timm.{module}")


def check_optimizer(spec: OptimisationSpec) -> None:
    """Raises :class:`RequestError` for an optimiser that timm does not have, and numbers that contradict each other."""
    if spec.optimizer != SGD:
        timm = _timm("optim")
        known = timm.list_optimizers()
        if spec.optimizer not in known:
            raise unknown("optimizer", spec.optimizer, [SGD, *known])
        if timm.get_optimizer_info(spec.optimizer).second_order:
            raise RequestError(f"optimizer: {spec.optimizer} needs second derivatives, which no training here computes")
    if spec.batch_size % spec.accumulate or spec.batch_size < 2 * spec.accumulate:
        raise RequestError(
            f"accumulate: expected a divisor of the batch size, {spec.batch_size}, with 2 images or more in each part; "
            f"got {spec.accumulate}"
        )
    if spec.schedule != "cosine" and spec.min_lr > 0:
        raise RequestError(f"min_lr: expected with --schedule cosine; got {spec.min_lr:g} with {spec.schedule}")
    if spec.schedule == "cosine" and spec.min_lr > spec.lr:
        raise RequestError(f"min_lr: expected at most the learning rate, {spec.lr:g}; got {spec.min_lr:g}")
    if spec.warmup_epochs >= spec.epochs and spec.warmup_epochs > 0:
        raise RequestError(
            f"warmup_epochs: expected fewer than the {spec.epochs} epochs, 0 for none; got {spec.warmup_epochs}"
        )


def make_optimizer(distiller: Distiller, spec: OptimisationSpec, lr: float) -> torch.optim.Optimizer:
    """The optimiser of all that is trained.

    Args:
        distiller: whose parameters are optimised. Without ``decay_all`` those of one dimension, and those that the
            student's own ``no_weight_decay()`` names, have no weight decay.
        spec: its settings.
        lr: its learning rate at the start.

    Raises:
        RequestError: timm cannot build it.
    """
    settings: dict[str, Any] = {"lr": lr, "weight_decay": spec.weight_decay, "momentum": spec.momentum}
    groups: Any = distiller.parameters()
    if not spec.decay_all:
        spared = [name for name, _ in distiller.named_parameters() if _spared(distiller.student, name)]
        groups = _timm("optim").param_groups_weight_decay(distiller, spec.weight_decay, no_weight_decay_list=spared)
    if spec.optimizer == SGD:
        return torch.optim.SGD(groups, **settings)
    try:
        made: torch.optim.Optimizer = _timm("optim").create_optimizer_v2(groups, opt=spec.optimizer, **settings)
    except Exception as error:  # of a package that is not installed, or a device that is not there
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RequestError(f"optimizer: timm cannot build {spec.optimizer} ({reason})") from error
    return made


def forget(optimizer: torch.optim.Optimizer) -> None:
    """Puts an optimiser back to its start: momenta, and the steps that some count in their groups of parameters."""
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group.pop(COUNT, None)


def restore(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Puts an optimiser where it stood, with its present settings.

    Args:
        optimizer: of the same parameters in the same groups.
        saved: what its ``state_dict`` was.

    Raises:
        ValueError: a part of it is of another shape than its parameter, or no number of steps.
    """
    groups = optimizer.state_dict()["param_groups"]
    for group, was in zip(groups, saved["param_groups"], strict=True):
        if COUNT in was:
            group[COUNT] = _checked_count(was[COUNT])
    further = {name: saved[name] for name in optimizer.state_dict() if name in saved}  # kron has a generator's state
    optimizer.load_state_dict(further | {"param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            # Some keep a count, or sums over rows and columns, or a number; momenta have the parameter's shape.
            odd = isinstance(value, Tensor) and value.numel() > parameter.numel()
            if odd or (name in MOMENTA and value is not None and value.shape not in (parameter.shape, MOMENTA[name])):
                raise ValueError(f"optimizer: {name} of another shape than its parameter")


def _checked_count(count: Any) -> Any:
    """Steps, a number or a tensor of one, as different optimisers have them."""
    value = count.item() if isinstance(count, Tensor) and count.ndim == 0 else count
    if type(value) not in (int, float) or not 0 <= value < 2**53:
        raise ValueError("optimizer: expected a number of steps")
    return count


def _spared(student: nn.Module, name: str) -> bool:
    """Whether a network's author takes a parameter out of the weight decay, as vision transformers do."""
    for part_name, part in student.named_modules():
        listed = part.no_weight_decay() if callable(getattr(part, "no_weight_decay", None)) else ()
        if any(name == ".".join(filter(None, ("student", part_name, entry))) for entry in listed):
            return True
    return False


def moving_average(student: nn.Module, decay: float) -> Any:
    """timm's exponential moving average of a network, (1 - d) of each step: ``update(student, step)``, ``module``.

    d is the decay, and less in the first steps: 1 - (1 + step)^(-2/3), so that the start is soon forgotten.
    """
    return _timm("utils").ModelEmaV3(student, decay=decay, use_warmup=True)

"""A frozen network's batch norms, put into the convolutions before them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hkd.models.base import Model, evaluating
from hkd.types import ModelOutput

NORMS = (nn.BatchNorm2d,)


def fold_batch_norms(model: Model, image_size: int) -> int:
    r"""Puts batch norms into the convolutions that they alone read, in place; for networks that are not trained.

    .. math:: \mathrm{bn}(w * x + b) = \frac{\gamma}{\sigma}\, w * x + \frac{\gamma}{\sigma} (b - \mu) + \beta

    A noise image tells which norm reads which convolution, and whether all outputs, stage maps included, are still the
    same; where they are not, the network stays as it was.

    Args:
        model: in evaluation mode, now and later.
        image_size: side in pixels of an image that it takes.

    Returns:
        How many norms were folded.
    """
    like = next(model.parameters())
    image = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(like)
    with evaluating(model), torch.no_grad():
        pairs = _pairs(model, image)
        before = model(image)
        kept = {name: model.get_submodule(name) for pair in pairs for name in pair}
        for convolution, norm in pairs:
            _fold(model, convolution, norm)
        if _same(before, model(image)):
            return len(pairs)
        for name, module in kept.items():
            model.set_submodule(name, module)
    return 0


def _pairs(model: Model, image: Tensor) -> list[tuple[str, str]]:
    """(convolution, norm) by name, where the norm reads the convolution and nothing else does."""
    made: dict[int, tuple[str, Tensor]] = {}  # output of a convolution -> its name
    read: dict[str, int] = {}  # norm -> what it reads
    calls: Counter[str] = Counter()

    def watch(name: str) -> Any:
        def hook(module: nn.Module, seen: tuple[Tensor, ...], out: Tensor) -> None:
            calls[name] += 1
            if isinstance(module, nn.Conv2d):
                made[id(out)] = name, out  # kept alive, so that no other tensor gets its id
            elif id(seen[0]) in made:
                read[name] = id(seen[0])

        return hook

    watched = [(n, m) for n, m in model.named_modules() if type(m) is nn.Conv2d or _folds(m)]
    handles = [module.register_forward_hook(watch(name)) for name, module in watched]
    try:
        with _Reads(made) as reads:
            out = model(image)
    finally:
        for handle in handles:
            handle.remove()
    reads.of.update(id(x) for x in (*out.features, *out.preactivations))  # a stage map is read by the caller
    return [
        (made[key][0], norm)
        for norm, key in read.items()
        if calls[norm] == 1 and calls[made[key][0]] == 1 and reads.of[key] == 1
    ]


def _folds(module: nn.Module) -> bool:
    return type(module) in NORMS and module.running_mean is not None and module.weight is not None


class _Reads(TorchFunctionMode):
    """Counts how many operations read each of some tensors, given by their ids."""

    def __init__(self, watched: Container[int]) -> None:
        super().__init__()
        self.watched = watched
        self.of: Counter[int] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [*args, *(kwargs or {}).values()]
        inner = [x for a in given if isinstance(a, list | tuple) for x in a]
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor | list | tuple) and not isinstance(result, torch.Size):  # not its shape or type
            self.of.update(id(x) for x in [*given, *inner] if id(x) in self.watched)
        return result


def _fold(model: Model, convolution: str, norm: str) -> None:
    conv, bn = model.get_submodule(convolution), model.get_submodule(norm)
    assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
    assert bn.running_mean is not None and bn.running_var is not None
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    shift = -bn.running_mean.double() if conv.bias is None else conv.bias.double() - bn.running_mean.double()
    weight, bias = conv.weight.double() * scale[:, None, None, None], scale * shift + bn.bias.double()
    folded = copy.copy(conv)  # with its hooks
    folded._parameters = {
        name: nn.Parameter(value.to(conv.weight.dtype), requires_grad=False)
        for name, value in (("weight", weight), ("bias", bias))
    }
    nothing = nn.Identity()
    nothing._forward_hooks.update(bn._forward_hooks)  # a wrapped network's maps are read where they were
    model.set_submodule(convolution, folded)
    model.set_submodule(norm, nothing)


def _same(before: ModelOutput, after: ModelOutput) -> bool:
    pairs = [(before.logits, after.logits), (before.embedding, after.embedding)]
    pairs += [*zip(before.features, after.features, strict=True)]
    pairs += [*zip(before.preactivations, after.preactivations, strict=True)]
    return all((a - b).abs().max() <= 1e-4 * a.abs().max().clamp(min=1e-3) for a, b in pairs)

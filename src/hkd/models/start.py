"""A network that starts from the weights in a file, which may have another head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hkd.errors import RequestError
from hkd.models.base import Model, evaluating
from hkd.models.external import WrappedModel
from hkd.models.weights import load_checkpoint, read_about, shapes_in, state_of
from hkd.outside import printable


@dataclass(frozen=True)
class Start:
    """What a network takes from a file.

    Attributes:
        fresh: the tensors of its classifier, where the file's is for other classes or is not there; else none.
        reason: what the file has in its place, in words.
    """

    fresh: frozenset[str] = frozenset()
    reason: str = ""

    @property
    def head_fits(self) -> bool:
        return not self.fresh


def look_at(model: Model, path: str | Path, classes: Sequence[str]) -> Start:
    """What :func:`start_from` would take from a file; the network stays as it is.

    Args:
        model: the network.
        path: of the file.
        classes: names of the classes that it is to tell apart.

    Raises:
        RequestError: the file cannot be read, or does not fit beside its head.
    """
    own, found = state_of(model), shapes_in(path, model)
    head = head_of(model)
    names = frozenset(name for name in own if name.startswith(f"{head}.")) if head else frozenset()
    start = Start()
    if names and not any(name in found for name in names):
        start = Start(names, "no head")
    elif all(name in found and found[name][1:] == own[name].shape[1:] for name in names):
        widths = {found[name][0] for name in names}
        learnt = read_about(path).get("classes")
        if widths != {len(classes)}:
            start = Start(names, f"a {max(widths):,}-class head")
        elif learnt is not None and learnt != list(classes):
            start = Start(names, "the head of other classes")
    wrong = [name for name in own if name not in start.fresh and found.get(name) != own[name].shape]
    if wrong or found.keys() - own.keys():
        load_checkpoint(model, path, start.fresh)  # which says what does not fit, and loads nothing
    return start


def start_from(model: Model, path: str | Path, classes: Sequence[str]) -> Start:
    """Loads the weights of a file of the same architecture. A head of other classes than the network's stays fresh.

    The network's normalisation becomes the one that the file says, or else that of the library's own weights.

    Args:
        model: the network, with a head for the classes.
        path: of a .safetensors file, or a PyTorch file of weights alone.
        classes: names of the classes that it is to tell apart.

    Returns:
        What was not taken.

    Raises:
        RequestError: the file cannot be read, or anything but its head does not fit; the network is then as it was.
    """
    start = look_at(model, path, classes)
    load_checkpoint(model, path, start.fresh)
    about = read_about(path)
    model.normalisation = (
        (tuple(about["mean"]), tuple(about["std"])) if "mean" in about else model.library_normalisation
    )
    return start


def told(path: str | Path, model: Model, start: Start, classes: int) -> str:
    """A line about a head that was replaced; empty where none was."""
    if start.head_fits:
        return ""
    return f"{printable(path, 4096)} has {start.reason}; {model.name} gets a fresh one of {classes} classes"


def head_layer(model: Model) -> nn.Linear | nn.Conv2d | None:
    """The layer that :func:`head_of` names."""
    name, root = head_of(model), model.module if isinstance(model, WrappedModel) else model
    layer = root.get_submodule(name) if name else None
    return layer if isinstance(layer, nn.Linear | nn.Conv2d) else None


@torch.no_grad()
def head_of(model: Model) -> str:
    """The dotted name of the linear layer, or 1x1 convolution, that makes the logits; empty where none does."""
    if isinstance(model, WrappedModel):
        return model.classifier
    outputs: dict[str, Tensor] = {}
    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}

    def watch(name: str) -> object:
        return layers[name].register_forward_hook(lambda _, __, out: outputs.__setitem__(name, out))

    hooks = [watch(name) for name in layers]
    like, side = next(model.parameters()), model.image_size
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(like)
    try:
        with evaluating(model):
            logits = model(image).logits
    except Exception as error:  # a foreign network may say anything
        raise RequestError(f"model: {model.name} does not run on a {side}x{side} image ({error})") from error
    finally:
        for hook in hooks:
            hook.remove()  # type: ignore[attr-defined]
    made = [name for name, out in outputs.items() if out.numel() == logits.numel() and out.flatten(1).equal(logits)]
    return made[-1] if made else ""

"""Weights on disk: written with safetensors, read from there or from the field's checkpoint files."""

from __future__ import annotations

import errno
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hkd.errors import RequestError
from hkd.files import replacing_path
from hkd.models.base import Model
from hkd.models.external import WrappedModel

# Under which keys a checkpoint file keeps a network's weights, and what wrappers put before the names of parameters.
CONTAINERS = ("model", "state_dict", "student", "net", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.", "student.", "model.")


def save_model(model: Model, path: str | Path, **about: Any) -> None:
    """Writes a network's weights with what it takes to use them.

    Args:
        model: whose ``name`` and ``info`` go into the file.
        path: of the .safetensors file.
        about: more to write beside them, such as the class names and the normalisation; anything JSON can say.

    Raises:
        OSError: the file cannot be written.
    """
    about = {"model": model.name, "num_classes": model.info.num_classes, **about}
    # A copy of each tensor in plain order: files keep neither channels-last strides nor shared memory.
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in _module(model).state_dict().items()
    }
    try:
        with replacing_path(Path(path)) as partial:  # a crash while writing leaves what was there
            safetensors.torch.save_file(state, str(partial), metadata={"hkd": json.dumps(about)})
    except safetensors.SafetensorError as error:  # that library's word for a full disk
        raise OSError(errno.EIO, f"could not be written: {error}", str(path)) from error


def load_model(path: str | Path) -> tuple[Model, dict[str, Any]]:
    """Rebuilds a network from a file that :func:`save_model` wrote. Returns it with what stands beside its weights."""
    from hkd.models import create_model

    about = read_about(path)
    if "model" not in about:
        raise RequestError(f"checkpoint: {path} does not say which network it holds; name the model")
    model = create_model(about["model"], about["num_classes"])
    load_checkpoint(model, path)
    return model, about


def read_about(path: str | Path) -> dict[str, Any]:
    """What :func:`save_model` wrote beside the weights; empty for files of other origin."""
    path = existing(path)
    if path.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get("hkd", "{}"))
            return about
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise RequestError(f"checkpoint: {path} is not a readable safetensors file ({error})") from error


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Loads weights into a network, all of them and no others.

    Reads .safetensors files and, without ever running a pickle's code, PyTorch files: a plain state dict, a
    RepDistiller or mdistiller checkpoint, or a checkpoint of a run folder.

    Raises:
        RequestError: the file is missing or corrupt, needs more than weights to be unpickled, or holds another
            architecture or number of classes.
    """
    state = _read(existing(path))
    target = _module(model)
    own = target.state_dict()
    state = _strip_prefixes(state, own)
    if difference := _difference(own, state):
        raise RequestError(f"checkpoint: {path} does not fit {_name(model)}: {difference}")
    target.load_state_dict(dict(state))


def _module(model: nn.Module) -> nn.Module:
    """A wrapped network is stored under its own names, as its author would load it."""
    return model.module if isinstance(model, WrappedModel | DataParallel | DistributedDataParallel) else model


def _name(model: nn.Module) -> str:
    return getattr(model, "name", "") or type(model).__name__


def existing(path: str | Path) -> Path:
    """The path of a file that is there."""
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"checkpoint: no file {path}")
    return path


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(str(path))
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file from elsewhere may break its reader anywhere
        reason = str(error).split("\n", 1)[0].strip() or type(error).__name__
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise RequestError(f"checkpoint: {path} holds more than weights and is not loaded ({reason})") from error
        raise RequestError(f"checkpoint: {path} is truncated or corrupt ({reason})") from error
    for key in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise RequestError(
            f"checkpoint: {path} holds no weights; looked for a state dict, also under {', '.join(CONTAINERS)}"
        )
    return content


def _numpy_scalars() -> list[Any]:
    """Older checkpoints keep their best accuracy as a NumPy number, which is data and harmless."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]  # the function that unpickles one, wherever this NumPy keeps it
    return [
        (scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"),
        np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32)), type(np.dtype(np.int64)),
    ]  # fmt: skip


def _strip_prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The names without what wrappers put before them, where they do not fit as they are."""
    if any(name in own for name in state):
        return state
    wrapper = re.compile(rf"^({'|'.join(map(re.escape, PREFIXES))})+")
    return {wrapper.sub("", name): value for name, value in state.items() if "teacher." not in name}


def _difference(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The first thing of each kind that does not fit; empty where all does."""
    parts = []
    for name in own:
        if name in state and own[name].shape != state[name].shape:
            parts.append(f"{name} is {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the network")
            break
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    if missing:
        parts.append(f"{len(missing)} of {len(own)} tensors are missing, first {missing[0]}")
    if unexpected:
        parts.append(f"{len(unexpected)} of the file's have no place, first {unexpected[0]}")
    return "; ".join(parts)

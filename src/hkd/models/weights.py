"""Weights on disk: written with safetensors, read from there or from the field's checkpoint files."""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hkd.errors import RequestError
from hkd.files import replacing_path
from hkd.models.about import checked
from hkd.models.about import read_about as read_about  # noqa: PLC0414  (others import it from here)
from hkd.models.base import Model
from hkd.models.external import WrappedModel
from hkd.options import shown
from hkd.outside import as_path, open_regular, printable, read_header

# Under which keys a checkpoint file keeps a network's weights, and what wrappers put before the names of parameters.
CONTAINERS = ("model", "state_dict", "student", "net", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.", "student.", "model.")
MOST_SIDES = 16
"""Of a tensor's shape."""


def save_model(model: Model, path: str | Path, **about: Any) -> None:
    """Writes a network's weights with what it takes to use them, as a whole or not at all.

    Args:
        model: whose ``name`` and ``info`` go into the file.
        path: of the .safetensors file.
        about: more to write beside them; anything JSON can say. :func:`read_model` gives back ``classes``, ``mean``,
            ``std``, ``image_size``, ``crop``, ``dataset``, ``epoch`` and ``top1``.

    Raises:
        OSError: the file cannot be written.
        RequestError: one of these fields is not what :func:`read_model` would read.
    """
    text = json.dumps({"model": model.name, "num_classes": model.info.num_classes, **about})
    checked(json.loads(text), path)
    # A copy of each tensor in plain order: files keep neither channels-last strides nor shared memory.
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in _module(model).state_dict().items()
    }
    path = Path(path)
    with replacing_path(path) as partial:
        try:
            safetensors.torch.save_file(state, str(partial), metadata={"hkd": text})
        except safetensors.SafetensorError as error:  # as that library reports a full disk
            raise OSError(errno.EIO, f"could not be written: {error}", str(path)) from error


def read_model(path: str | Path, model: str | None = None) -> tuple[Model, dict[str, Any]]:
    """Rebuilds a network from a file that :func:`save_model` wrote; :func:`hkd.load_model` makes it ready for use.

    Args:
        path: of the file.
        model: the network in it, as :func:`hkd.create_model` takes it. Needed where the file does not say, or says a
            name that imports or downloads something: a file's word is never enough for that.

    Returns:
        The network, and what stands beside its weights, see :func:`read_about`.

    Raises:
        RequestError: the file is missing or damaged, holds another network, or a network that ``model`` has to name.
    """
    from hkd.models.create import create_model
    from hkd.models.names import model_of_file

    about = read_about(path)
    name = model_of_file(about, path) if model is None else model
    if "num_classes" not in about:
        raise RequestError(f"checkpoint: {_shown(path)} does not say its number of classes; see load_checkpoint")
    _check_head(about["num_classes"], path)
    network = create_model(name, about["num_classes"], image_size=about.get("image_size"))
    load_checkpoint(network, path)
    return network, about


def _check_head(classes: int, path: str | Path) -> None:
    """Raises :class:`RequestError` unless a tensor has a side of so many classes, or of a multiple: a small file must
    not have a network of a million classes built."""
    sides = {side for shape in _shapes(Path(path)).values() for side in shape}
    if not any(side and side % classes == 0 for side in sides):
        raise RequestError(
            f"checkpoint: {_shown(path)}: num_classes: expected the length of a side of one of its tensors; "
            f"got {classes:,}"
        )


def load_checkpoint(model: nn.Module, path: str | Path, keep: Container[str] = ()) -> None:
    """Loads weights into a network, all of them and no others.

    Reads .safetensors files and, without ever running a pickle's code, PyTorch files: a plain state dict, a
    RepDistiller or mdistiller checkpoint (also of PyTorch 0.4), or a checkpoint of a run folder.

    Args:
        model: the network.
        path: of the file.
        keep: tensors of the network that stay as they are, whatever the file has under their names; see
            :mod:`hkd.models.start`.

    Raises:
        RequestError: the file is missing or damaged, needs more than weights to be unpickled, holds another
            architecture or number of classes, or NaN. The network is then as it was.
    """
    path = as_path(path, "checkpoint")
    target = _module(model)
    own = {name: value for name, value in target.state_dict().items() if name not in keep}
    if path.suffix == ".safetensors":  # shapes first: what does not fit is not read, however large it says that it is
        shapes = _shapes(path)
        _check_fit(model, own, _without(keep, _blanks(shapes), own), path)
    state = _check_fit(model, own, _without(keep, _read(path), own), path)
    parameters = {name for name, _ in target.named_parameters()}
    target.load_state_dict(
        {name: _usable(name, state[name], own[name], name in parameters, path) for name in own}, strict=not keep
    )


def shapes_in(path: str | Path, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a file of weights, by the network's names.

    Raises:
        RequestError: as :func:`load_checkpoint` does for a file that cannot be read.
    """
    path = as_path(path, "checkpoint")
    state = _blanks(_shapes(path)) if path.suffix == ".safetensors" else _read(path)
    return {name: tuple(value.shape) for name, value in _by_own_names(state, state_of(model)).items()}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A network's tensors, by the names under which they are stored."""
    return dict(_module(model).state_dict())


def _blanks(shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _without(keep: Container[str], state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {name: value for name, value in _by_own_names(state, own).items() if name not in keep}


def _check_fit(
    model: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path
) -> Mapping[str, Tensor]:
    """A file's tensors by the network's names."""
    state = _by_own_names(state, own)
    if difference := _difference(own, state):
        raise RequestError(f"checkpoint: {_shown(path)} does not fit {_name(model)}: {difference}")
    return state


def _usable(name: str, value: Tensor, own: Tensor, is_parameter: bool, path: Path) -> Tensor:
    """A file's tensor in the type of the network's, if it holds numbers that a network can have."""
    kind, wanted = str(value.dtype).removeprefix("torch."), str(own.dtype).removeprefix("torch.")
    place = f"checkpoint: {_shown(path)}: {name}"
    plain = value.layout is torch.strided and value.device.type == "cpu"
    alike = (value.is_floating_point(), value.is_complex()) == (own.is_floating_point(), own.is_complex())
    try:
        converted = value.detach().to(own.dtype) if plain and alike else None
    except (RuntimeError, NotImplementedError):  # of types with fewer than 8 bits
        converted = None
    if converted is None:
        raise RequestError(f"{place}: expected numbers that {wanted} can hold; got {kind}")
    # Some networks keep an infinite mask among their buffers.
    bad = ~converted.isfinite() if is_parameter else converted.isnan()
    if bad.any():
        raise RequestError(f"{place}: expected finite numbers; got {converted[bad][0].item()}")
    return converted


def _module(model: nn.Module) -> nn.Module:
    """A wrapped network is stored under its own names, as its author would load it."""
    return model.module if isinstance(model, WrappedModel | DataParallel | DistributedDataParallel) else model


def _name(model: nn.Module) -> str:
    return getattr(model, "name", "") or type(model).__name__


def _shown(path: str | Path) -> str:
    return printable(path, 4096)


def _shapes(path: Path) -> dict[str, list[int]]:
    """The shape of each tensor as the header of a .safetensors file says it; none for files of other kinds."""
    with open_regular(path, "checkpoint") as file:
        if path.suffix != ".safetensors":
            return {}
        try:
            header = read_header(file)
            shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
            if not all(_is_shape(shape) for shape in shapes.values()):
                raise ValueError("a tensor without a shape")
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise RequestError(f"checkpoint: {_shown(path)} is truncated or corrupt ({printable(error)})") from error
    return shapes


def _is_shape(shape: Any) -> bool:
    sides = shape if isinstance(shape, list) and len(shape) <= MOST_SIDES else [-1]
    return all(type(side) is int and side >= 0 for side in sides) and math.prod(sides) < 2**50


def _read(path: Path) -> Mapping[str, Tensor]:
    open_regular(path, "checkpoint").close()
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(str(path))
        check_archive(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_plain_data()):
            warnings.simplefilter("ignore")  # torch's, of several lines, about what is then refused in one
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file from elsewhere may break its reader anywhere
        reason = printable(str(error).split("\n", 1)[0].strip() or type(error).__name__)
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise RequestError(
                f"checkpoint: {_shown(path)} holds more than weights and is not loaded ({reason})"
            ) from error
        raise RequestError(f"checkpoint: {_shown(path)} is truncated or corrupt ({reason})") from error
    for key in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise RequestError(
            f"checkpoint: {_shown(path)} holds no weights; looked for a state dict, also under {', '.join(CONTAINERS)}"
        )
    return content


def check_archive(path: Path) -> None:
    """Raises ValueError for a PyTorch file that would unpack to more than it is: torch writes without compression."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        size = sum(entry.file_size for entry in entries)
        if size > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its entries are compressed")


def _plain_data() -> list[Any]:
    """Types that are data and harmless: checkpoints of the field keep their best accuracy as a NumPy number, and the
    options of their training as argparse has them."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]  # the function that unpickles one, wherever this NumPy keeps it
    return [
        (scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"),
        np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32)), type(np.dtype(np.int64)),
        argparse.Namespace,
    ]  # fmt: skip


def _by_own_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A file's tensors by the names of the network that they are for.

    Without what wrappers put before the names, where those do not fit as they are. Files that PyTorch wrote before
    0.4.1 have no count of a batch norm's batches; it is then 0, as PyTorch takes it.
    """
    if not any(name in own for name in state):
        wrapper = re.compile(rf"^({'|'.join(map(re.escape, PREFIXES))})+")
        state = {wrapper.sub("", name): value for name, value in state.items() if "teacher." not in name}
    norms = [name.removesuffix("running_mean") for name in state if name.endswith("running_mean")]
    counts = {f"{norm}num_batches_tracked" for norm in norms} & (own.keys() - state.keys())
    return {**state, **{name: torch.zeros((), dtype=torch.int64) for name in counts}} if counts else state


def _difference(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The first thing of each kind that does not fit; empty where all does."""
    parts = []
    for name in own:
        if name in state and own[name].shape != state[name].shape:
            parts.append(
                f"{name} is {shown(tuple(state[name].shape))} in the file, {tuple(own[name].shape)} in the network"
            )
            break
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    if missing:
        parts.append(f"{len(missing)} of {len(own)} tensors are missing, first {missing[0]}")
    if unexpected:
        parts.append(f"{len(unexpected)} of the file's have no place, first {shown(unexpected[0])}")
    return "; ".join(parts)


def weights_digest(model: nn.Module) -> str:
    """16 hexadecimal digits that say which weights a network has: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in _module(model).state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

"""Devices, processes and precision. The only file that imports the distribution library."""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor, nn

from hkd.errors import RequestError

M = TypeVar("M", bound=nn.Module)
MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Engine:
    """Where and how precisely a run computes.

    Args:
        device: "auto" for the best there is, or "cpu", "cuda", "cuda:N", "mps".
        precision: "fp32", "bf16" or "fp16".
        seed: of Python, NumPy and torch; None leaves them as they are.

    Raises:
        RequestError: the device is not there, cannot do the precision, or several processes were started.
    """

    def __init__(self, device: str = "auto", precision: str = "fp32", seed: int | None = None) -> None:
        wanted = _device(device)
        if precision == "fp16" and (wanted.type if wanted else _best()) != "cuda":
            raise RequestError(f"precision: fp16 needs a GPU, this run is on {wanted or _best()}; use bf16 or fp32")
        # Accelerate keeps one state a process; a second run in the same process may ask for other things.
        AcceleratorState._reset_state(reset_partial_state=True)
        if wanted is not None:
            os.environ["ACCELERATE_TORCH_DEVICE"] = str(wanted)
        self._accelerator = Accelerator(
            mixed_precision=MIXED[precision], cpu=wanted is not None and wanted.type == "cpu"
        )
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
        if self._accelerator.num_processes > 1:
            raise RequestError(f"processes: a run uses one process; {self._accelerator.num_processes} were started")
        self.device: torch.device = self._accelerator.device
        if seed is not None:
            set_seed(seed)

    @property
    def machine(self) -> str:
        """What computes, in words."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{platform.machine()} {self.device.type.upper()}, {torch.get_num_threads()} threads"

    @property
    def scaler(self) -> Any:
        """The gradient scaler of fp16, or None."""
        return self._accelerator.scaler

    def prepare(self, module: M, optimizer: torch.optim.Optimizer) -> tuple[M, torch.optim.Optimizer]:
        """Moves a module to the device and wraps both for the precision."""
        prepared: tuple[M, torch.optim.Optimizer] = self._accelerator.prepare(module.to(self.device), optimizer)
        return prepared

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which networks compute in the run's precision."""
        context: AbstractContextManager[None] = self._accelerator.autocast()
        return context

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def random_state(self) -> dict[str, Any]:
        """Where torch's generators stand."""
        state: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def set_random_state(self, state: dict[str, Any]) -> None:
        """Puts them there again; a run continued on another kind of device goes on with that one's own."""
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)


def _device(name: str) -> torch.device | None:
    if name == "auto":
        return None
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise RequestError(f"device: expected auto, cpu, cuda, cuda:N or mps; got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RequestError(
            f"device: {name} asked for, but torch sees {torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RequestError("device: mps asked for, but this machine has none; use auto or cpu")
    return device


def _best() -> str:
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"

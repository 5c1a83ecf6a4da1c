"""Devices, processes and precision. The only file that imports the distribution library."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn

from hkd.errors import RequestError
from hkd.types import Share

M = TypeVar("M", bound=nn.Module)
MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Engine:
    """Where and how precisely a run computes, and with which other processes (torchrun, ``accelerate launch``).

    Args:
        device: "auto" for the best there is, or "cpu", "cuda", "cuda:N", "mps".
        precision: "fp32", "bf16" or "fp16".
        seed: of Python, NumPy and torch; None leaves them as they are.
        threads: of this process on the CPU; None leaves torch's choice.

    Raises:
        RequestError: the device is not there or cannot do the precision.

    Attributes:
        device: of this process.
        share: which of the processes this is.
        backward: of a scalar loss, scaled in fp16.
    """

    def __init__(
        self, device: str = "auto", precision: str = "fp32", seed: int | None = None, threads: int | None = None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        wanted = _device(device)
        if precision == "fp16" and (wanted.type if wanted else _best()) != "cuda":
            raise RequestError(f"precision: fp16 needs a GPU, this run is on {wanted or _best()}; use bf16 or fp32")
        # Accelerate keeps one state a process; a second run in the same process may need another.
        AcceleratorState._reset_state(reset_partial_state=True)
        if wanted is not None and (":" in str(wanted) or wanted.type == "mps"):
            os.environ["ACCELERATE_TORCH_DEVICE"] = str(wanted)  # else each process takes the device of its rank
        self._wrapping = DistributedDataParallelKwargs(broadcast_buffers=False)
        self._accelerator = Accelerator(
            mixed_precision=MIXED[precision],
            cpu=(wanted.type if wanted is not None else _best()) == "cpu",
            # Banks are updated alike everywhere, and running statistics are averaged once an epoch.
            kwargs_handlers=[self._wrapping],
        )
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
        self.device: torch.device = self._accelerator.device
        self.backward: Callable[[Tensor], None] = self._accelerator.backward
        self.share = Share(self._accelerator.process_index, self._accelerator.num_processes)
        if wanted is not None and wanted.index is not None and self.share.processes > 1:
            raise RequestError(f"device: {wanted} is one device, and {self.share.processes} processes were started")
        self._seed = seed
        if seed is not None:  # the same in all processes, so that they begin with the same weights
            set_seed(seed)

    @property
    def machine(self) -> str:
        """What computes, in words."""
        times = f"{self.share.processes} x " if self.share.processes > 1 else ""
        if self.device.type == "cuda":
            return times + torch.cuda.get_device_name(self.device)
        return f"{times}{platform.machine()} {self.device.type.upper()}, {torch.get_num_threads()} threads"

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.share.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()

    def first_of_node(self) -> AbstractContextManager[None]:
        """The context in which one process of each machine goes ahead, to download and decode for the others."""
        context: AbstractContextManager[None] = self._accelerator.local_main_process_first()
        return context

    def first_of_all(self) -> AbstractContextManager[None]:
        """The context in which the main process goes ahead."""
        context: AbstractContextManager[None] = self._accelerator.main_process_first()
        return context

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, (n,) -> (n,)."""
        total: Tensor = self._accelerator.reduce(values, "sum")
        return total

    def all_reduce_max(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.share.processes == 1:
            return value
        everyone = torch.zeros(self.share.processes, dtype=torch.int64, device=self.device)
        everyone[self.share.rank] = value
        return int(self.sum(everyone).max())

    def all_equal(self, value: int) -> bool:
        """Whether all processes have the same value."""
        return self.all_reduce_max(value) == -self.all_reduce_max(-value)

    def concatenate(self, values: Tensor) -> Tensor:
        """The values of all processes one after another, on the CPU; their lengths may differ."""
        parts = gather_object([values.cpu()]) if self.share.processes > 1 else [values.cpu()]
        return torch.cat(parts)

    def average_buffers(self, module: nn.Module) -> None:
        """Gives all processes the mean of a module's floating buffers, the statistics of batch norm."""
        if self.share.processes > 1:
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self._accelerator.reduce(buffer, "mean"))

    @property
    def scaler(self) -> Any:
        """The gradient scaler of fp16, or None."""
        return self._accelerator.scaler

    def prepare(
        self, module: M, optimizer: torch.optim.Optimizer, all_used: bool = True
    ) -> tuple[M, torch.optim.Optimizer]:
        """Moves a module to the device and wraps both for the precision, and the module for several processes.

        Args:
            all_used: whether every step uses all parameters; if not, several processes look for those that it did not.
        """
        self._wrapping.find_unused_parameters = not all_used
        with warnings.catch_warnings():  # torch 2.14 renames the option that Accelerate passes on
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            prepared: tuple[M, torch.optim.Optimizer] = self._accelerator.prepare(module.to(self.device), optimizer)
        return prepared

    def clip(self, module: nn.Module, most: float) -> None:
        """Shortens the gradient of all parameters together to a norm of at most ``most``, before a scaled step."""
        self._accelerator.clip_grad_norm_(module.parameters(), most)

    def alone(self, module: nn.Module) -> AbstractContextManager[None]:
        """The context of a forward and backward pass whose gradients are not yet exchanged between processes."""
        context: AbstractContextManager[None] = self._accelerator.no_sync(module)
        return context

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which networks compute in the run's precision."""
        context: AbstractContextManager[None] = self._accelerator.autocast()
        return context

    def random_state(self) -> dict[str, Any]:
        """Where torch's generators stand."""
        state: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def set_random_state(self, state: dict[str, Any] | None) -> None:
        """Puts them there again, or for None leaves them at the start of a run.

        On another kind of device a run continues with that device's state. What was saved is the first process's; each
        of the others, of which there may be more or fewer now, begins with a state that its rank decides.
        """
        if not self.is_main:
            torch.manual_seed(((self._seed or 0) + 1) * 1_000_003 + self.share.rank)
            return
        if state is None:
            return
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)


def make_tracker(logger: str, place: str, **options: Any) -> Any:
    """One of Accelerate's trackers, with methods ``start``, ``store_init_configuration``, ``log`` and ``finish``.

    Args:
        logger: its name, as ``wandb``.
        place: the project or experiment; of tensorboard the folder.
        options: of the logger's own start.
    """
    kind = LOGGER_TYPE_TO_CLASS[logger]
    return kind("", place, **options) if kind.requires_logging_directory else kind(place, **options)


def _device(name: str) -> torch.device | None:
    if name == "auto":
        return None
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise RequestError(f"device: expected auto, cpu, cuda, cuda:N or mps; got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise RequestError(f"device: expected auto, cpu or one of the {count} CUDA devices that torch sees; got {name}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RequestError("device: expected auto or cpu, since this machine has no MPS; got mps")
    return device


def _best() -> str:
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"

"""Watches that a loss stays a number."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hkd.distiller import Step
from hkd.runtime.engine import Engine

LOOK_EVERY = 200
"""Steps; looking at a value makes the host wait for a GPU, so it is not done at each."""


class NotFiniteError(ArithmeticError):
    """A loss is not finite."""


class Guard:
    """Remembers the first step of an epoch whose loss is not finite, on the device, and looks at it now and then.

    Args:
        engine: of the run.
        allowed: how many such steps may be left out in the whole run. If any, every step is looked at.
        skipped: how many have been.
    """

    def __init__(self, engine: Engine, allowed: int = 0, skipped: int = 0) -> None:
        self.engine = engine
        self.allowed = allowed
        self.skipped = skipped
        self._every = 1 if engine.device.type == "cpu" and engine.share.processes == 1 else LOOK_EVERY
        self._names: list[str] = []
        self._found: Tensor | None = None  # (1 + terms,): the step, -1 for none, and what it gave

    def begin_epoch(self) -> None:
        self._found = None

    def before_step(self, objective: nn.Module) -> Callable[[], None] | None:
        """What puts the running statistics back if the step is left out."""
        if not self.allowed:
            return None
        norms = [module for module in objective.modules() if isinstance(module, _BatchNorm)]  # banks see to themselves
        kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]

        def undo() -> None:
            with torch.no_grad():
                for buffer, value in kept:
                    buffer.copy_(value)

        return undo

    def leaves_out(self, made: Step) -> bool:
        """Whether a step is to have no effect, where that is allowed. The same in all processes.

        Raises:
            NotFiniteError: there have been too many.
        """
        if not self.allowed or self.engine.largest(int(not made.total.isfinite())) == 0:
            return False
        self.skipped += 1
        if self.skipped > self.allowed:
            told = ", ".join(f"{n} {v:.3g}" for n, v in {"loss": made.total, **made.terms}.items())
            raise NotFiniteError(f"at {self.skipped} steps, the last with {told}")
        return True

    def saw(self, step: int, made: Step) -> None:
        """Notes what a step gave. Raises as :meth:`look` does."""
        self._names = ["loss", *made.terms]
        values = torch.stack([v.detach().float() for v in (made.total, *made.terms.values())])
        now = torch.cat([torch.where(values.isfinite().all(), -1.0, float(step)).view(1), values])
        self._found = now if self._found is None else torch.where(self._found[0] < 0, now, self._found)
        if step % self._every == 0:
            self.look()

    def look(self) -> None:
        """Raises :class:`NotFiniteError`, with the step and its terms, where a loss was no number."""
        if self._found is None:
            return
        step, *values = self._found.tolist()
        if self.engine.largest(int(step >= 0)):
            told = ", ".join(f"{name} {value:.3g}" for name, value in zip(self._names, values, strict=True))
            raise NotFiniteError(f"step {step:.0f} ({told})" if step >= 0 else "a step of another process")

"""Notices when a loss is NaN or infinite, and takes skipped steps back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from hkd.distiller import Distiller, DistillerOutput
from hkd.runtime.engine import Engine

CHECK_EVERY = 200
"""Steps; looking at a value makes the host wait for a GPU, so it is not done at each."""


class NotFiniteError(ArithmeticError):
    """A loss is NaN or infinite."""


class Guard:
    """Keeps the first step of an epoch whose loss is not finite, on the device, and looks at it now and then.

    Args:
        engine: of the run.
        distiller: whose running statistics and memories a skipped step leaves as they were.
        allowed: how many such steps may be skipped in the whole run. If any, every step is looked at.
        skipped: how many have been.
    """

    def __init__(self, engine: Engine, distiller: Distiller, allowed: int = 0, skipped: int = 0) -> None:
        self.engine = engine
        self.distiller = distiller
        self.allowed = allowed
        self.skipped = skipped
        self._every = 1 if engine.device.type == "cpu" and engine.share.processes == 1 else CHECK_EVERY
        self._statistics = [
            buffer
            for module in (distiller.modules() if allowed else ())
            if isinstance(module, _BatchNorm)
            for buffer in module.buffers()
        ]
        self._before: list[Tensor] = []
        self._names: list[str] = []
        self._first_bad: Tensor | None = None  # (1 + terms,): the step, -1 for none, and its loss and terms

    def begin_epoch(self) -> None:
        self._first_bad = None

    def before_step(self) -> None:
        """Keeps the running statistics, where a step may be skipped."""
        self._before = [buffer.clone() for buffer in self._statistics]

    def skips(self, out: DistillerOutput) -> bool:
        """Whether a step is to have no effect, where that is allowed. The same in all processes.

        Raises:
            NotFiniteError: there have been too many.
        """
        if not self.allowed or self.engine.all_reduce_max(int(not out.loss.isfinite())) == 0:
            return False
        self.skipped += 1
        if self.skipped > self.allowed:
            values = ", ".join(f"{n} {v:.3g}" for n, v in {"loss": out.loss, **out.terms}.items())
            raise NotFiniteError(f"at {self.skipped} steps, the last with {values}")
        with torch.no_grad():
            for buffer, value in zip(self._statistics, self._before, strict=True):
                buffer.copy_(value)
        self.distiller.undo_step()
        return True

    def record(self, step: int, out: DistillerOutput) -> None:
        """Takes note of a step's loss and terms. Raises as :meth:`check` does."""
        self._names = ["loss", *out.terms]
        values = torch.stack([v.detach().float() for v in (out.loss, *out.terms.values())])
        now = torch.cat([torch.where(values.isfinite().all(), -1.0, float(step)).view(1), values])
        self._first_bad = now if self._first_bad is None else torch.where(self._first_bad[0] < 0, now, self._first_bad)
        if step % self._every == 0:
            self.check()

    def check(self) -> None:
        """Raises :class:`NotFiniteError`, with the step and its terms, where a loss was NaN or infinite."""
        if self._first_bad is None:
            return
        step, *values = self._first_bad.tolist()
        if self.engine.all_reduce_max(int(step >= 0)):
            terms = ", ".join(f"{name} {value:.3g}" for name, value in zip(self._names, values, strict=True))
            raise NotFiniteError(f"step {step:.0f} ({terms})" if step >= 0 else "a step of another process")

"""When a run saves in the middle of an epoch: at a signal, or when enough time has passed."""

from __future__ import annotations

import signal
import threading
import time
from enum import IntEnum
from types import FrameType
from typing import Any, Self

from hkd.runtime.engine import Engine


class StopAction(IntEnum):
    CONTINUE = 0
    SAVE = 1
    STOP = 2


class StopSignal:
    """Between its beginning and end Ctrl-C, SIGTERM and SIGHUP are noted. A second Ctrl-C ends the program at once."""

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


class Stopping(StopSignal):
    """A run's stop signal: the step at hand is finished before it is followed.

    Several processes agree: what one of them wants, all do, after the same step.

    Args:
        engine: of the run.
        minutes: between saves.
    """

    AGREE_EVERY = 20  # steps of the optimiser; to agree, processes wait for one another

    def __init__(self, engine: Engine, minutes: float) -> None:
        super().__init__()
        self.engine = engine
        self.seconds = 60 * minutes
        self.saved = time.monotonic()

    @property
    def status(self) -> int:
        """What a program that was ended by the signal exits with."""
        return 128 + (self.signal or signal.SIGTERM)

    def action(self, step: int) -> StopAction:
        """What to do after a step of the optimiser, counted from 1 in its epoch."""
        wanted = StopAction.CONTINUE
        if self.signal is not None:
            wanted = StopAction.STOP
        elif time.monotonic() - self.saved > self.seconds:
            wanted = StopAction.SAVE
        if self.engine.share.processes == 1:
            return wanted
        if step % self.AGREE_EVERY:
            return StopAction.CONTINUE
        return StopAction(self.engine.all_reduce_max(int(wanted)))

    def saved_now(self) -> None:
        self.saved = time.monotonic()

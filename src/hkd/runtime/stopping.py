"""When a run saves in the middle of an epoch: when it is asked to stop, or when enough time has passed."""

from __future__ import annotations

import signal
import threading
import time
from enum import IntEnum
from types import FrameType
from typing import Any

from hkd.runtime.engine import Engine


class Wish(IntEnum):
    GO_ON = 0
    SAVE = 1
    STOP = 2


class Stopping:
    """Between its beginning and end Ctrl-C and SIGTERM are noted, and the step at hand is finished.

    A second Ctrl-C ends the program at once. Several processes agree: what one wishes, all do, after the same step.

    Args:
        engine: of the run.
        minutes: between saves.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    AGREE_EVERY = 20  # steps; to agree, processes wait for one another

    def __init__(self, engine: Engine, minutes: float) -> None:
        self.engine = engine
        self.seconds = 60 * minutes
        self.signal: int | None = None
        self.saved = time.monotonic()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
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

    @property
    def status(self) -> int:
        """What a program that was ended by the signal exits with."""
        return 128 + (self.signal or signal.SIGTERM)

    def wish(self, step: int) -> Wish:
        """What to do after a step, counted from 1 in its epoch."""
        own = Wish.GO_ON
        if self.signal is not None:
            own = Wish.STOP
        elif time.monotonic() - self.saved > self.seconds:
            own = Wish.SAVE
        if self.engine.share.processes == 1:
            return own
        if step % self.AGREE_EVERY:
            return Wish.GO_ON
        return Wish(self.engine.largest(int(own)))

    def has_saved(self) -> None:
        self.saved = time.monotonic()

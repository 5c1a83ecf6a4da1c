"""A run that another process started ends with it."""

from __future__ import annotations

import os
import signal
import threading

ENDS_WITH_PARENT = "HKD_ENDS_WITH_PARENT"
"""In a child's environment: it stops when its standard input is closed, which happens however its parent ends."""


def end_with_parent() -> None:
    """In a run's process: stops it, as SIGTERM does, when the process that started it is gone."""
    if not os.environ.pop(ENDS_WITH_PARENT, None):
        return

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()

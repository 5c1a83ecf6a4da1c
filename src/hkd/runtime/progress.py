"""What a run shows while it trains: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm


class Progress:
    """Images done, images a second, time left, and a line an epoch.

    Args:
        title: of the run.
        images: in all epochs of the whole run.
        done: those of them that earlier starts have trained on.
        epochs: of the whole run.
        silent: print nothing, since another process does.
        split: what the accuracies are of.
    """

    def __init__(
        self, title: str, images: int, done: int, epochs: int, silent: bool = False, split: str = "test"
    ) -> None:
        self.title = title
        self.split = split
        self.silent = silent
        self.epochs = epochs
        self._told = 0.0  # when the bar last had the loss
        self._bar = tqdm(
            total=images,
            initial=done,
            desc=title,
            unit="img",
            unit_scale=True,
            disable=silent or not sys.stderr.isatty(),
            dynamic_ncols=True,
            leave=False,
        )

    def begin(self, epoch: int) -> None:
        """An epoch, counted from 1, starts."""
        self._bar.set_description(f"{self.title}  epoch {epoch}/{self.epochs}", refresh=False)

    def images(self, count: int, loss: Callable[[], float] | None = None) -> None:
        """So many images more are done.

        Args:
            loss: says the epoch's mean loss so far, for which it waits for the device: asked for once a second, and
                only where there is a bar.
        """
        if not self._bar.disable and loss is not None and time.monotonic() - self._told > 1.0:
            self._bar.set_postfix_str(f"loss {loss():.3f}", refresh=False)
            self._told = time.monotonic()
        self._bar.update(count)

    def epoch(self, row: dict[str, Any], best: float, seconds_left: float, parts: str = "", note: str = "") -> None:
        """Prints the line of a finished epoch: what the loss is the sum of behind it, and a note at the end."""
        if self.silent:
            return
        accuracy = f"train {row['train_top1']:.1f}" if "train_top1" in row else "initialisation"
        if "test_top1" in row:
            accuracy += f"  {self.split} {row['test_top1']:.2f} (best {best:.2f})"
        line = (
            f"{self.title}  epoch {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}  "
            f"loss {row['loss']:.3f}{parts}  {accuracy}  {row['images_per_second']:,.0f} img/s  "
            f"left {duration(seconds_left)}{note}"
        )
        if self._bar.disable:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


def duration(seconds: float) -> str:
    """Seconds in words: 42s, 3m05s, 2h10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"

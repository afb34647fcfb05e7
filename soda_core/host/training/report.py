# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user reads of a training while it runs: a line on the node, a line in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ...training.loop import Progress
from ..progress import ProgressBar

#: Steps whose mean loss is told.
_RECENT = 20
#: Least seconds between two lines of text, and between two in the log.
_SHOW_EVERY, _LOG_EVERY = 0.5, 5.0


class Report:
    """Tells of every step; time counts from here.

    Args:
        steps: of the whole run.
        done: of them before this report.
        show: takes the line of text for the node.
    """

    def __init__(self, steps: int, done: int, show: Callable[[str], None]) -> None:
        self.steps, self.done, self.show = steps, done, show
        self.bar = ProgressBar(steps)
        self._started = self._logged = self._shown = time.monotonic()

    def step(self, progress: Progress) -> None:
        """In words, not more often than anybody can read."""
        step, total, now = progress.step, self.steps, time.monotonic()
        recent = progress.losses[-_RECENT:]
        loss, rate = sum(recent) / len(recent), (step - self.done) / (now - self._started)
        if now - self._shown > _SHOW_EVERY or step in (self.done + 1, total):
            self._shown = now
            self.show(
                f"step {step}/{total}   loss {loss:.4f}   {rate:.2f} steps/s   {_duration((total - step) / rate)} left"
            )
        if now - self._logged > _LOG_EVERY or step in (self.done + 1, total):
            self._logged = now
            logging.info("SODA: step %d/%d, loss %.4f, %.2f steps/s", step, total, loss, rate)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

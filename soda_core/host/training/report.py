# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user reads of a training without a browser: the bar of its node, lines in the log."""

from __future__ import annotations

import logging
import time

from ...training.loop import Progress
from ..progress import ProgressBar

#: Steps whose mean loss is told.
_RECENT = 20
#: Least seconds between two lines.
_LOG_EVERY = 5.0


class Report:
    """Tells of every step; time counts from here.

    Args:
        steps: of the whole run.
        done: of them before this report.
    """

    def __init__(self, steps: int, done: int) -> None:
        self.steps, self.done = steps, done
        self.bar = ProgressBar(steps)
        self._started = self._logged = time.monotonic()

    def step(self, progress: Progress) -> None:
        """In words, not more often than anybody can read."""
        step, now = progress.step, time.monotonic()
        if now - self._logged > _LOG_EVERY or step in (self.done + 1, self.steps):
            self._logged = now
            recent = progress.losses[-_RECENT:]
            loss, rate = sum(recent) / len(recent), (step - self.done) / (now - self._started)
            logging.info("SODA: step %d/%d, loss %.4f, %.2f steps/s", step, self.steps, loss, rate)

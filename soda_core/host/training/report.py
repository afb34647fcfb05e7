# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user reads of a training without a browser: the bar of its node, lines in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import comfy.model_management as mm
import torch

from ...training.loop import Progress
from ...training.trainable import TrainableAdapter
from ...training.units import rates_in_words
from ..progress import ProgressBar
from ..versions import is_cancel

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
            lrs = ", ".join(f"{part} {lr:.2g}" for part, lr in progress.rates.items())
            logging.info("SODA: step %d/%d, loss %.4f, learning rates %s, %.2f steps/s",
                         step, self.steps, loss, lrs, rate)  # fmt: skip


def announce(
    trainable: TrainableAdapter, memory: Callable[[], dict[str, int]], device: torch.device, note: Callable[..., None]
) -> None:
    """Say how much is trained and what memory it takes, before the first step.

    Args:
        memory: bytes above the loaded model, by what they are for, ``a step`` among them.
        note: takes a line for the live view, see :meth:`.live.Live.note`.
    """
    rotation = sum(p.numel() for p in trainable.rotations.values())
    shift = 0 if trainable.shifts is None else trainable.shifts.numel()
    logging.info("SODA: %s trained parameters (%s rotation, %s shift) in %d layers",
                 *(f"{n:,}" for n in (rotation + shift, rotation, shift)), len(trainable.layers))  # fmt: skip
    logging.info("SODA: learning rates per step: %s", rates_in_words(trainable.settings))
    try:
        parts = memory()
    except Exception as error:  # a model that decides by values, say; training itself does not mind
        if is_cancel(error):
            raise
        logging.info("SODA: how much memory a step takes cannot be told beforehand (%s)", error)
        return
    total = _mib(sum(parts.values()))
    listed = ", ".join(f"{name} {_mib(size)}" for name, size in parts.items())
    logging.info("SODA: memory above the loaded model: %s (%s)", total, listed)
    count = f"{rotation + shift:,}"
    note(f"{count} trained parameters, {total} above the loaded model", "note_size", count=count, memory=total)
    free = mm.get_free_memory(device)
    if parts["a step"] > free:
        logging.warning("SODA: a step takes %s and %s are free; turn on gradient_checkpointing, or train with "
                        "smaller batches or pictures", _mib(parts["a step"]), _mib(free))  # fmt: skip


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"

# SPDX-License-Identifier: GPL-3.0-or-later
"""The one loss that a person can compare between steps: always on the same pictures, noise and noise levels."""

from __future__ import annotations

import math

import torch

from .objective import Objective

#: Pictures with noise in it; each is a forward pass of one picture.
BATCHES = 2
#: Of a run, so that short ones have a curve; and steps at most from one to the next.
_TIMES, _LARGEST_STRIDE = 10, 100
_SEED = 20250


def stride(steps: int) -> int:
    """Steps from one look at a run of so many to the next."""
    return max(1, min(_LARGEST_STRIDE, math.ceil(steps / _TIMES)))


class Validation:
    """Watches an objective without touching it: its own random numbers, no gradients.

    Args:
        objective: its model must be loaded.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.every = stride(objective.settings.steps)
        self._batches = objective.spread(BATCHES, torch.Generator().manual_seed(_SEED))

    def due(self, step: int) -> bool:
        """Whether a run that has done so many steps is to be looked at."""
        return step % self.every == 0 or step == self.objective.settings.steps

    def loss(self) -> float:
        """The plain denoising loss, whatever is trained with."""
        device = self.objective.session.device
        with torch.no_grad():
            self.objective.trainable.begin_step()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # whatever a model may draw
            return sum(float(self.objective.plain(batch)) for batch in self._batches) / len(self._batches)

# SPDX-License-Identifier: GPL-3.0-or-later
"""One optimiser for a model with SODA layers: Stiefel Adam for its rotations, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SettingsError
from ...stiefel import Retraction, StiefelAdam
from ...training.settings import TrainSettings
from .layer import SodaTunerLayer


def create_optimizer(
    model: nn.Module,
    rotation_lr: float = TrainSettings.rotation_lr,
    shift_lr: float = TrainSettings.shift_lr,
    retraction: Retraction = TrainSettings.retraction,
) -> SodaOptimizer:
    """The optimiser of everything in ``model`` that trains; modules saved whole go with the shifts.

    Args:
        rotation_lr, shift_lr: per step; see :class:`...training.settings.TrainSettings`.
        retraction: see :class:`...stiefel.StiefelAdam`.
    Raises:
        SettingsError: the model has no SODA layer that trains.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, SodaTunerLayer)]
    rotations = [R for layer in layers for R in layer.soda_factors.parameters() if R.requires_grad]
    known = {id(R) for R in rotations}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    shifts = {id(p) for layer in layers for p in layer.soda_shift.parameters()}
    if not rotations and not any(id(p) in shifts for p in others):
        raise SettingsError(
            "the model has no SODA layer that trains; wrap it with get_peft_model(model, SodaConfig(…))"
        )
    return SodaOptimizer(rotations, others, rotation_lr, shift_lr, retraction)


class SodaOptimizer(torch.optim.Optimizer):
    """Two optimisers behind one interface, for schedulers and trainers that take one; groups and state are shared.

    Args:
        rotations: orthogonal matrices.
        others: everything else.
    """

    def __init__(
        self,
        rotations: Iterable[Tensor],
        others: Iterable[Tensor],
        rotation_lr: float,
        shift_lr: float,
        retraction: Retraction = "euler",
    ) -> None:
        rotations, others = list(rotations), list(others)
        self.parts: list[torch.optim.Optimizer] = []
        if rotations:
            self.parts.append(StiefelAdam(rotations, lr=rotation_lr, retraction=retraction))
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=shift_lr))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

# SPDX-License-Identifier: GPL-3.0-or-later
"""One optimiser for a model with SODA layers: Stiefel Adam for its rotations, AdamW for everything else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import SettingsError
from ...stiefel import Retraction, StiefelAdam
from ...training.adam import ScaledAdamW
from ...training.joined import JoinedOptimizer
from ...training.settings import RateUnits, TrainSettings
from ...training.units import entry_angle, shift_unit
from .layer import SodaTunerLayer


def create_optimizer(
    model: nn.Module,
    rotation_lr: float = TrainSettings.rotation_lr,
    shift_lr: float = TrainSettings.shift_lr,
    retraction: Retraction = TrainSettings.retraction,
    rate_units: RateUnits = TrainSettings.rate_units,
) -> SodaOptimizer:
    """The optimiser of everything in ``model`` that trains; modules saved whole have the shifts' rate as it is.

    Args:
        rotation_lr, shift_lr, rate_units: per step; see :class:`...training.settings.TrainSettings`.
        retraction: see :class:`...stiefel.StiefelAdam`.
    Raises:
        SettingsError: the model has no SODA layer that trains.
    """
    of_layer = rate_units == "layer"
    rotations: dict[float, list[Tensor]] = {}  # by what their rate is multiplied with
    units: dict[int, float] = {}  # of the shifts, by parameter
    for layer in model.modules():
        if not isinstance(layer, SodaTunerLayer):
            continue
        for name in layer.soda_factors:
            factors = layer.factors(name)
            scale = entry_angle([len(R) for R in factors]) if of_layer else 1.0
            rotations.setdefault(scale, []).extend(R for R in factors if R.requires_grad)
        unit = shift_unit(layer.pristine()) if of_layer and len(layer.soda_shift) else 1.0
        units |= {id(p): unit for p in layer.soda_shift.parameters()}
    rotations = {scale: factors for scale, factors in rotations.items() if factors}
    known = {id(R) for factors in rotations.values() for R in factors}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    if not rotations and not any(id(p) in units for p in others):
        raise SettingsError(
            "the model has no SODA layer that trains; wrap it with get_peft_model(model, SodaConfig(…))"
        )
    parts: list[torch.optim.Optimizer] = []
    if rotations:
        groups = [{"params": factors, "scale": scale} for scale, factors in rotations.items()]
        parts.append(StiefelAdam(groups, lr=rotation_lr, retraction=retraction))
    if others and not of_layer:
        parts.append(torch.optim.AdamW(others, lr=shift_lr))
    elif others:
        parts.append(ScaledAdamW(others, shift_lr, [units.get(id(p), 1.0) for p in others]))
    return SodaOptimizer(parts)


class SodaOptimizer(JoinedOptimizer):
    """What :func:`create_optimizer` gives."""

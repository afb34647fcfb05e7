# SPDX-License-Identifier: GPL-3.0-or-later
"""What an adapter's parameters are optimised with: by hand at the settings' rates, or at rates that are estimated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..stiefel import StiefelAdam
from .adam import ScaledAdamW
from .prodigy import Prodigy, of_rotations, of_vectors
from .settings import TrainSettings
from .trainable_layer import TrainableLayer
from .units import rotation_units, shift_units

Part = Literal["rotation", "shift"]

#: Automatic rates start here, below whatever anybody trains with: the authors' rates on SDXL are 4 and 5 times these.
SMALLEST: dict[Part, float] = {"rotation": 1e-4, "shift": 1e-5}
#: What estimates are multiplied by: a compromise of some eight pairs, picked by the very subject and style (one seed
#: each) that are quoted here, so read them kindly. With mse, batches of four and cosine 0.84 and 0.94; with dco the
#: style learns nothing, while twice the rotation's gives it 0.70, but 400 steps of one picture at a constant schedule
#: then end at 0.35 instead of 0.74.
COEFFICIENTS: dict[Part, float] = {"rotation": 4.0, "shift": 2.0}


def optimizers(
    settings: TrainSettings,
    layers: Iterable[TrainableLayer],
    rotations: Mapping[int, Tensor],
    shifts: Tensor | None,
    shift_sizes: Sequence[int],
) -> dict[str, torch.optim.Optimizer]:
    """Stiefel Adam for the rotations, AdamW for the shifts, as far as each is trained; by :data:`Part`.

    Args:
        rotations: the stacks ``(n, k, k)`` by size.
        shifts: of all layers, end to end.
        shift_sizes: how much of them is each layer's.
    """
    layers, automatic = list(layers), settings.automatic
    of_layer = automatic or settings.rate_units == "layer"
    found: dict[str, torch.optim.Optimizer] = {}
    if rotations:
        groups: list[dict[str, Any]] = [{"params": [stack]} for stack in rotations.values()]
        units = rotation_units(layers, rotations) if of_layer else []
        for group, unit in zip(groups, units, strict=False):
            group["scale"] = unit
        adam = StiefelAdam(groups, 1.0 if automatic else settings.rotation_lr, retraction=settings.retraction)
        found["rotation"] = _estimated("rotation", adam, units) if automatic else adam
    if shifts is not None and of_layer:
        unit = shift_units(layers, shift_sizes).to(shifts)
        adamw = ScaledAdamW([shifts], 1.0 if automatic else settings.shift_lr, [unit])
        found["shift"] = _estimated("shift", adamw, [unit]) if automatic else adamw
    elif shifts is not None:
        found["shift"] = torch.optim.AdamW([shifts], lr=settings.shift_lr)
    return found


def _estimated(part: Part, inner: torch.optim.Optimizer, units: Sequence[Tensor]) -> Prodigy:
    coordinates = of_rotations if part == "rotation" else of_vectors
    return Prodigy(inner, coordinates, units, SMALLEST[part], COEFFICIENTS[part])

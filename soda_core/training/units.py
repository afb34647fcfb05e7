# SPDX-License-Identifier: GPL-3.0-or-later
"""What a learning rate of 1 means for each trained value, so that one rate suits layers of any size.

A rotation's rate is the RMS angle in radians that a step turns the layer's K by, a shift's is relative to the RMS of
the layer's singular values: as far as Adam's normalised gradient is 1, which it is in the first step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..kronecker import rms_angle
from ..linalg import flatten_weight, result_dtype
from .settings import TrainSettings
from .trainable_layer import TrainableLayer


def entry_angle(sizes: Sequence[int]) -> float:
    """Size of the entries of all factors' skew steps, for K to turn by an RMS angle of 1."""
    return 1 / max(1.0, rms_angle(sizes))


def rotation_units(layers: Iterable[TrainableLayer], stacks: Mapping[int, Tensor]) -> list[Tensor]:
    """:func:`entry_angle` of every factor, ``(n,)`` for each stack ``(n, k, k)`` by size, in the layers' order."""
    units: dict[int, list[float]] = {k: [] for k in stacks}
    for layer in layers:
        for k in layer.sizes:
            units[k].append(entry_angle(layer.sizes))
    return [torch.tensor(units[k], dtype=stack.dtype, device=stack.device) for k, stack in stacks.items()]


def shift_units(layers: Iterable[TrainableLayer], sizes: Sequence[int]) -> Tensor:
    """RMS of the layer's singular values for each trained value of the shifts, ``(Σ sizes,)``, on the spectra's device.

    A curve's heights are in the units of the shift itself.
    """
    rms = torch.stack([layer.spectrum.rms.float() for layer in layers if layer.spectrum is not None])
    return unit_of(rms).repeat_interleave(torch.tensor(sizes, device=rms.device), output_size=sum(sizes))


def unit_of(rms: Tensor) -> Tensor:
    """A weight of zeros has no size to be relative to: its shift counts as it is."""
    return rms.masked_fill(rms == 0, 1.0)


def shift_unit(weight: Tensor) -> float:
    """The same for a weight ``(out, in, *kernel)`` that is not decomposed; waits for its device."""
    W = flatten_weight(weight)
    return float(unit_of(W.to(result_dtype(W)).norm() / min(W.shape) ** 0.5))


def rates_in_words(settings: TrainSettings) -> str:
    """The learning rates of what is trained, with their units."""
    if settings.automatic:
        return "automatic"
    of_layer = settings.rate_units == "layer"
    said = []
    if settings.rotates:
        unit = "rad of a layer's RMS angle" if of_layer else "rad of a factor's entries"
        said.append(f"rotation {settings.rotation_lr:g} {unit}")
    if settings.shifts:
        unit = "of the RMS singular value" if of_layer else "in the units of the singular values"
        said.append(f"shift {settings.shift_lr:g} {unit}")
    return ", ".join(said)

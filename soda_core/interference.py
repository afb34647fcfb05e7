# SPDX-License-Identifier: GPL-3.0-or-later
"""How much two adapters get in each other's way, measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .adapter import SodaAdapter
from .base_weight import BaseWeight
from .layer import AdaptedLayer, SodaLayer
from .linalg import rotation_angles

#: The base weight of a layer by its name, or None where the model has no such layer.
WeightLookup = Callable[[str], BaseWeight | None]


@dataclass(frozen=True)
class Interference:
    """How much two adapters get in each other's way in one layer."""

    cosine: float | None  #: between the two deltas: 0 independent, 1 the same change, -1 opposite; None without a base
    sizes: tuple[float, float] | None  #: norms of the two deltas; None without a base
    rotation_distance: float | None  #: RMS geodesic distance of the rotations, degrees; None without two like rotations
    shift_cosine: float | None  #: between the two shifts, which share one basis; None without two like shifts
    #: norm of the merged change; None where it was not asked for: of a sum the others tell it
    merged: float | None = None


def interference(
    subject: SodaAdapter, style: SodaAdapter, weights: WeightLookup | None = None, merged: SodaAdapter | None = None
) -> dict[str, Interference]:
    """Interference of every layer both adapters have.

    Args:
        weights: pristine weights, for the exact cosine of the deltas; without it only what the adapters alone tell.
        merged: what the two became, to be measured as well; not needed of a delta merge.
    """
    made = {} if merged is None or merged.metadata["settings"]["merge_method"] == "delta" else merged.layers
    return {
        name: _interference(
            subject.layers[name], style.layers[name], weights(name) if weights else None, made.get(name)
        )
        for name in subject.layers
        if name in style.layers
    }


def _interference(
    a: AdaptedLayer, b: AdaptedLayer, base: BaseWeight | None, merged: AdaptedLayer | None
) -> Interference:
    cosine = sizes = size = None
    if base is not None:
        deltas = a.delta(base), b.delta(base)
        cosine, sizes = cosine_between(*deltas), (float(deltas[0].norm()), float(deltas[1].norm()))
        size = float(merged.delta(base).norm()) if merged is not None else None
    distance = shift_cosine = None
    if (one := a.single) is not None and (other := b.single) is not None:
        if one.factors and [R.shape for R in one.factors] == [R.shape for R in other.factors]:
            distance = rotation_distance(one, other)
        if one.shift is not None and other.shift is not None and _alike(one, other):
            shift_cosine = cosine_between(one.shift, other.shift)
    return Interference(cosine, sizes, distance, shift_cosine, size)


def _alike(a: SodaLayer, b: SodaLayer) -> bool:
    """Whether two shifts are over one basis."""
    return a.decomposition == b.decomposition and a.rank == b.rank


def cosine_between(x: Tensor, y: Tensor) -> float:
    """0 where either vanishes: nothing to interfere with."""
    x, y = x.flatten(), y.flatten()
    scale = float(x.norm()) * float(y.norm())
    return float(torch.dot(x, y)) / scale if scale else 0.0


def rotation_distance(a: SodaLayer, b: SodaLayer) -> float:
    """RMS angle of ``K_aᵀ K_b`` in degrees: ``‖log K_aᵀK_b‖_F / sqrt(in)``.

    ``log`` of a Kronecker product is a sum of terms that act on one axis each and are orthogonal (skew matrices have
    no trace), so ``‖log K‖² = Σ_i (in / k_i) ‖log R_i‖²`` and K is never formed.
    """
    pairs = zip(a.factors, b.factors, strict=True)
    mean_squares = [float(rotation_angles(Ra.double().mT @ Rb.double()).square().mean()) for Ra, Rb in pairs]
    return math.degrees(math.sqrt(sum(mean_squares)))

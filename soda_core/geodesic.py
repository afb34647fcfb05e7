# SPDX-License-Identifier: GPL-3.0-or-later
"""Merging on the manifold: SODA layers of one weight become one by their rotations' logarithms and their shifts.

Costs logarithms and exponentials of the factors, ``O(k³)`` of matrices of 4 to 96 rows, in one batch per size for all
layers: well under a second for a whole model. No base weight is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .base_check import Sketches, relative_error
from .combine import MOST_GAIN
from .compound import SodaProduct
from .kronecker import geodesic_power
from .layer import MOST_STRENGTH, MOST_TERMS, AdaptedLayer, SodaLayer
from .linalg import in_batches, orthogonal_log, skew_exp

#: Two sketches of one weight differ by float32 rounding at most, those of its copy in another precision by more.
_SAME_BASE = 1e-5

#: Strengths and layers of one weight.
Parts = Sequence[tuple[float, SodaLayer]]
Rotations = Sequence[tuple[float, Sequence[Tensor]]]


def geodesic(
    layers: Mapping[str, Parts], mean_norm: bool = False, linear_spectrum: bool = False
) -> dict[str, AdaptedLayer]:
    """Per factor ``R_i = exp(Σ_j a_j log R_ij)`` and ``shift = Σ_j a_j shift_j``: again a SODA layer.

    Where factor sizes differ there is no common logarithm, and the rotations turn one after the other,
    ``K = K_1^a_1 K_2^a_2``; where decompositions differ the spectral parts add up: then the layer is a
    :class:`.compound.SodaProduct`.

    Args:
        mean_norm: rescale sums to ``Σ |a_j| ‖log K_j‖``, and of shifts to ``Σ |a_j| ‖shift_j‖``: with ``a_j = 1 / n``
            that is the magnitude rule of OrthoMerge (arXiv 2602.05943, 2026), which takes Cayley parameters in the
            place of logarithms. Opposite changes stop at :data:`.combine.MOST_GAIN`; rotations of different sizes
            count as being at right angles.
        linear_spectrum: the spectral part is ``Σ_j a_j Δ(shift_j)`` instead. The two differ where a ReLU clips.
    Raises:
        ManifoldError: a rotation that has no unique logarithm.
    """
    rotations = _rotations(
        {name: [(a, layer.factors) for a, layer in parts if layer.factors] for name, parts in layers.items()}, mean_norm
    )
    return {name: _layer(parts, rotations[name], mean_norm, linear_spectrum) for name, parts in layers.items()}


def _layer(parts: Parts, rotations: list[list[Tensor]], mean_norm: bool, linear_spectrum: bool) -> AdaptedLayer:
    if mean_norm:
        gain = _shift_gain(parts)
        parts = [(a * gain, layer) for a, layer in parts]
    shifted = [(a, layer) for a, layer in parts if layer.shift is not None]
    shifted = [(a, layer) for a, layer in shifted if a != 0.0] or shifted[:1]
    kinds = {layer.decomposition for _, layer in shifted}
    scaled = linear_spectrum and any(layer.decomposition == "svd" and a not in (0.0, 1.0) for a, layer in shifted)
    if len(rotations) > 1 or len(kinds) > 1 or scaled:
        rotating = iter(rotations)
        return SodaProduct(tuple((a, replace(layer, factors=next(rotating, []))) for a, layer in parts))
    knots = _merged_knots(shifted)
    return SodaLayer(
        decomposition=next(iter(kinds), parts[0][1].decomposition),
        factors=rotations[0] if rotations else [],
        shift=_added((a, layer.shift) for a, layer in shifted),
        shape=next((layer.shape for _, layer in parts if layer.shape is not None), None),
        sketches=_merged_sketches(parts, is_curve=knots is not None),
        knots=knots,
    )


def _added(terms: Iterable[tuple[float, Tensor | None]]) -> Tensor | None:
    known = [a * x for a, x in terms if x is not None]
    return torch.stack(known).sum(0) if known else None


# ----------------------------------------------------------------------------------------------------------- rotations


def _rotations(layers: Mapping[str, Rotations], mean_norm: bool) -> dict[str, list[list[Tensor]]]:
    """Of every layer the factors of its rotation, or where sizes differ of several, which turn one after the other.

    Exact where strengths are 0 and 1 and no two rotations meet.
    """
    active = {name: [(a, factors) for a, factors in of if a != 0.0] for name, of in layers.items()}
    moved = {name: of for name, of in active.items() if not _stands(of)}
    logs = iter(in_batches(orthogonal_log, [R for of in moved.values() for _, factors in of for R in factors]))
    generators = {
        name: _generators([[a * next(logs) for _ in factors] for a, factors in of], mean_norm)
        for name, of in moved.items()
    }
    turned = iter(in_batches(skew_exp, [A for of in generators.values() for group in of for A in group]))
    made: dict[str, list[list[Tensor]]] = {}
    for name, of in layers.items():
        if name in generators:
            dtype = of[0][1][0].dtype
            made[name] = [[next(turned).to(dtype) for _ in group] for group in generators[name]]
        else:
            made[name] = [geodesic_power(factors, a) for a, factors in active[name] or of[:1]]
    return made


def _stands(rotations: Rotations) -> bool:
    """Whether neither a logarithm nor a sum is needed."""
    return all(a in (1.0, -1.0) for a, _ in rotations) and len({_sizes(of) for _, of in rotations}) == len(rotations)


def _generators(logs: Sequence[Sequence[Tensor]], mean_norm: bool) -> list[list[Tensor]]:
    """Sums of the logarithms ``log R_i`` of those that have the same sizes, each already times its strength."""
    groups: dict[tuple[int, ...], list[Tensor]] = {}
    for of in logs:
        sizes = _sizes(of)
        groups[sizes] = [A + B for A, B in zip(groups[sizes], of, strict=True)] if sizes in groups else list(of)
    if not mean_norm:
        return list(groups.values())
    gain = _gain(map(_generator_norm, logs), map(_generator_norm, groups.values()))
    return [[gain * A for A in group] for group in groups.values()]


def _sizes(factors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(R.shape[-1] for R in factors)


def _generator_norm(logs: Sequence[Tensor]) -> float:
    """``‖log K‖`` of a Kronecker product: ``‖log K‖² = Σ_i (in / k_i) ‖log R_i‖²``, as its terms are orthogonal."""
    in_features = math.prod(_sizes(logs))
    return math.sqrt(sum(in_features / A.shape[-1] * float(A.square().sum()) for A in logs))


def _gain(of_parents: Iterable[float], of_sums: Iterable[float]) -> float:
    """What makes the sum as large as its parents' sizes added up."""
    size = math.hypot(*of_sums)
    return min(sum(of_parents) / size, MOST_GAIN) if size else 1.0


# -------------------------------------------------------------------------------------------------------------- shifts


def _shift_gain(parts: Parts) -> float:
    shifted = [(layer.decomposition, a * layer.shift) for a, layer in parts if layer.shift is not None]
    sums = [torch.stack([s for of, s in shifted if of == kind]).sum(0) for kind in {of for of, _ in shifted}]
    return _gain((float(s.norm()) for _, s in shifted), (float(s.norm()) for s in sums))


def _merged_sketches(parts: Parts, is_curve: bool) -> Sketches | None:
    """Sketches add up, and stand for ``Σ a_i Δ(shift_i)``: for SVD, where a ReLU clips, not for Δ of the added shifts.

    None where a part has none, or where its terms are curves and the sum is not.
    """
    known = [(a, layer.sketches) for a, layer in parts if layer.sketches is not None]
    if len(known) != len(parts):
        return None
    zero = torch.zeros_like(known[0][1].spectral)
    spectral, base = sum((a * sketches.spectral for a, sketches in known), zero), known[0][1].base
    terms: list[tuple[float, Tensor]] = []
    for a, layer in parts:
        if layer.decomposition != "svd" or layer.shift is None or a == 0.0:
            continue
        of_layer = layer.sketches.terms if layer.sketches is not None else ()
        if of_layer and not is_curve and layer.knots is not None:
            return None
        own = layer.knots if is_curve and layer.knots is not None else layer.shift
        terms += [(a * b, shift) for b, shift in of_layer or [(1.0, own)]]
    if [a for a, _ in terms] == [1.0]:
        terms = []
    if len(terms) > MOST_TERMS or any(abs(a) > MOST_STRENGTH for a, _ in terms):
        return None
    return Sketches(spectral, base, tuple(terms))


def _merged_knots(shifted: Parts) -> Tensor | None:
    """A sum of curves is a curve through the sums of their knots' heights, if all run over the same singular values.

    None where they are not known to: another number of knots, another base, or no sketches to tell it by.
    """
    curves = [(a, layer.knots) for a, layer in shifted if layer.knots is not None]
    if not curves or len(curves) != len(shifted) or len({knots.shape for _, knots in curves}) > 1:
        return None
    if len(curves) > 1 and not _one_base([layer for _, layer in shifted]):
        return None
    return _added(curves)


def _one_base(layers: Sequence[SodaLayer]) -> bool:
    """Whether layers are known to have been trained on the same weight."""
    bases = [layer.sketches.base for layer in layers if layer.sketches is not None]
    return len(bases) == len(layers) and all(relative_error(base, bases[0]) < _SAME_BASE for base in bases)

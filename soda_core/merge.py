# SPDX-License-Identifier: GPL-3.0-or-later
"""Merging a subject and a style adapter without training (Zhang et al. 2025, section 3.4), and their interference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .adapter import SodaAdapter
from .base_check import Sketches, relative_error
from .base_weight import BaseWeight
from .blocks import block_strengths
from .errors import MergeError, SettingsError
from .kronecker import geodesic_power
from .layer import MOST_STRENGTH, MOST_TERMS, AdaptedLayer, SodaLayer, SodaSum, check_strength
from .linalg import in_batches, orthogonal_log, rotation_angles, skew_exp

MergeMethod = Literal["delta", "geodesic"]

#: The base weight of a layer by its name, or None where the model has no such layer.
WeightLookup = Callable[[str], BaseWeight | None]

#: Two sketches of one weight differ by float32 rounding at most, those of its copy in another precision by more.
_SAME_BASE = 1e-5


def merge(
    subject: SodaAdapter,
    style: SodaAdapter,
    subject_strength: float = 1.0,
    style_strength: float = 1.0,
    method: MergeMethod = "delta",
    subject_blocks: str = "",
    style_blocks: str = "",
) -> SodaAdapter:
    """One adapter out of two; it adapts, saves and loads like its parents.

    - "delta" (the paper): ``W = W0 + a (W_subject - W0) + b (W_style - W0)``, both from the pristine W0, so the order
      does not matter and chaining two loaders gives the same.
    - "geodesic" (ours): per factor ``exp(a log R_subject + b log R_style)``, shifts ``a s_subject + b s_style``: again
      a SODA adapter, as small as its parents.

    A layer that only one parent has keeps that parent's change at its strength.

    Args:
        subject_blocks, style_blocks: what strengths are multiplied by in some blocks, see
            :func:`.blocks.block_strengths`.
    Raises:
        MergeError: "geodesic" with factors of different sizes, different decompositions, or parents that are delta
            merges themselves; the message offers "delta".
    """
    if method not in get_args(MergeMethod):
        raise SettingsError(f"unknown merge method {method!r}; choose one of {list(get_args(MergeMethod))}")
    check_strength("subject_strength", subject_strength)
    check_strength("style_strength", style_strength)
    _check_same_base(subject, style)
    parents = [(subject, subject_strength, subject_blocks), (style, style_strength, style_blocks)]
    strengths = [
        (parent, {name: strength * b for name, b in block_strengths(blocks, parent.layers, of).items()})
        for of, (parent, strength, blocks) in zip(("the subject", "the style"), parents, strict=True)
    ]
    parts = {
        name: [(of[name], parent.layers[name]) for parent, of in strengths if name in parent.layers]
        for name in dict.fromkeys([*subject.layers, *style.layers])
    }
    layers: dict[str, AdaptedLayer] = {}
    if method == "delta":
        layers |= {name: _delta_layer(name, of) for name, of in parts.items()}
    else:
        single = {name: _single_layers(name, of) for name, of in parts.items()}
        factors = _geodesic_factors({name: _rotations(name, of) for name, of in single.items()})
        layers |= {name: _geodesic_layer(name, of, factors[name]) for name, of in single.items()}
    return SodaAdapter(layers, _metadata(parents, method))


def _check_same_base(subject: SodaAdapter, style: SodaAdapter) -> None:
    for name in set(subject.layers) & set(style.layers):
        a, b = subject.layers[name], style.layers[name]
        for what, of_subject, of_style in (
            ("a weight of shape", a.shape, b.shape),
            ("a rotation of size", a.in_features, b.in_features),
            ("a shift of size", a.rank, b.rank),
        ):
            if of_subject is not None and of_style is not None and of_subject != of_style:
                raise MergeError(
                    f"layer {name!r} has {what} {of_subject} in the subject ({subject.label}) and {of_style} in the "
                    f"style ({style.label}); both must be trained on the same base model"
                )
    if not set(subject.layers) & set(style.layers) and not _same_family(subject, style):
        raise MergeError(
            f"subject ({subject.label}) and style ({style.label}) have no layer in common and belong to different base "
            "models; train both on the same base model"
        )


def _same_family(a: SodaAdapter, b: SodaAdapter) -> bool:
    return a.base_model.get("family") == b.base_model.get("family")


def _delta_layer(name: str, parts: list[tuple[float, AdaptedLayer]]) -> AdaptedLayer:
    terms = tuple((strength * a, term) for strength, layer in parts for a, term in layer.terms)
    if len(terms) > MOST_TERMS:
        raise MergeError(f"layer {name!r} would be a sum of {len(terms)} changes, at most {MOST_TERMS} are kept")
    for strength, _ in terms:
        check_strength(f"the product of strengths in layer {name!r}", strength)
    return SodaSum(terms)


Parts = list[tuple[float, SodaLayer]]
Rotations = list[tuple[float, Sequence[Tensor]]]


def _single_layers(name: str, parts: list[tuple[float, AdaptedLayer]]) -> Parts:
    single: Parts = []
    for strength, layer in parts:
        if layer.single is None:
            raise MergeError(f"layer {name!r} is already a delta merge, which has no factors; use method 'delta'")
        single.append((strength, layer.single))
    return single


def _rotations(name: str, parts: Parts) -> Rotations:
    rotated: Rotations = [(a, layer.factors) for a, layer in parts if layer.factors]
    sizes = {tuple(R.shape[-1] for R in factors) for _, factors in rotated}
    if len(sizes) > 1:
        raise MergeError(
            f"layer {name!r} has factor sizes {' and '.join(map(str, sorted(sizes)))}; rotations of different "
            "Kronecker sizes have no common geodesic. Train both with one factor preset, or use method 'delta'"
        )
    return rotated


def _geodesic_layer(name: str, parts: Parts, factors: list[Tensor]) -> SodaLayer:
    shifted = [(a, layer) for a, layer in parts if layer.shift is not None]
    kinds = {layer.decomposition for _, layer in shifted}
    if len(kinds) > 1:
        raise MergeError(f"layer {name!r}: one adapter's shift is SVD, the other's QR; use method 'delta'")
    shift = sum((a * layer.shift for a, layer in shifted if layer.shift is not None), torch.tensor(0.0))
    knots = _merged_knots(shifted)
    return SodaLayer(
        decomposition=next(iter(kinds), parts[0][1].decomposition),
        factors=factors,
        shift=shift if shifted else None,
        shape=next((layer.shape for _, layer in parts if layer.shape is not None), None),
        sketches=_merged_sketches(parts, is_curve=knots is not None),
        knots=knots,
    )


def _geodesic_factors(rotations: Mapping[str, Rotations]) -> dict[str, list[Tensor]]:
    """``exp(Σ a_j log R_ij)`` per layer and factor i; exact where all but one strength are zero.

    All layers at once: logarithms and exponentials of small matrices cost next to nothing in batches.
    """
    merged: dict[str, list[Tensor]] = {}
    columns: list[tuple[str, list[float], tuple[Tensor, ...]]] = []
    for name, parts in rotations.items():
        active = [(a, factors) for a, factors in parts if a != 0.0]
        if len(active) > 1:
            strengths = [a for a, _ in active]
            columns += [(name, strengths, column) for column in zip(*(f for _, f in active), strict=True)]
            merged[name] = []
        else:
            a, factors = active[0] if active else (0.0, parts[0][1] if parts else [])
            merged[name] = geodesic_power(factors, a)
    logs = iter(in_batches(orthogonal_log, [R for _, _, column in columns for R in column]))
    sums = [torch.stack([a * next(logs) for a in strengths]).sum(0) for _, strengths, _ in columns]
    for (name, _, column), R in zip(columns, in_batches(skew_exp, sums), strict=True):
        merged[name].append(R.to(column[0].dtype))
    return merged


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
    return sum((a * knots for a, knots in curves), torch.zeros_like(curves[0][1]))


def _one_base(layers: Sequence[SodaLayer]) -> bool:
    """Whether layers are known to have been trained on the same weight."""
    bases = [layer.sketches.base for layer in layers if layer.sketches is not None]
    return len(bases) == len(layers) and all(relative_error(base, bases[0]) < _SAME_BASE for base in bases)


def _metadata(parts: list[tuple[SodaAdapter, float, str]], method: str) -> dict[str, Any]:
    (subject, a, subject_blocks), (style, b, style_blocks) = parts
    blocks = {"subject_blocks": subject_blocks, "style_blocks": style_blocks}
    triggers = [t for t in (subject.trigger_phrase, style.trigger_phrase) if t]
    return {
        "title": f"{subject.title} + {style.title}",
        "trigger_phrase": ", ".join(dict.fromkeys(triggers)),
        "base_model": subject.metadata.get("base_model") or style.metadata.get("base_model"),
        "settings": {"merge_method": method, "subject_strength": a, "style_strength": b}
        | {key: text for key, text in blocks.items() if text.strip()},
        "versions": subject.metadata.get("versions"),
        "parents": [
            {"role": role, "title": parent.title, "hash": parent.identity(), "strength": strength}
            for role, parent, strength in (("subject", subject, a), ("style", style, b))
        ],
    }


# ------------------------------------------------------------------------------------------------------- interference


@dataclass(frozen=True)
class Interference:
    """How much two adapters get in each other's way in one layer."""

    cosine: float | None  #: between the two deltas: 0 independent, 1 the same change, -1 opposite; None without a base
    sizes: tuple[float, float] | None  #: norms of the two deltas; None without a base
    rotation_distance: float | None  #: RMS geodesic distance of the rotations, degrees; None without two like rotations
    shift_cosine: float | None  #: between the two shifts, which share one basis; None without two like shifts


def interference(
    subject: SodaAdapter, style: SodaAdapter, weights: WeightLookup | None = None
) -> dict[str, Interference]:
    """Interference of every layer both adapters have.

    Args:
        weights: pristine weights, for the exact cosine of the deltas; without it only what the adapters alone tell.
    """
    return {
        name: _interference(subject.layers[name], style.layers[name], weights(name) if weights else None)
        for name in subject.layers
        if name in style.layers
    }


def _interference(a: AdaptedLayer, b: AdaptedLayer, base: BaseWeight | None) -> Interference:
    cosine = sizes = None
    if base is not None:
        deltas = a.delta(base), b.delta(base)
        cosine, sizes = _cosine(*deltas), (float(deltas[0].norm()), float(deltas[1].norm()))
    distance = shift_cosine = None
    if (one := a.single) is not None and (other := b.single) is not None:
        if one.factors and [R.shape for R in one.factors] == [R.shape for R in other.factors]:
            distance = rotation_distance(one, other)
        if one.shift is not None and other.shift is not None and _alike(one, other):
            shift_cosine = _cosine(one.shift, other.shift)
    return Interference(cosine, sizes, distance, shift_cosine)


def _alike(a: SodaLayer, b: SodaLayer) -> bool:
    """Whether two shifts are over one basis."""
    return a.decomposition == b.decomposition and a.rank == b.rank


def _cosine(x: Tensor, y: Tensor) -> float:
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

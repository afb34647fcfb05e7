# SPDX-License-Identifier: GPL-3.0-or-later
"""Merging a subject and a style adapter without training (Zhang et al. 2025, section 3.4, and later work)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import torch

from .adapter import SodaAdapter
from .blocks import block_strengths
from .compound import SodaSum
from .errors import MergeError, SettingsError
from .geodesic import geodesic
from .layer import MOST_TERMS, AdaptedLayer, Rule, SodaLayer, check_strength

MergeMethod = Literal["delta", "geodesic", "normalised", "parts", "projection", "tsv"]
Magnitude = Literal["constant", "orthofuse", "mean norm"]

#: Layers by name, of each the strengths and layers of those adapters that have it, the subject's first.
Parts = Mapping[str, list[tuple[float, AdaptedLayer]]]


def merge(
    subject: SodaAdapter,
    style: SodaAdapter,
    subject_strength: float = 1.0,
    style_strength: float = 1.0,
    method: MergeMethod = "delta",
    subject_blocks: str = "",
    style_blocks: str = "",
    balance: float = 0.5,
    magnitude: Magnitude = "constant",
) -> SodaAdapter:
    """One adapter out of two; it adapts, saves and loads like its parents. No method needs the base model.

    With ``D = W - W0`` of an adapter, both from the pristine W0, and strengths a (subject) and b (style):

    - "delta" (the paper): ``a D_subject + b D_style``: order does not matter, and chaining two loaders gives the same.
    - "normalised": that sum, rescaled to the size of the larger part, layer by layer: :func:`.combine.normalised`.
    - "geodesic" (ours): per factor ``exp(a log R_subject + b log R_style)``, shifts ``a s_subject + b s_style``: again
      a SODA adapter, as small as its parents. Where factor sizes differ the rotations turn one after the other,
      ``K_subject^a K_style^b``; see :func:`.geodesic.geodesic`.
    - "parts": the subject's rotation with the style's spectrum, ``(W0 + b Δ_style) (K_subject^a)ᵀ``, as small as one
      parent, and at b = 1 (with QR always) a SODA layer. The subject's shift is left out; the style must have no
      rotation, since without it a style that was trained with one is gone.
    - "projection": ``a D_subject`` softly off the style's principal inputs, plus ``b D_style``:
      :func:`.combine.projection` (after NP-LoRA, arXiv 2511.11051).
    - "tsv": the leading singular directions of both, made orthogonal to one another: :func:`.combine.tsv` (TSV-Merge,
      arXiv 2412.00081). Of low rank, so an export as a LoRA keeps it.

    A layer that only one parent has keeps that parent's change at its strength ("parts": its rotation or its shift).
    "delta", "normalised" and "tsv" take any number of adapters: merge the result with the next by the same method, and
    the formula holds for all of them at once. Costs little here: what needs the weights is evaluated where they are.

    Args:
        subject_blocks, style_blocks: what strengths are multiplied by in some blocks, see
            :func:`.blocks.block_strengths`.
        balance: t from 0 (the subject) to 1 (the style); strengths become ``g (1 - t) a`` and ``g t b``.
        magnitude: g along t. "constant": 2, so that 0.5 leaves the strengths as they are. "orthofuse":
            ``1 + 4 t (1 - t)``, 1 at both ends, as OrthoFuse has it (arXiv 2604.05183, CVPR 2026, which recommends
            t = 0.6; its exact geodesic between the two rotations differs in the second order of the angles). "mean
            norm", of "geodesic" alone: in each layer what keeps the mean size of both, see
            :func:`.geodesic.geodesic`; a layer that only one parent has then counts as merged with no change.
    Raises:
        SettingsError: a strength, balance, method or magnitude that there is not.
        MergeError: not of one base, or parents that are merges themselves, where the method cannot take them; the
            message says what can.
        ManifoldError: a rotation that has no unique logarithm, where one is needed.
    """
    _check_choices(method, magnitude, balance)
    check_strength("subject_strength", subject_strength)
    check_strength("style_strength", style_strength)
    _check_same_base(subject, style)
    a, b = balanced(subject_strength, style_strength, balance, magnitude)
    check_strength("subject_strength at this balance", a)
    check_strength("style_strength at this balance", b)
    strengths = [
        {name: strength * in_block for name, in_block in block_strengths(blocks, of.layers, role).items()}
        for of, strength, blocks, role in (
            (subject, a, subject_blocks, "the subject"), (style, b, style_blocks, "the style")
        )
    ]  # fmt: skip
    parts = {
        name: [(of[name], parent.layers[name]) for parent, of in zip((subject, style), strengths, strict=True)
               if name in parent.layers]
        for name in dict.fromkeys([*subject.layers, *style.layers])
    }  # fmt: skip
    layers: Mapping[str, AdaptedLayer]
    if method == "geodesic":
        layers = geodesic(_single_layers(parts), mean_norm=magnitude == "mean norm")
    elif method == "parts":
        layers = _parts(subject, style, *strengths)
    else:
        layers = {name: _summed(name, of, "sum" if method == "delta" else method) for name, of in parts.items()}
    blocks = {"subject_blocks": subject_blocks, "style_blocks": style_blocks}
    settings: dict[str, Any] = {
        "merge_method": method, "subject_strength": subject_strength, "style_strength": style_strength
    } | {key: text for key, text in blocks.items() if text.strip()}  # fmt: skip
    if (balance, magnitude) != (0.5, "constant"):
        settings |= {"balance": balance, "magnitude": magnitude}
    return SodaAdapter(layers, _metadata((subject, a), (style, b), settings))


def balanced(a: float, b: float, balance: float, magnitude: Magnitude) -> tuple[float, float]:
    """``g (1 - t) a`` and ``g t b``; of "mean norm", whose g is another in each layer, without it."""
    g = {"constant": 2.0, "orthofuse": 1 + 4 * balance * (1 - balance), "mean norm": 1.0}[magnitude]
    return g * (1 - balance) * a, g * balance * b


def _check_choices(method: str, magnitude: str, balance: float) -> None:
    for what, value, choices in (("merge method", method, MergeMethod), ("magnitude", magnitude, Magnitude)):
        if value not in get_args(choices):
            raise SettingsError(f"unknown {what} {value!r}; choose one of {list(get_args(choices))}")
    if not 0.0 <= balance <= 1.0:
        raise SettingsError(f"balance must be a number from 0 (the subject) to 1 (the style), got {balance!r}")
    if magnitude == "mean norm" and method != "geodesic":
        raise SettingsError(
            f"magnitude 'mean norm' belongs to method 'geodesic', not to {method!r}; choose 'constant' or 'orthofuse', "
            "or method 'normalised' to bound the size of a sum"
        )


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


# ------------------------------------------------------------------------------------------------------------- methods


def _summed(name: str, parts: list[tuple[float, AdaptedLayer]], rule: Rule) -> AdaptedLayer:
    """The parts' terms under one rule; plain sums, and if order is free those of the rule itself, are taken apart."""
    if len(parts) == 1:
        return _scaled(name, *parts[0])
    apart = (None,) if rule == "projection" else (None, "sum", rule)
    for _, layer in parts:
        if layer.rule not in apart:
            raise _already_merged(name, layer)
    return _sum(name, [(strength * a, term) for strength, layer in parts for a, term in layer.terms], rule)


def _scaled(name: str, strength: float, layer: AdaptedLayer) -> AdaptedLayer:
    """A layer that only one adapter has, at a strength."""
    if layer.rule == "product":
        if strength != 1.0:
            raise _already_merged(name, layer)
        return layer
    return _sum(name, [(strength * a, term) for a, term in layer.terms], layer.rule or "sum")


def _sum(name: str, terms: list[tuple[float, SodaLayer]], rule: Rule) -> SodaSum:
    if len(terms) > MOST_TERMS:
        raise MergeError(f"layer {name!r} would be a sum of {len(terms)} changes, at most {MOST_TERMS} are kept")
    for strength, _ in terms:
        check_strength(f"the product of strengths in layer {name!r}", strength)
    return SodaSum(tuple(terms), rule)


def _single_layers(parts: Parts) -> dict[str, list[tuple[float, SodaLayer]]]:
    return {name: [(strength, _single(name, layer)) for strength, layer in of] for name, of in parts.items()}


def _single(name: str, layer: AdaptedLayer) -> SodaLayer:
    if layer.single is None:
        raise _already_merged(name, layer)
    return layer.single


def _already_merged(name: str, layer: AdaptedLayer) -> MergeError:
    rule = layer.rule or "sum"
    kind = {"sum": "delta", "product": "geodesic or parts"}.get(rule, rule)
    advice = {
        "sum": "which has no factors; use method 'delta'",
        "normalised": "which takes others by method 'normalised' alone",
        "tsv": "which takes others by method 'tsv' alone",
    }.get(rule, "which is no SODA layer any more")
    return MergeError(
        f"layer {name!r} is already a {kind} merge, {advice}. Or load the two adapters one after the other: their "
        "changes add up as in a delta merge"
    )


def _parts(
    subject: SodaAdapter, style: SodaAdapter, a: Mapping[str, float], b: Mapping[str, float]
) -> dict[str, AdaptedLayer]:
    """The subject's rotations with the style's shifts."""
    singles = [{name: _single(name, layer) for name, layer in of.layers.items()} for of in (subject, style)]
    rotations = {name: layer for name, layer in singles[0].items() if layer.factors}
    spectra = {name: layer for name, layer in singles[1].items() if layer.shift is not None}
    for what, of, missing in (("rotation", subject, not rotations), ("shift", style, not spectra)):
        if missing:
            raise MergeError(f"method 'parts' takes the {what} of {of.label}, which has none; use another method")
    if turned := [name for name, layer in singles[1].items() if layer.factors]:
        raise MergeError(
            f"method 'parts' takes the style's shift alone, but {style.label} was trained with a rotation as well "
            f"(layer {turned[0]!r}), and is gone without it; train it with 'shift only', or use method 'geodesic'"
        )
    parts: dict[str, list[tuple[float, SodaLayer]]] = {
        name: [(a[name], _without_shift(layer))] for name, layer in rotations.items()
    }
    for name, layer in spectra.items():
        parts.setdefault(name, []).append((b[name], layer))
    return geodesic(parts, linear_spectrum=True)


def _without_shift(layer: SodaLayer) -> SodaLayer:
    sketches = layer.sketches
    if sketches is not None:
        sketches = replace(sketches, spectral=torch.zeros_like(sketches.spectral), terms=())
    return replace(layer, shift=None, knots=None, sketches=sketches)


def _metadata(
    subject: tuple[SodaAdapter, float], style: tuple[SodaAdapter, float], settings: dict[str, Any]
) -> dict[str, Any]:
    parents = [("subject", *subject), ("style", *style)]
    triggers = [parent.trigger_phrase for _, parent, _ in parents if parent.trigger_phrase]
    return {
        "title": f"{subject[0].title} + {style[0].title}",
        "trigger_phrase": ", ".join(dict.fromkeys(triggers)),
        "base_model": subject[0].metadata.get("base_model") or style[0].metadata.get("base_model"),
        "settings": settings,
        "versions": subject[0].metadata.get("versions"),
        "parents": [
            {"role": role, "title": parent.title, "hash": parent.identity(), "strength": strength}
            for role, parent, strength in parents
        ],
    }

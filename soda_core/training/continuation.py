# SPDX-License-Identifier: GPL-3.0-or-later
"""What a layer in training starts from when it goes on where an adapter ended, and whether the two fit."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..errors import BaseMismatchError, SettingsError
from ..layer import AdaptedLayer
from .trainable_layer import TrainableLayer

#: Largest relative difference between a shift and a curve that it is: rounding, of the singular values above all.
CURVE_ERROR = 1e-4
_ADVICE = "Train it further with the settings it was trained with"


def check_names(trained: Collection[str], chosen: Collection[str]) -> None:
    """Raise unless an adapter has just the layers that are to be trained."""
    missing = [name for name in chosen if name not in trained]
    surplus = [name for name in trained if name not in chosen]
    said = [f"{len(names)} layers only {where}, the first is {names[0]!r}"
            for names, where in ((missing, "the settings choose"), (surplus, "the adapter has")) if names]  # fmt: skip
    if said:
        raise SettingsError(f"the adapter was trained on other layers: {'; '.join(said)}. {_ADVICE}")


def start_of(
    name: str, trained: AdaptedLayer, layer: TrainableLayer, knots: Tensor | None
) -> tuple[Sequence[Tensor], Tensor | None]:
    """The factors, and the trained values of the shift, that ``layer`` starts from.

    Args:
        trained: the adapter's layer.
        knots: ``(r, knots)`` of the curve that the shift is in training; None where each value is its own.

    Raises:
        SettingsError: another kind of layer.
        BaseMismatchError: trained on another weight.
    """
    single = trained.single
    if single is None:
        raise SettingsError(
            f"layer {name!r} is a sum of several adapters' changes, which has no factors to train; merge with the "
            "method geodesic for an adapter that can be trained further"
        )
    trained.check_shape(name, layer.shape)
    _require(name, "factors of sizes", tuple(R.shape[-1] for R in single.factors), layer.sizes)
    _require(
        name,
        "a shift of the kind",
        "none" if single.shift is None else single.decomposition,
        "none" if layer.spectrum is None else layer.decomposition,
    )
    if single.knots is not None:
        _require(name, "as knots", single.knots.numel(), 0 if knots is None else knots.shape[1])
    if single.shift is None:
        return single.factors, None
    if single.shift.numel() != layer.rank:
        raise BaseMismatchError(
            f"the shift of layer {name!r} has {single.shift.numel()} values, the base model's weight has {layer.rank} "
            "singular values; use the base model the adapter was trained on"
        )
    return single.factors, single.shift if knots is None else _heights(name, single.shift, single.knots, knots)


def _require(name: str, what: str, trained: object, asked: object) -> None:
    if trained != asked:
        raise SettingsError(
            f"layer {name!r} was trained with {what} {trained}, the settings ask for {asked}. {_ADVICE}"
        )


def _heights(name: str, shift: Tensor, known: Tensor | None, knots: Tensor) -> Tensor:
    """Heights of a curve's knots; of an older file, which does not keep them, by least squares."""
    exact = knots.cpu().double()  # (some devices have no float64)
    heights = known
    if heights is None:
        heights = (torch.linalg.pinv(exact) @ shift.double()).float()
    off = float((exact @ heights.double() - shift.double()).norm() / shift.double().norm().clamp(min=1e-30))
    if off > CURVE_ERROR:
        raise BaseMismatchError(
            f"the shift of layer {name!r} is off by {off:.2%} from a curve with {knots.shape[1]} knots over this base "
            "model's singular values; use the base model the adapter was trained on, in the same precision, and the "
            "shift_knots it was trained with"
        )
    return heights

# SPDX-License-Identifier: GPL-3.0-or-later
"""One adapted layer: the single formula, its strength, its delta.

``W = (W0 + Δ(shift)) Kᵀ`` with ``K = R_1 ⊗ … ⊗ R_m`` acting on the input side (Zhang et al. 2025, section 3).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from .base_check import SKETCH_SHAPE, BaseCheck, Sketches, relative_error, sketch, sketch_of
from .base_weight import BaseWeight
from .errors import BaseMismatchError, FileFormatError, SettingsError
from .kronecker import geodesic_power, rotate
from .linalg import check_orthogonal
from .spectral import Decomposition, Spectrum, SvdSpectrum

StrengthMode = Literal["linear", "geodesic"]
#: How the terms of one layer become one change: all but the last see changes only, see :mod:`.combine`.
Rule = Literal["sum", "normalised", "projection", "tsv", "product"]

#: Strengths lie between this and its negative: far beyond any use, far from where float32 ends.
MOST_STRENGTH = 1000.0
#: Terms of a sum: as many as a merge of merges of merges … may add up.
MOST_TERMS = 64


def check_strength(name: str, strength: float) -> float:
    """The strength, if it is a finite number in range.

    Raises:
        SettingsError: calling it ``name``.
    """
    if not -MOST_STRENGTH <= strength <= MOST_STRENGTH:  # (NaN is not)
        raise SettingsError(
            f"{name} must be a number between -{MOST_STRENGTH:g} and {MOST_STRENGTH:g}, got {strength!r}"
        )
    return strength


def check_mode(mode: str) -> None:
    """Raise ``SettingsError`` unless it is a :data:`StrengthMode`."""
    if mode not in get_args(StrengthMode):
        raise SettingsError(f"unknown strength mode {mode!r}; choose one of {list(get_args(StrengthMode))}")


def adapted_weight(W: Tensor, factors: Sequence[Tensor], shift: Tensor | None, spectrum: Spectrum | None) -> Tensor:
    """The formula: ``(W0 + Δ(shift)) Kᵀ``. Differentiable; never decomposes, never forms K.

    Args:
        W: frozen weight ``(out, in)``, float32 or float64.
        factors: ``R_i (k_i, k_i)``; empty for no rotation.
        shift: ``(r,)`` or None for no shift.
        spectrum: decomposition of W, needed with a shift.
    """
    if shift is not None:
        if spectrum is None:
            raise SettingsError("a shift needs the decomposition of the weight")
        W = W + spectrum.delta(shift).to(W)
    return rotate(W, factors)


class AdaptedLayer(ABC):
    """The change of one layer's weight: a SODA layer, or several made one (:mod:`.compound`).

    Wherever a base weight is asked for, a plain tensor ``(out, in, *kernel)`` does as well as a :class:`BaseWeight`.
    """

    #: shape of the weight it was trained on, where known
    shape: tuple[int, ...] | None
    #: strengths and SODA layers that it is made of; of a SODA layer itself at 1
    terms: tuple[tuple[float, SodaLayer], ...]

    @property
    @abstractmethod
    def rule(self) -> Rule | None:
        """How its terms become one change, as a file calls it; None of a SODA layer."""

    @property
    @abstractmethod
    def single(self) -> SodaLayer | None:
        """The layer as one rotation and one shift; None where it is made of several."""

    @property
    @abstractmethod
    def in_features(self) -> int | None:
        """Number of inputs it rotates, ``in * prod(kernel)``, where it can be told."""

    @property
    @abstractmethod
    def rank(self) -> int | None:
        """Number of values of its shift, where it has one."""

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """How many numbers were trained: those of rotations, and of shifts their values, or their knots of a curve."""

    @abstractmethod
    def delta(self, weight: Tensor | BaseWeight, strength: float = 1.0, mode: StrengthMode = "linear") -> Tensor:
        """``W(strength) - W0``, in weight's shape, float32 (float64 for a float64 weight)."""

    def adapt(self, weight: Tensor | BaseWeight, strength: float = 1.0, mode: StrengthMode = "linear") -> Tensor:
        """The adapted weight, in weight's shape, dtype and device; weight itself is untouched.

        Args:
            weight: pristine base weight ``(out, in, *kernel)``.
            strength: 0 = base, 1 = as trained; within ±:data:`MOST_STRENGTH`.
            mode: "linear" ``W0 + s (W - W0)``; "geodesic" ``R_i^s`` and ``s shift``, which stays a SODA layer.
        """
        base = BaseWeight.of(weight)
        delta = self.delta(base, strength, mode)
        return (base.matrix + delta.flatten(1)).reshape(base.shape).to(base.stored)

    @abstractmethod
    def check_base(self, weight: Tensor | BaseWeight) -> BaseCheck | None:
        """How well the spectral part is reproduced on ``weight``; None where the layer carries no sketches."""

    def check_shape(self, name: str, shape: Sequence[int]) -> None:
        """Raise unless the layer, called ``name``, fits a weight of ``shape``."""
        shape = tuple(shape)
        advice = "use the base model the adapter was trained on"
        if len(shape) < 2:
            raise BaseMismatchError(f"layer {name!r} is no matrix in the base model, but of shape {shape}; {advice}")
        in_features = math.prod(shape[1:])
        rank = min(shape[0], in_features)
        for _, term in self.terms:
            if term.shape is not None and tuple(term.shape) != shape:
                raise BaseMismatchError(
                    f"layer {name!r} was trained on a weight of shape {tuple(term.shape)}, the base model has "
                    f"{shape}; {advice}"
                )
            if term.in_features is not None and term.in_features != in_features:
                raise BaseMismatchError(
                    f"layer {name!r} rotates {term.in_features} inputs, the base model's weight of shape {shape} has "
                    f"{in_features}; {advice}"
                )
            if term.rank is not None and term.rank != rank:
                raise BaseMismatchError(
                    f"the shift of layer {name!r} has {term.rank} values, the base model's weight of shape "
                    f"{shape} has {rank} singular values; {advice}"
                )

    @abstractmethod
    def validate(self, name: str) -> None:
        """Raise unless every tensor is finite, well shaped and on its manifold."""


@dataclass(frozen=True, eq=False)
class SodaLayer(AdaptedLayer):
    """Factors and shift of one layer.

    Args:
        decomposition: "svd" or "qr".
        factors: orthogonal ``R_i (k_i, k_i)``; ``[]`` = no rotation.
        shift: ``(r,)`` with ``r = min(out, in)``; None = no shift.
        sketches: what the base check compares with; None = nothing to compare.
        knots: ``(knots,)`` heights of the curve that an SVD shift is (see :meth:`.spectral.SvdSpectrum.knots`); None
            where the shift is no such curve. The shift alone decides what the layer does; knots let it train further.
    """

    decomposition: Decomposition = "svd"
    factors: Sequence[Tensor] = field(default_factory=list)
    shift: Tensor | None = None
    shape: tuple[int, ...] | None = None
    sketches: Sketches | None = None
    knots: Tensor | None = None

    def __post_init__(self) -> None:
        if self.decomposition not in get_args(Decomposition):
            raise SettingsError(
                f"unknown decomposition {self.decomposition!r}; choose one of {list(get_args(Decomposition))}"
            )

    def __repr__(self) -> str:
        sizes = " x ".join(str(R.shape[-1]) for R in self.factors) or "none"
        shift = "none" if self.shift is None else str(self.shift.numel())
        knots = "" if self.knots is None else f" on {self.knots.numel()} knots"
        return f"SodaLayer({self.decomposition}, shape={self.shape}, factors {sizes}, shift {shift}{knots})"

    @property
    def terms(self) -> tuple[tuple[float, SodaLayer], ...]:  # type: ignore[override]
        return ((1.0, self),)

    @property
    def rule(self) -> None:
        return None

    @property
    def single(self) -> SodaLayer | None:
        return self

    @property
    def in_features(self) -> int | None:
        return math.prod(R.shape[-1] for R in self.factors) if self.factors else None

    @property
    def rank(self) -> int | None:
        return None if self.shift is None else self.shift.numel()

    @property
    def num_parameters(self) -> int:
        shift = self.shift if self.knots is None else self.knots
        return sum(R.numel() for R in self.factors) + (0 if shift is None else shift.numel())

    def at_strength(self, strength: float) -> SodaLayer:
        """The layer a part (or more) of the way along its geodesic from the base: again a SODA layer."""
        check_strength("strength", strength)
        if strength == 1.0:
            return self
        return replace(
            self,
            factors=geodesic_power(self.factors, strength),
            shift=None if self.shift is None else self.shift * strength,
            sketches=None,
            knots=None if self.knots is None else self.knots * strength,
        )

    def delta(self, weight: Tensor | BaseWeight, strength: float = 1.0, mode: StrengthMode = "linear") -> Tensor:
        check_mode(mode)
        check_strength("strength", strength)
        base = BaseWeight.of(weight)
        W = base.matrix
        if strength == 0.0:
            return torch.zeros_like(W).reshape(base.shape)
        layer = self if mode == "linear" else self.at_strength(strength)
        factors = [R.to(W) for R in layer.factors]
        shift = spectrum = None
        if layer.shift is not None:
            shift = layer.shift.to(W)
            if shift.shape != (min(W.shape),):
                raise BaseMismatchError(
                    f"the shift has {tuple(shift.shape)} entries, a weight of shape {base.shape} has "
                    f"{min(W.shape)} singular values; use the base model the adapter was trained on"
                )
            spectrum = base.spectrum(self.decomposition)
        delta = adapted_weight(W, factors, shift, spectrum) - W
        if mode == "linear" and strength != 1.0:
            delta = delta * strength
        return delta.reshape(base.shape)

    def with_base_check(self, weight: Tensor | BaseWeight) -> SodaLayer:
        """The layer with its shape and sketches filled in from the pristine weight it was trained on."""
        base = BaseWeight.of(weight)
        return replace(self, shape=base.shape, sketches=Sketches(self._spectral_sketch(base), sketch(base.matrix)))

    def _spectral_sketch(self, base: BaseWeight, terms: Sequence[tuple[float, Tensor]] = ()) -> Tensor:
        """Of ``Δ(shift)``, or of ``Σ a_i Δ(shift_i)``; see :class:`.base_check.Sketches`."""
        if self.shift is None:
            return torch.zeros(SKETCH_SHAPE)
        spectrum = base.spectrum(self.decomposition)
        device = spectrum.like.device
        shifts = [(a, shift.to(device)) for a, shift in terms or [(1.0, self.shift)]]
        if terms and self.knots is not None and isinstance(spectrum, SvdSpectrum):
            shifts = [(a, spectrum.knots(len(heights)) @ heights.to(spectrum.S)) for a, heights in shifts]

        def change(x: Tensor) -> Tensor:
            return torch.stack([a * spectrum.apply(x.to(spectrum.like), shift) for a, shift in shifts]).sum(0)

        return sketch_of(change, spectrum.in_features, device)

    def check_base(self, weight: Tensor | BaseWeight) -> BaseCheck | None:
        if self.sketches is None:
            return None
        base = BaseWeight.of(weight)
        return BaseCheck(
            spectral_error=relative_error(self._spectral_sketch(base, self.sketches.terms), self.sketches.spectral),
            spectral_norm=float(self.sketches.spectral.norm()),
            base_distance=relative_error(sketch(base.matrix), self.sketches.base),
        )

    def validate(self, name: str) -> None:
        for i, R in enumerate(self.factors):
            ok, reason = check_orthogonal(R)
            if not ok:
                raise FileFormatError(f"factor {i} of layer {name!r} {reason}; train or export the adapter again")
        if self.shift is not None:
            _check_vector(f"the shift of layer {name!r}", self.shift)
        if self.shift is not None and self.shape is not None:
            rank = min(self.shape[0], math.prod(self.shape[1:]))
            if self.shift.numel() != rank:
                raise FileFormatError(
                    f"the shift of layer {name!r} has {self.shift.numel()} entries, expected {rank} for a weight of "
                    f"shape {tuple(self.shape)}"
                )
        if self.knots is not None:
            if self.shift is None or self.decomposition != "svd":
                raise FileFormatError(f"layer {name!r} has knots of a curve but no SVD shift; export the adapter again")
            _check_vector(f"the curve of layer {name!r}", self.knots)
        if self.sketches is not None:
            for sketched in (self.sketches.spectral, self.sketches.base):
                if tuple(sketched.shape) != SKETCH_SHAPE or not bool(torch.isfinite(sketched).all()):
                    raise FileFormatError(f"the base check of layer {name!r} is damaged")
            for _, shift in self.sketches.terms:
                _check_vector(f"a shift in the base check of layer {name!r}", shift)


def _check_vector(what: str, vector: Tensor) -> None:
    if vector.ndim != 1 or not vector.numel() or not bool(torch.isfinite(vector).all()):
        raise FileFormatError(
            f"{what} holds NaN or infinite values, or is not one-dimensional "
            f"(shape {tuple(vector.shape)}); the training run diverged or the file is damaged"
        )

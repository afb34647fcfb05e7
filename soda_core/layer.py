# SPDX-License-Identifier: GPL-3.0-or-later
"""One adapted layer: the single formula, its strength, its delta.

``W = (W0 + Δ(shift)) Kᵀ`` with ``K = R_1 ⊗ … ⊗ R_m`` acting on the input side (Zhang et al. 2025, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import BaseMismatchError, FileFormatError, SettingsError
from .kronecker import geodesic_power, rotate
from .linalg import check_orthogonal, flatten_weight, result_dtype
from .probe import SKETCH_SHAPE, relative_error, sketch, sketch_of
from .spectral import Decomposition, Spectrum, decompose

StrengthMode = Literal["linear", "geodesic"]


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


def _check_mode(mode: str) -> None:
    if mode not in get_args(StrengthMode):
        raise SettingsError(f"unknown strength mode {mode!r}; choose one of {list(get_args(StrengthMode))}")


def _compute_weight(weight: Tensor) -> Tensor:
    """``(out, in, *kernel)`` in any dtype -> ``(out, in')`` in float32 or float64."""
    W = flatten_weight(weight.detach())
    return W.to(result_dtype(W))


class AdaptedLayer:
    """What single layers and sums of layers have in common."""

    #: shape of the weight it was trained on, where known
    shape: tuple[int, ...] | None

    @property
    def needs_spectrum(self) -> tuple[Decomposition, ...]:
        """The decompositions of the base weight that its shifts need."""
        raise NotImplementedError

    @property
    def width(self) -> int | None:
        """Number of inputs it rotates, ``in * prod(kernel)``, where it can be told."""
        raise NotImplementedError

    def parameters(self) -> int:
        raise NotImplementedError

    def delta(
        self,
        weight: Tensor,
        strength: float = 1.0,
        mode: StrengthMode = "linear",
        spectra: dict[Decomposition, Spectrum] | None = None,
    ) -> Tensor:
        """``W(strength) - W0``, in float32 (float64 for a float64 weight) and weight's shape."""
        raise NotImplementedError

    def adapt(
        self,
        weight: Tensor,
        strength: float = 1.0,
        mode: StrengthMode = "linear",
        spectra: dict[Decomposition, Spectrum] | None = None,
    ) -> Tensor:
        """The adapted weight, in weight's shape, dtype and device; weight itself is untouched.

        Args:
            weight: pristine base weight ``(out, in, *kernel)``.
            strength: 0 = base, 1 = as trained; any real number.
            mode: "linear" ``W0 + s (W - W0)``; "geodesic" ``R_i^s`` and ``s shift``, which stays a SODA layer.
            spectra: decompositions of weight by kind, where they are kept; else computed here.
        """
        W = _compute_weight(weight)
        delta = self.delta(weight, strength, mode, spectra)
        return (W + delta.flatten(1)).reshape(weight.shape).to(weight.dtype)

    def spectral_error(self, weight: Tensor, spectra: dict[Decomposition, Spectrum] | None = None) -> BaseCheck | None:
        """How well the spectral part is reproduced on ``weight``; None where the file carries no probe."""
        raise NotImplementedError

    def check_shape(self, name: str, weight: Tensor) -> None:
        """Raise unless the layer fits ``weight``."""
        width = math.prod(weight.shape[1:])
        if self.shape is not None and tuple(self.shape) != tuple(weight.shape):
            raise BaseMismatchError(
                f"layer {name!r} was trained on a weight of shape {tuple(self.shape)}, the base model has "
                f"{tuple(weight.shape)}; use the base model the adapter was trained on"
            )
        if self.width is not None and self.width != width:
            raise BaseMismatchError(
                f"layer {name!r} rotates {self.width} inputs, the base model's weight of shape "
                f"{tuple(weight.shape)} has {width}; use the base model the adapter was trained on"
            )

    def validate(self, name: str) -> None:
        """Raise unless every tensor is finite, well shaped and on its manifold."""
        raise NotImplementedError


@dataclass(frozen=True)
class BaseCheck:
    """The base check of one layer (relative errors, 0.02 = 2 %)."""

    spectral_error: float  #: ‖Δ' - Δ‖ / ‖Δ‖, Δ as trained and Δ' on the weight at hand
    spectral_norm: float  #: ‖Δ‖ as trained, to weigh layers against each other
    base_distance: float  #: ‖W0' - W0‖ / ‖W0‖: is it the same base at all


@dataclass(frozen=True)
class Probe:
    """Sketches (see :mod:`.probe`) taken when the layer was trained."""

    spectral: Tensor
    base: Tensor


@dataclass(frozen=True, eq=False)
class SodaLayer(AdaptedLayer):
    """Factors and shift of one layer.

    Args:
        decomposition: "svd" or "qr".
        factors: orthogonal ``R_i (k_i, k_i)``; ``[]`` = no rotation.
        shift: ``(r,)`` with ``r = min(out, in)``; None = no shift.
    """

    decomposition: Decomposition = "svd"
    factors: Sequence[Tensor] = field(default_factory=list)
    shift: Tensor | None = None
    shape: tuple[int, ...] | None = None
    probe: Probe | None = None

    def __post_init__(self) -> None:
        if self.decomposition not in get_args(Decomposition):
            raise SettingsError(
                f"unknown decomposition {self.decomposition!r}; choose one of {list(get_args(Decomposition))}"
            )

    @property
    def needs_spectrum(self) -> tuple[Decomposition, ...]:
        return () if self.shift is None else (self.decomposition,)

    @property
    def width(self) -> int | None:
        return math.prod(R.shape[-1] for R in self.factors) if self.factors else None

    def parameters(self) -> int:
        return sum(R.numel() for R in self.factors) + (0 if self.shift is None else self.shift.numel())

    def at_strength(self, strength: float) -> SodaLayer:
        """The layer a part (or more) of the way along its geodesic from the base: again a SODA layer."""
        if strength == 1.0:
            return self
        return replace(
            self,
            factors=geodesic_power(self.factors, strength),
            shift=None if self.shift is None else self.shift * strength,
            probe=None,
        )

    def delta(
        self,
        weight: Tensor,
        strength: float = 1.0,
        mode: StrengthMode = "linear",
        spectra: dict[Decomposition, Spectrum] | None = None,
    ) -> Tensor:
        _check_mode(mode)
        W = _compute_weight(weight)
        if strength == 0.0:
            return torch.zeros_like(W).reshape(weight.shape)
        layer = self if mode == "linear" else self.at_strength(strength)
        factors = [R.to(W) for R in layer.factors]
        shift = None if layer.shift is None else layer.shift.to(W)
        spectrum = self._spectrum(weight, spectra)
        if shift is not None and shift.shape != (min(W.shape),):
            raise BaseMismatchError(
                f"the shift has {tuple(shift.shape)} entries, a weight of shape {tuple(weight.shape)} has "
                f"{min(W.shape)} singular values; use the base model the adapter was trained on"
            )
        delta = adapted_weight(W, factors, shift, spectrum) - W
        if mode == "linear" and strength != 1.0:
            delta = delta * strength
        return delta.reshape(weight.shape)

    def _spectrum(self, weight: Tensor, spectra: dict[Decomposition, Spectrum] | None) -> Spectrum | None:
        if self.shift is None:
            return None
        if spectra and self.decomposition in spectra:
            return spectra[self.decomposition]
        return decompose(weight, self.decomposition)

    def with_probe(self, weight: Tensor, spectrum: Spectrum | None) -> SodaLayer:
        """The layer with its base check filled in for the pristine weight it was trained on."""
        W = _compute_weight(weight)
        return replace(self, shape=tuple(weight.shape), probe=Probe(self._sketch(spectrum), sketch(W)))

    def _sketch(self, spectrum: Spectrum | None) -> Tensor:
        if self.shift is None or spectrum is None:
            return torch.zeros(SKETCH_SHAPE)
        shift = self.shift.to(spectrum.like.device)
        return sketch_of(lambda x: spectrum.apply(x.to(spectrum.like), shift), spectrum.width, shift.device)

    def spectral_error(self, weight: Tensor, spectra: dict[Decomposition, Spectrum] | None = None) -> BaseCheck | None:
        if self.probe is None:
            return None
        measured = self._sketch(self._spectrum(weight, spectra))
        return BaseCheck(
            spectral_error=relative_error(measured, self.probe.spectral),
            spectral_norm=float(self.probe.spectral.norm()),
            base_distance=relative_error(sketch(_compute_weight(weight)), self.probe.base),
        )

    def validate(self, name: str) -> None:
        for i, R in enumerate(self.factors):
            ok, reason = check_orthogonal(R)
            if not ok:
                raise FileFormatError(f"factor {i} of layer {name!r} {reason}; train or export the adapter again")
        if self.shift is not None and (self.shift.ndim != 1 or not bool(torch.isfinite(self.shift).all())):
            raise FileFormatError(
                f"the shift of layer {name!r} holds NaN or infinite values, or is not one-dimensional "
                f"(shape {tuple(self.shift.shape)}); the training run diverged or the file is damaged"
            )
        if self.shift is not None and self.shape is not None:
            rank = min(self.shape[0], math.prod(self.shape[1:]))
            if self.shift.numel() != rank:
                raise FileFormatError(
                    f"the shift of layer {name!r} has {self.shift.numel()} entries, expected {rank} for a weight of "
                    f"shape {tuple(self.shape)}"
                )
        if self.probe is not None:
            for sketched in (self.probe.spectral, self.probe.base):
                if tuple(sketched.shape) != SKETCH_SHAPE or not bool(torch.isfinite(sketched).all()):
                    raise FileFormatError(f"the base-check probe of layer {name!r} is damaged")


@dataclass(frozen=True, eq=False)
class SodaSum(AdaptedLayer):
    """``W0 + Σ a_i (W_i - W0)``: the paper's training-free merge of one layer (section 3.4).

    Args:
        terms: ``(a_i, layer_i)``.
    """

    terms: tuple[tuple[float, SodaLayer], ...]

    @property
    def shape(self) -> tuple[int, ...] | None:  # type: ignore[override]
        return next((layer.shape for _, layer in self.terms if layer.shape is not None), None)

    @property
    def needs_spectrum(self) -> tuple[Decomposition, ...]:
        return tuple(sorted({kind for _, layer in self.terms for kind in layer.needs_spectrum}))

    @property
    def width(self) -> int | None:
        return next((layer.width for _, layer in self.terms if layer.width is not None), None)

    def parameters(self) -> int:
        return sum(layer.parameters() for _, layer in self.terms)

    def delta(
        self,
        weight: Tensor,
        strength: float = 1.0,
        mode: StrengthMode = "linear",
        spectra: dict[Decomposition, Spectrum] | None = None,
    ) -> Tensor:
        _check_mode(mode)
        spectra = dict(spectra or {})
        for kind in self.needs_spectrum:  # once, not once per term
            if kind not in spectra:
                spectra[kind] = decompose(weight, kind)
        total = torch.zeros_like(_compute_weight(weight)).reshape(weight.shape)
        for a, layer in self.terms:
            total += a * layer.delta(weight, strength, mode, spectra)
        return total

    def spectral_error(self, weight: Tensor, spectra: dict[Decomposition, Spectrum] | None = None) -> BaseCheck | None:
        checks = [(a, layer.spectral_error(weight, spectra)) for a, layer in self.terms]
        known = [(abs(a), check) for a, check in checks if check is not None]
        if not known:
            return None
        norm = math.hypot(*(a * c.spectral_norm for a, c in known))
        error = math.hypot(*(a * c.spectral_norm * c.spectral_error for a, c in known if c.spectral_norm))
        return BaseCheck(error / norm if norm else 0.0, norm, max(c.base_distance for _, c in known))

    def validate(self, name: str) -> None:
        if not self.terms:
            raise FileFormatError(f"layer {name!r} is a sum of no terms")
        for _, layer in self.terms:
            layer.validate(name)

# SPDX-License-Identifier: GPL-3.0-or-later
"""One layer while it trains, and the choice of where its rotation and its shift are computed."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..kronecker import unrotate
from ..layer import adapted_weight
from ..linalg import result_dtype
from ..spectral import Decomposition, Spectrum, SvdSpectrum

Side = Literal["weight", "activations"]

#: What one pass over an entry costs, in multiplications: measured on a CPU (``python dev.py bench speed``).
PASS = 60
#: Passes over a convolution's activations to make columns of them, and back.
COLUMNS = 6


class TrainableLayer:
    """One layer while it trains: views of its parameters, which :meth:`.trainable.TrainableAdapter.begin_step` renews.

    Args:
        shape: of the frozen weight, ``(out, in, *kernel)``.
        sizes: of the factors; ``()`` where no rotation is trained.
        spectrum: decomposition of the frozen weight; None where no shift is trained.
    """

    def __init__(
        self, shape: tuple[int, ...], sizes: tuple[int, ...], decomposition: Decomposition, spectrum: Spectrum | None
    ) -> None:
        self.shape, self.sizes, self.decomposition, self.spectrum = shape, sizes, decomposition, spectrum
        self.out_features, self.in_features = shape[0], math.prod(shape[1:])
        self.rank = min(self.out_features, self.in_features)
        self.enabled = True  #: off: its forward pass is that of the frozen layer
        self.factors: list[Tensor] = []
        self.groups: list[Tensor] = []  #: the factors multiplied out as far as it pays
        self.shift: Tensor | None = None
        self.heights: Tensor | None = None  #: of the curve's knots, where the shift is one

    def weight(self, W: Tensor, pristine: Tensor | None = None, rotated: bool = True) -> Tensor:
        """The adapted weight, in W's shape and dtype; differentiable in factors and shift.

        Args:
            W: the weight in use.
            pristine: the base weight, where something else (a LoRA) has changed W already: then the change is computed
                from the base and added, just as a loaded adapter's is.
            rotated: False leaves the rotation to :meth:`rotate_input`.
        """
        base = W if pristine is None else pristine
        flat = base.flatten(1).to(result_dtype(base))
        adapted = adapted_weight(flat, self.groups if rotated else [], self.shift, self.spectrum)
        if pristine is not None:
            adapted = W.flatten(1) + (adapted - flat)
        return adapted.reshape(W.shape).to(W.dtype)

    def rotate_input(self, x: Tensor) -> Tensor:
        """``Kᵀ x`` for activations ``(*batch, in)``, in x's dtype."""
        if not self.groups:
            return x
        return unrotate(x.to(result_dtype(x)), self.groups).to(x.dtype)

    def spectral_output(self, x: Tensor) -> Tensor | None:
        """``Δ(shift) x`` for rotated activations ``(*batch, in) -> (*batch, out)``; None without a shift."""
        if self.shift is None or self.spectrum is None:
            return None
        return self.spectrum.apply(x.to(self.spectrum.like), self.shift).to(x.dtype)

    def whole_output(self, x: Tensor) -> Tensor | None:
        """``(W0 + Δ(shift)) x`` without W0, for rotated activations; None where W0 is needed.

        Only in the decomposition's own dtype: in a smaller one the base model would not be met exactly at the start.
        """
        spectrum = self._in_place_of_w0(x.dtype)
        return None if spectrum is None or self.shift is None else spectrum.output(x, self.shift)

    def _in_place_of_w0(self, dtype: torch.dtype) -> SvdSpectrum | None:
        spectrum = self.spectrum
        return spectrum if isinstance(spectrum, SvdSpectrum) and spectrum.U.dtype == spectrum.S.dtype == dtype else None

    def sides(self, tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Side, Side]:
        """Where rotation and shift cost least for ``tokens`` rows of activations, forward and backward together.

        In multiplications per token, output and input: the frozen layer takes 2, the gradient of a weight 1. A rotation
        takes three products with each group, and passes over what it rotates: rows of the weight, or tokens. A
        convolution's tokens are its output positions; making columns of them takes more passes.
        """
        out, rank = self.out_features, self.rank
        weight_gradient = 1.0
        rotation = (3 * sum(R.shape[-1] for R in self.groups) + 6 * PASS) / out if self.groups else 0.0
        on_weight = rotation * out / tokens
        if len(self.shape) > 2:
            rotation += COLUMNS * PASS / out
        if self.shift is None:
            return ("activations" if rotation < on_weight + weight_gradient else "weight"), "weight"
        if self.decomposition == "svd":
            shift_on_weight = 2 * rank / tokens
            frozen_layer = 2.0 if self._in_place_of_w0(dtype) else 0.0  # is then saved
            shift_on_activations = 2 * rank * (1 / out + 1 / self.in_features) - frozen_layer
        else:
            shift_on_weight = 4 * PASS / tokens
            shift_on_activations = 2 * rank / out
        costs: dict[tuple[Side, Side], float] = {
            ("weight", "weight"): on_weight + shift_on_weight + weight_gradient,
            ("activations", "weight"): rotation + shift_on_weight + weight_gradient,
            ("activations", "activations"): rotation + shift_on_activations,
        }
        return min(costs, key=lambda sides: costs[sides])

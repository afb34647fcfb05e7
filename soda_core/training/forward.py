# SPDX-License-Identifier: GPL-3.0-or-later
"""The forward pass of an adapted layer: ``y = (W0 + Δ(shift)) Kᵀ x + b``.

Rotation and shift go on the weight or on the activations, where they cost least; see
:meth:`.trainable_layer.TrainableLayer.sides`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .convolution import Convolution
from .trainable_layer import Side, TrainableLayer

#: Activations, weight and bias to output.
Product = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


class FrozenLayer(Protocol):
    """A layer whose own weight stays as it is. How that is stored, moved and cast is its own affair."""

    @property
    def convolution(self) -> Convolution | None:
        """None for a linear layer."""

    def weight_and_bias(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weight in use ``(out, in, *kernel)`` and the bias ``(out,)``, in the dtype and on the device of ``x``."""

    def bias(self, x: Tensor) -> Tensor | None:
        """The bias alone, which leaves a weight that is elsewhere where it is."""


class AdaptedForward:
    """In place of a frozen layer's forward pass; the frozen layer itself while ``layer.enabled`` is off.

    Args:
        pristine: the base weight, where something else (a LoRA in front) has changed the weight in use.
    """

    def __init__(self, frozen: FrozenLayer, layer: TrainableLayer, pristine: Tensor | None = None) -> None:
        self.frozen, self.layer, self.pristine = frozen, layer, pristine

    def __call__(self, x: Tensor) -> Tensor:
        """``(*batch, in) -> (*batch, out)``, or ``(batch, in, *axes) -> (batch, out, *positions)``."""
        convolution = self.frozen.convolution
        whole: Product = convolution or F.linear
        if not self.layer.enabled:
            return whole(x, *self.frozen.weight_and_bias(x))
        rotation, shift = self._sides(x)
        if rotation == "weight":
            weight, bias = self.frozen.weight_and_bias(x)
            return whole(x, self.layer.weight(weight, self.pristine), bias)
        if convolution is None:
            return self._of_rotated(self.layer.rotate_input(x), shift, F.linear)
        columns = self.layer.rotate_input(convolution.columns(x))
        return rearrange(self._of_rotated(columns, shift, convolution.of_columns), "b h w out -> b out h w")

    def _sides(self, x: Tensor) -> tuple[Side, Side]:
        """Of rotation and shift."""
        convolution = self.frozen.convolution
        if self.pristine is not None or not (convolution is None or convolution.has_columns):
            return "weight", "weight"
        rows = x.shape[:-1].numel() if convolution is None else len(x) * math.prod(convolution.positions(x))
        return self.layer.sides(rows, x.dtype)

    def _of_rotated(self, x: Tensor, shift: Side, product: Product) -> Tensor:
        """``(W0 + Δ(shift)) x + b`` for rotated activations ``(*batch, in) -> (*batch, out)``."""
        layer = self.layer
        whole = layer.whole_output(x) if shift == "activations" else None
        if whole is not None:
            bias = self.frozen.bias(x)
            return whole if bias is None else whole + bias
        weight, bias = self.frozen.weight_and_bias(x)
        if layer.shift is None:
            return product(x, weight, bias)
        if shift == "weight":
            return product(x, layer.weight(weight, rotated=False), bias)
        spectral = layer.spectral_output(x)
        y = product(x, weight, bias)
        return y if spectral is None else y + spectral

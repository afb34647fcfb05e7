# SPDX-License-Identifier: GPL-3.0-or-later
"""The trainable form of an adapter: few large parameters, many small layers that view them.

All factors of one size are one ``(n, k, k)`` parameter and all shifts one vector, so an optimiser step is a handful of
batched products. :meth:`TrainableAdapter.begin_step` hands every layer its view.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..adapter import SodaAdapter
from ..base_weight import BaseWeight
from ..errors import SettingsError
from ..kronecker import grouped, unrotate
from ..layer import SodaLayer, adapted_weight
from ..linalg import result_dtype
from ..spectral import Decomposition, Spectrum, SvdSpectrum
from ..stiefel import StiefelAdam
from .settings import TrainSettings

Side = Literal["weight", "activations"]

#: What one pass over an entry costs, in multiplications: measured on a CPU (``python dev.py bench speed``), and of
#: the same order on GPUs, where both are faster.
PASS = 60
#: Passes over a convolution's activations to make columns of them, and back.
COLUMNS = 6


class TrainableLayer:
    """One layer while it trains. Rotation and shift each go on the weight or on the activations; see :meth:`sides`."""

    def __init__(
        self, shape: tuple[int, ...], sizes: tuple[int, ...], decomposition: Decomposition, spectrum: Spectrum | None
    ) -> None:
        self.shape, self.sizes, self.decomposition, self.spectrum = shape, sizes, decomposition, spectrum
        self.rank = min(shape[0], math.prod(shape[1:]))
        self.factors: list[Tensor] = []
        self.groups: list[Tensor] = []  #: the factors multiplied out as far as it pays
        self.shift: Tensor | None = None

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
        out, width = self.shape[0], math.prod(self.shape[1:])
        rank = self.rank
        weight_gradient = 1.0
        rotation = (3 * sum(R.shape[-1] for R in self.groups) + 6 * PASS) / out if self.groups else 0.0
        on_weight = rotation * out / tokens
        if len(self.shape) > 2:
            rotation += COLUMNS * PASS / out
        if self.shift is None:
            return ("activations" if rotation < on_weight + weight_gradient else "weight"), "weight"
        if self.decomposition == "svd":
            shift_on_weight = 2 * rank / tokens
            shift_on_activations = 2 * rank * (1 / out + 1 / width) - (2.0 if self._in_place_of_w0(dtype) else 0.0)
        else:
            shift_on_weight = 4 * PASS / tokens
            shift_on_activations = 2 * rank / out
        costs: dict[tuple[Side, Side], float] = {
            ("weight", "weight"): on_weight + shift_on_weight + weight_gradient,
            ("activations", "weight"): rotation + shift_on_weight + weight_gradient,
            ("activations", "activations"): rotation + shift_on_activations,
        }
        return min(costs, key=lambda sides: costs[sides])


class TrainableAdapter(nn.Module):
    """All layers of an adapter in training, starting exactly at the base model.

    Args:
        shapes: weight shape by layer name.
        settings: decomposition, ablation and factor sizes are taken from it.
        spectra: decomposition by layer name; needed where shifts are trained.
        device: where the parameters live.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        settings: TrainSettings,
        spectra: Mapping[str, Spectrum],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.settings = settings
        self.layers: dict[str, TrainableLayer] = {}
        counts: dict[int, int] = {}
        for name, shape in shapes.items():
            sizes = layer_factor_sizes(shape, settings)
            if settings.shifts and name not in spectra:
                raise SettingsError(f"layer {name!r} trains a shift and needs its decomposition")
            self.layers[name] = TrainableLayer(
                tuple(shape), sizes, settings.decomposition, spectra[name] if settings.shifts else None
            )
            for k in sizes:
                counts[k] = counts.get(k, 0) + 1
        self.rotations = nn.ParameterDict(
            {str(k): nn.Parameter(torch.eye(k, device=device).repeat(n, 1, 1)) for k, n in sorted(counts.items())}
        )
        self.shift_sizes = (
            [settings.shift_size(layer.rank) for layer in self.layers.values()] if settings.shifts else []
        )
        self.curves = self._curves()
        self.shifts = nn.Parameter(torch.zeros(sum(self.shift_sizes), device=device)) if settings.shifts else None
        self.begin_step()

    def begin_step(self) -> None:
        """Give every layer fresh views of the parameters; call before each forward pass that follows an update."""
        stacks: dict[int, Iterator[Tensor]] = {int(k): iter(p.unbind(0)) for k, p in self.rotations.items()}
        shifts = self._layer_shifts()
        alike: dict[tuple[int, ...], list[TrainableLayer]] = {}
        for name, layer in self.layers.items():
            layer.factors = [next(stacks[k]) for k in layer.sizes]
            if layer.sizes:
                alike.setdefault(layer.sizes, []).append(layer)
            layer.shift = shifts.get(name)
        for layers in alike.values():  # once a step and for all layers of a kind, instead of at every forward pass
            stacked = [torch.stack(column) for column in zip(*(layer.factors for layer in layers), strict=True)]
            for layer, *groups in zip(layers, *(G.unbind(0) for G in grouped(stacked)), strict=True):
                layer.groups = groups

    def _layer_shifts(self) -> dict[str, Tensor]:
        """Shift ``(r,)`` by layer name; empty where none are trained."""
        if self.shifts is None:
            return {}
        shifts = dict(zip(self.layers, self.shifts.split(self.shift_sizes), strict=True))
        for names, knots in self.curves:
            heights = torch.stack([shifts[name] for name in names])
            shifts.update(zip(names, (knots @ heights.unsqueeze(-1)).squeeze(-1).unbind(), strict=True))
        return shifts

    def _curves(self) -> list[tuple[list[str], Tensor]]:
        """Layers of one rank whose shifts are curves, and their knots ``(layers, r, knots)``."""
        alike: dict[int, list[str]] = {}
        for name, layer in self.layers.items():
            if self.settings.shifts and self.settings.shift_size(layer.rank) < layer.rank:
                alike.setdefault(layer.rank, []).append(name)
        return [(names, torch.stack([self._knots(name) for name in names])) for names in alike.values()]

    def _knots(self, name: str) -> Tensor:
        spectrum = self.layers[name].spectrum
        assert isinstance(spectrum, SvdSpectrum)  # other shifts are no curves, see TrainSettings.shift_size
        return spectrum.knots(self.settings.shift_knots).float()

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Stiefel Adam for the rotations, AdamW for the shifts, as far as each is trained."""
        optimizers: list[torch.optim.Optimizer] = []
        if self.rotations:
            optimizers.append(
                StiefelAdam(
                    list(self.rotations.values()), lr=self.settings.rotation_lr, retraction=self.settings.retraction
                )
            )
        if self.shifts is not None:
            optimizers.append(torch.optim.AdamW([self.shifts], lr=self.settings.shift_lr))
        return optimizers

    def without_gradient(self) -> list[str]:
        """Layers none of whose parameters moved the loss in the last backward pass."""
        reached = {
            int(k): iter((torch.zeros(len(p)) if p.grad is None else p.grad.abs().amax((1, 2))).tolist())
            for k, p in self.rotations.items()
        }
        shifts = [0.0] * len(self.layers)
        if self.shifts is not None and self.shifts.grad is not None:
            shifts = [float(part.abs().max()) for part in self.shifts.grad.cpu().split(self.shift_sizes)]
        return [
            name
            for (name, layer), shift in zip(self.layers.items(), shifts, strict=True)
            if not any([shift, *(next(reached[k]) for k in layer.sizes)])
        ]

    def snapshot(self) -> list[Tensor]:
        """Copies of all parameters, a few MB at most."""
        return [p.detach().clone() for p in self.parameters()]

    @torch.no_grad()
    def restore(self, snapshot: list[Tensor]) -> None:
        for p, saved in zip(self.parameters(), snapshot, strict=True):
            p.copy_(saved)
        self.begin_step()

    @torch.no_grad()
    def to_adapter(self, weights: Mapping[str, Tensor] | None, metadata: Mapping[str, Any]) -> SodaAdapter:
        """A frozen copy as an adapter, with the base check filled in where the pristine weights are given."""
        self.begin_step()
        layers = {}
        for name, layer in self.layers.items():
            soda = SodaLayer(
                decomposition=layer.decomposition,
                factors=[R.detach().clone().cpu() for R in layer.factors],
                shift=None if layer.shift is None else layer.shift.detach().clone().cpu(),
                shape=layer.shape,
            )
            if weights is not None:
                spectra = [] if layer.spectrum is None else [layer.spectrum]
                soda = soda.with_base_check(BaseWeight(weights[name], spectra=spectra))
            layers[name] = soda
        return SodaAdapter(layers, dict(metadata))


def layer_factor_sizes(shape: tuple[int, ...], settings: TrainSettings) -> tuple[int, ...]:
    """Factor sizes of a weight of ``shape`` under ``settings``; ``()`` when rotations are not trained."""
    return settings.rotation_sizes(shape)

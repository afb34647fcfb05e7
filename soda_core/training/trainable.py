# SPDX-License-Identifier: GPL-3.0-or-later
"""The trainable form of an adapter: few large parameters, many small layers that view them.

All factors of one size are one ``(n, k, k)`` parameter and all shifts one vector, so an optimiser step is a handful of
batched products. :meth:`TrainableAdapter.begin_step` hands every layer its view.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import SodaAdapter
from ..base_weight import BaseWeight
from ..errors import SettingsError
from ..kronecker import grouped
from ..layer import SodaLayer
from ..spectral import Spectrum, SvdSpectrum
from .continuation import check_names, start_of
from .optimizers import optimizers
from .settings import TrainSettings
from .trainable_layer import TrainableLayer


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
            sizes = settings.rotation_sizes(shape)
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

    @classmethod
    def from_adapter(
        cls,
        adapter: SodaAdapter,
        shapes: Mapping[str, tuple[int, ...]],
        settings: TrainSettings,
        spectra: Mapping[str, Spectrum],
        device: torch.device | str = "cpu",
    ) -> TrainableAdapter:
        """One that starts where ``adapter`` ended, to train it further; other arguments as for the class.

        An adapter says nothing of its optimisers, which start anew.

        Raises:
            SettingsError: the settings would train other layers, or of other sizes or another kind; it says which.
            BaseMismatchError: its shifts are not curves over this base model's singular values.
        """
        check_names(adapter.layers, shapes)
        trainable = cls(shapes, settings, spectra, device)
        curves = {name: knots for names, stack in trainable.curves for name, knots in zip(names, stack, strict=True)}
        starts = [
            start_of(name, adapter.layers[name], layer, curves.get(name)) for name, layer in trainable.layers.items()
        ]
        with torch.no_grad():
            for k, stack in trainable.rotations.items():
                stack.copy_(torch.stack([R for factors, _ in starts for R in factors if R.shape[-1] == int(k)]))
            if trainable.shifts is not None:
                trainable.shifts.copy_(torch.cat([values for _, values in starts if values is not None]))
        trainable.begin_step()
        return trainable

    def begin_step(self) -> None:
        """Give every layer fresh views of the parameters; call before each forward pass that follows an update."""
        stacks = {k: iter(stack.unbind(0)) for k, stack in self.rotation_stacks().items()}
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

    def rotation_stacks(self) -> dict[int, Tensor]:
        """The orthogonal factors ``(n, k, k)`` by size: here the parameters themselves."""
        return {int(k): p for k, p in self.rotations.items()}

    def _layer_shifts(self) -> dict[str, Tensor]:
        """Shift ``(r,)`` by layer name; empty where none are trained. Curves' heights go to their layers."""
        if self.shifts is None:
            return {}
        shifts = dict(zip(self.layers, self.shifts.split(self.shift_sizes), strict=True))
        for names, knots in self.curves:
            for name in names:
                self.layers[name].heights = shifts[name]
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
        if not isinstance(spectrum, SvdSpectrum):
            raise SettingsError(
                f"layer {name!r}: the settings' shift is a curve over singular values, and this is no SVD"
            )
        return spectrum.knots(self.settings.shift_knots).float()

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By the part that each trains; see :func:`.optimizers.optimizers`."""
        return optimizers(self.settings, self.layers.values(), self.rotation_stacks(), self.shifts, self.shift_sizes)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within, every layer's forward pass is that of the frozen layer."""
        for layer in self.layers.values():
            layer.enabled = False
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enabled = True

    def frozen_bytes(self) -> int:
        """What it holds beside the parameters: decompositions, and knots of curves."""
        spectra = sum(layer.spectrum.nbytes() for layer in self.layers.values() if layer.spectrum is not None)
        return spectra + sum(knots.nbytes for _, knots in self.curves)

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
                knots=None if layer.heights is None else layer.heights.detach().clone().cpu(),
            )
            if weights is not None:
                spectra = [] if layer.spectrum is None else [layer.spectrum]
                soda = soda.with_base_check(BaseWeight(weights[name], spectra=spectra))
            layers[name] = soda
        return SodaAdapter(layers, dict(metadata))

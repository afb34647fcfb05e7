# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a training has gone from the base model, cheap enough to be told while it runs."""

from __future__ import annotations

import math

import torch

from ..spectral import SvdSpectrum
from .trainable import TrainableAdapter


class Measures:
    """Sizes of the change that ``trainable`` makes, over all of its layers."""

    def __init__(self, trainable: TrainableAdapter) -> None:
        self.trainable = trainable
        spectra = [layer.spectrum for layer in trainable.layers.values() if layer.spectrum is not None]
        singular_values = [spectrum.S for spectrum in spectra if isinstance(spectrum, SvdSpectrum)]
        self._S = torch.cat(singular_values) if singular_values else None
        self._norm = float(torch.stack([spectrum.norm for spectrum in spectra]).norm()) if spectra else 0.0

    @torch.no_grad()
    def rotation(self) -> float | None:
        """RMS angle of the layers' K in degrees; None where no rotation is trained.

        As :func:`...merge.rotation_distance` to no rotation, but with a factor's angles taken as alike,
        ``‖R - I‖² = 2 k (1 - cos θ)``: no eigenvalues, and exact for small angles.
        """
        stacks = self.trainable.rotation_stacks()
        if not stacks:
            return None
        total = 0.0
        for k, R in stacks.items():
            chords = (R - torch.eye(k, device=R.device)).square().sum((1, 2)) / k
            total += float((2 * (chords.sqrt() / 2).clamp(max=1).asin()).square().sum())
        return math.degrees(math.sqrt(total / len(self.trainable.layers)))

    @torch.no_grad()
    def shift(self) -> float | None:
        """``‖Δ(shift)‖ / ‖W‖`` as of the last :meth:`.TrainableAdapter.begin_step`; None where no shift is trained."""
        shifts = [layer.shift for layer in self.trainable.layers.values() if layer.shift is not None]
        if not shifts or not self._norm:
            return None
        shift = torch.cat(shifts)
        change = shift if self._S is None else torch.relu(self._S + shift) - self._S
        return float(change.norm()) / self._norm

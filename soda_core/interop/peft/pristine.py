# SPDX-License-Identifier: GPL-3.0-or-later
"""The weight that an adapted layer started from, whatever becomes of the layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...base_weight import BaseWeight
from ...linalg import result_dtype
from ...spectral import Decomposition, Spectrum


class PristineWeight:
    """W0 ``(out, in, *kernel)`` of a layer that others move, cast and load, and that adapters are merged into.

    Decompositions are made when first asked for, and anew when the layer has got another weight; where it has only been
    moved they move along.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self._weight: Tensor = layer.weight.detach()
        self._replaced = False
        self._spectra: dict[Decomposition, Spectrum] = {}

    def __call__(self) -> Tensor:
        """As it is stored, on the layer's device; not to be written to."""
        weight = self.layer.weight.detach()
        if self._replaced:
            self._weight = self._weight.to(weight.device)
        elif weight.data_ptr() != self._weight.data_ptr():
            if self._spectra and BaseWeight(weight).fingerprint != BaseWeight(self._weight).fingerprint:
                self._spectra.clear()
            self._weight = weight
        return self._weight

    def exact(self) -> Tensor:
        """In float32 or better."""
        weight = self()
        return weight.to(result_dtype(weight))

    def decomposed(self, kind: Decomposition | None) -> BaseWeight:
        """With a decomposition; None where none is needed."""
        weight = self()
        base = BaseWeight(weight, spectra=[spectrum.to(weight.device) for spectrum in self._spectra.values()])
        if kind is not None:
            self._spectra[kind] = base.spectrum(kind)
        return base

    def replace(self, weight: Tensor) -> None:
        """Let the layer use another weight, rounded to W0's dtype, until :meth:`restore`."""
        self.layer.weight.data = weight.to(self().dtype)
        self._replaced = True

    def restore(self) -> None:
        """Give the layer W0 back, to the bit."""
        weight = self.layer.weight
        weight.data = self._weight.to(weight.device, weight.dtype)
        self._replaced = False

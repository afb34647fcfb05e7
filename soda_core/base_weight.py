# SPDX-License-Identifier: GPL-3.0-or-later
"""A weight of the base model and what is derived from it, as one value."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import cached_property

import torch
from torch import Tensor

from .linalg import flatten_weight, result_dtype
from .spectral import Decomposition, Spectrum, decompose

_HASH_COLUMNS = 512


def fingerprint(weight: Tensor) -> str:
    """Hash of a weight's content, shape and dtype, on the weight's device.

    Row and column sums of its bits as 64-bit integers, which wrap around, are hashed in place of the bits themselves:
    several times as fast, and what happens to weights (training, rounding, another file) does not leave all sums alike.
    """
    octets = weight.detach().contiguous().flatten().view(torch.uint8)  # (a 1 x 1 kernel may have any strides)
    octets = torch.nn.functional.pad(octets, (0, -octets.numel() % (8 * _HASH_COLUMNS)))
    words = octets.view(torch.int64).reshape(-1, _HASH_COLUMNS)
    digest = hashlib.blake2b(f"{tuple(weight.shape)} {weight.dtype}".encode(), digest_size=20)
    for dim in (0, 1):
        digest.update(words.sum(dim).cpu().numpy().data)
    return digest.hexdigest()


class BaseWeight:
    """The untouched weight of one layer, with its decompositions and its fingerprint, each made when first asked for.

    Args:
        stored: ``(out, in, *kernel)``, in the dtype and on the device it is kept in; not written to, here or elsewhere,
            as long as this value lives.
        device: where to compute; where the weight is by default.
        find: how a decomposition is come by, e.g. ``SpectrumStore.get``; computed anew by default.
        spectra: decompositions that are at hand already.
    """

    def __init__(
        self,
        stored: Tensor,
        device: torch.device | None = None,
        find: Callable[[BaseWeight, Decomposition], Spectrum] | None = None,
        spectra: Iterable[Spectrum] = (),
    ) -> None:
        self.stored = stored.detach()
        self.device = device or stored.device
        self._find = find or BaseWeight.decompose
        self._spectra = {spectrum.kind: spectrum for spectrum in spectra}

    @classmethod
    def of(cls, weight: Tensor | BaseWeight) -> BaseWeight:
        """A weight that may come as a plain tensor."""
        return weight if isinstance(weight, BaseWeight) else cls(weight)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stored.shape)

    @cached_property
    def matrix(self) -> Tensor:
        """``(out, in * prod(kernel))`` in float32 (float64 for a float64 weight), on :attr:`device`."""
        W = flatten_weight(self.stored).to(self.device)
        return W.to(result_dtype(W))

    @cached_property
    def fingerprint(self) -> str:
        """:func:`fingerprint` of the weight as stored."""
        return fingerprint(self.stored)

    def spectrum(self, kind: Decomposition) -> Spectrum:
        """Its decomposition, on :attr:`device`."""
        if kind not in self._spectra:
            self._spectra[kind] = self._find(self, kind)
        return self._spectra[kind]

    def decompose(self, kind: Decomposition) -> Spectrum:
        """Its decomposition, computed anew."""
        return decompose(self.stored.to(self.device), kind)

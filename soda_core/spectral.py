# SPDX-License-Identifier: GPL-3.0-or-later
"""The spectral part ``Δ(shift)`` of an adapted weight, behind one interface for both decompositions.

``W0 + Δ`` is the weight with its spectrum shifted and its basis untouched:

- SVD: ``Δ = U diag(relu(S + shift) - S) Vh``
- QR:  ``Δ = diag(shift) Qh`` in the first r rows, zero below: L's diagonal holds its eigenvalues.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import BaseMismatchError, SettingsError
from .linalg import canonical_lq, flatten_weight, result_dtype, thin_svd

Decomposition = Literal["svd", "qr"]


class Spectrum(ABC):
    """A frozen weight's decomposition: what a shift needs, and nothing more."""

    kind: Decomposition

    @abstractmethod
    def delta(self, shift: Tensor) -> Tensor:
        """``Δ(shift)``: ``(r,) -> (out, in)``."""

    @abstractmethod
    def apply(self, x: Tensor, shift: Tensor) -> Tensor:
        """``Δ(shift) x`` for activations: ``(*batch, in) -> (*batch, out)``."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What :func:`from_tensors` rebuilds it from."""

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A basis: in the dtype and on the device that products are computed in."""

    @property
    @abstractmethod
    def in_features(self) -> int:
        """Number of inputs of the weight, ``in * prod(kernel)``."""

    @property
    @abstractmethod
    def norm(self) -> Tensor:
        """Frobenius norm of the weight, ``()``."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """Number of singular values: min(out, in)."""

    @property
    def rms(self) -> Tensor:
        """Root mean square of the weight's singular values, ``()``."""
        return self.norm / math.sqrt(self.rank)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Spectrum:
        """The same on ``device``, its bases in ``dtype``; singular values keep theirs, so a shift loses nothing."""
        moved = {k: v.to(device, dtype if v.ndim == 2 else None) for k, v in self.tensors().items()}
        return from_tensors(self.kind, moved)

    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors().values())


class SvdSpectrum(Spectrum):
    """``U (out, r)``, ``S (r,)``, ``Vh (r, in)``."""

    kind: Decomposition = "svd"

    def __init__(self, U: Tensor, S: Tensor, Vh: Tensor) -> None:
        self.U, self.S, self.Vh = U, S, Vh

    def change(self, shift: Tensor) -> Tensor:
        """``relu(S + shift) - S``, exactly zero for a zero shift."""
        return torch.relu(self.S + shift) - self.S

    def delta(self, shift: Tensor) -> Tensor:
        return (self.U * self.change(shift).to(self.U)) @ self.Vh

    def apply(self, x: Tensor, shift: Tensor) -> Tensor:
        return self._through(x, self.change(shift))

    def output(self, x: Tensor, shift: Tensor) -> Tensor:
        """``(W0 + Δ(shift)) x`` from the decomposition alone: cheaper than :meth:`apply` beside W0."""
        return self._through(x, torch.relu(self.S + shift))

    def _through(self, x: Tensor, diagonal: Tensor) -> Tensor:
        return (x @ self.Vh.mT * diagonal.to(x)) @ self.U.mT

    def knots(self, count: int) -> Tensor:
        """Hat functions over the singular values, on ``count`` even knots from 0 to the largest: ``(r, count)``.

        ``knots(n) @ heights`` is a shift that is a curve over S. Neighbouring singular vectors, which the least change
        of the weight mixes, then have nearly the same shift, so Δ changes no more than the weight does: its error is
        about that of the weight times n, where independent shifts lose whole directions.
        """
        places = self.S / self.S.max().clamp(min=torch.finfo(self.S.dtype).tiny) * (count - 1)
        return (1 - (places[:, None] - torch.arange(count, device=places.device)).abs()).clamp(min=0)

    @property
    def like(self) -> Tensor:
        return self.Vh

    @property
    def in_features(self) -> int:
        return self.Vh.shape[1]

    @property
    def norm(self) -> Tensor:
        return self.S.norm()

    @property
    def rank(self) -> int:
        return len(self.S)

    def tensors(self) -> dict[str, Tensor]:
        return {"U": self.U, "S": self.S, "Vh": self.Vh}


class QrSpectrum(Spectrum):
    """``Qh (r, in)`` and the weight's norm; L itself is never needed, a shift only scales rows of Qh."""

    kind: Decomposition = "qr"

    def __init__(self, Qh: Tensor, out: int, norm: Tensor) -> None:
        self.Qh, self.out, self._norm = Qh, out, norm

    def delta(self, shift: Tensor) -> Tensor:
        return self._pad(shift[:, None] * self.Qh, dim=0)

    def apply(self, x: Tensor, shift: Tensor) -> Tensor:
        return self._pad(x @ self.Qh.mT * shift.to(x), dim=-1)

    def _pad(self, y: Tensor, dim: int) -> Tensor:
        missing = self.out - self.Qh.shape[0]
        if not missing:
            return y
        shape = list(y.shape)
        shape[dim] = missing
        return torch.cat([y, y.new_zeros(shape)], dim)

    @property
    def like(self) -> Tensor:
        return self.Qh

    @property
    def in_features(self) -> int:
        return self.Qh.shape[1]

    @property
    def norm(self) -> Tensor:
        return self._norm

    @property
    def rank(self) -> int:
        return self.Qh.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        return {"Qh": self.Qh, "out": torch.tensor(self.out), "norm": self._norm}


def decompose(weight: Tensor, kind: Decomposition) -> Spectrum:
    """Decompose a frozen weight ``(out, in, *kernel)``; float32 (float64 for a float64 weight), on its device.

    This is the expensive step: call it once per base weight and keep the result.

    Raises:
        BaseMismatchError: the weight is not finite.
    """
    W = flatten_weight(weight.detach())
    W = W.to(result_dtype(W))  # (fp8 can do nothing else)
    if not bool(torch.isfinite(W).all()):
        raise BaseMismatchError(
            f"a base weight of shape {tuple(weight.shape)} holds NaN or infinite values; load a sound base model"
        )
    if kind == "svd":
        return SvdSpectrum(*thin_svd(W))
    if kind == "qr":
        return QrSpectrum(canonical_lq(W)[1], W.shape[0], W.norm())
    raise SettingsError(f"unknown decomposition {kind!r}; choose one of {list(get_args(Decomposition))}")


def spectrum_shapes(shape: tuple[int, ...], kind: Decomposition) -> dict[str, tuple[int, ...]]:
    """Shapes of :meth:`Spectrum.tensors` for a weight of ``shape``."""
    out, width = shape[0], math.prod(shape[1:])
    rank = min(out, width)
    if kind == "svd":
        return {"U": (out, rank), "S": (rank,), "Vh": (rank, width)}
    return {"Qh": (rank, width), "out": (), "norm": ()}


def basis_numbers(shape: tuple[int, ...], kind: Decomposition) -> int:
    """How many numbers the bases hold of a weight of ``shape``."""
    out, width = shape[0], math.prod(shape[1:])
    return min(out, width) * (out + width if kind == "svd" else width)


def from_tensors(kind: Decomposition, tensors: dict[str, Tensor]) -> Spectrum:
    """The inverse of :meth:`Spectrum.tensors`."""
    if kind == "svd":
        return SvdSpectrum(tensors["U"], tensors["S"], tensors["Vh"])
    return QrSpectrum(tensors["Qh"], int(tensors["out"]), tensors["norm"])

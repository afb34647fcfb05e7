# SPDX-License-Identifier: GPL-3.0-or-later
"""The base check: is the spectral part reproduced on the weights at hand?

A shift is only as portable as the singular basis it was trained in (a bf16 copy of a base may turn it). So a layer
carries :class:`Sketches` of ``Δ`` and of ``W0``. Sketching is linear, so ``‖sketch(Δ') - sketch(Δ)‖ / ‖sketch(Δ)‖``
estimates the relative error ``‖Δ' - Δ‖ / ‖Δ‖`` without storing Δ.

The sketch of a matrix M is ``B M G``: G holds :data:`VECTORS` columns of random signs, B adds the rows, with random
signs, into :data:`BUCKETS` buckets (a count sketch). Both preserve squared Frobenius norms in expectation. The signs
come from SHAKE-256, so they are the same on every platform, for ever.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

VECTORS = 4
BUCKETS = 32
SKETCH_SHAPE = (BUCKETS, VECTORS)

#: Thresholds on the overall relative error of the spectral part.
WARN_ABOVE = 0.02
REFUSE_ABOVE = 0.20
#: And on the distance of the weights, where it warns.
DISTANT_ABOVE = 0.10


@lru_cache(maxsize=64)
def _signs(label: str, count: int) -> Tensor:
    """``(count,)`` of ±1, float32."""
    # the label is part of the file format, version 1, and stays whatever things are called
    digest = hashlib.shake_256(f"soda-probe-v1/{label}/{count}".encode()).digest((count + 7) // 8)
    octets = torch.tensor(list(digest), dtype=torch.uint8)
    bits = (octets[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten()[:count].float() * 2 - 1


def sketch(M: Tensor) -> Tensor:
    """``(out, in) -> (BUCKETS, VECTORS)`` float32 on the CPU, with ``E‖sketch‖² = ‖M‖²``."""
    return sketch_of(lambda x: x @ M.float().mT, M.shape[1], M.device)


def sketch_of(apply: Callable[[Tensor], Tensor], in_features: int, device: torch.device) -> Tensor:
    """The sketch of a matrix that is only known by what it does: ``apply`` maps ``(n, in)`` to ``(n, out)``."""
    G = torch.stack([_signs(f"in{i}", in_features) for i in range(VECTORS)]).to(device)
    columns = apply(G).float()
    out = columns.shape[1]
    rows = columns.mT * _signs("out", out).to(device)[:, None] / math.sqrt(VECTORS)
    buckets = torch.arange(out, device=device) % BUCKETS
    return torch.zeros(SKETCH_SHAPE, device=device).index_add_(0, buckets, rows).cpu()


def relative_error(measured: Tensor, expected: Tensor) -> float:
    """``‖measured - expected‖ / ‖expected‖``; 0 where both vanish, infinite where only the expected one does."""
    scale, error = float(expected.norm()), float((measured - expected).norm())
    if scale == 0.0:
        return 0.0 if error == 0.0 else math.inf
    return error / scale


@dataclass(frozen=True)
class Sketches:
    """What a layer carries for the base check, taken on the weight it was trained on; each ``SKETCH_SHAPE``."""

    spectral: Tensor  #: of Δ(shift), or of Σ a_i Δ(shift_i) where there are ``terms``
    base: Tensor  #: of W0
    #: ``(a_i, shift_i)`` of a geodesic merge, whose parents' sketches add up while a ReLU makes Δ of the added shifts
    #: another matrix. Of a curve, the heights of its knots.
    terms: tuple[tuple[float, Tensor], ...] = ()


@dataclass(frozen=True)
class BaseCheck:
    """The base check of one layer (relative errors, 0.02 = 2 %)."""

    spectral_error: float  #: ‖Δ' - Δ‖ / ‖Δ‖, Δ as trained and Δ' on the weight at hand
    spectral_norm: float  #: ‖Δ‖ as trained, to weigh layers against each other
    base_distance: float  #: ‖W0' - W0‖ / ‖W0‖: is it the same base at all


def overall_error(checks: Iterable[tuple[float, BaseCheck]]) -> tuple[float, float]:
    """Relative error and norm of the spectral parts as one vector, each scaled by the strength beside it."""
    parts = [(abs(strength) * check.spectral_norm, check.spectral_error) for strength, check in checks]
    norm = math.hypot(*(size for size, _ in parts))
    error = math.hypot(*(size * error for size, error in parts if size))
    return (error / norm if norm else 0.0), norm


@dataclass(frozen=True)
class BaseReport:
    """The base checks of a whole adapter: one per layer, and overall numbers (0.02 = 2 %)."""

    layers: Mapping[str, BaseCheck]

    @property
    def spectral_error(self) -> float:
        """Relative error of the spectral part over all layers, as one vector."""
        return overall_error((1.0, check) for check in self.layers.values())[0]

    @property
    def base_distance(self) -> float:
        """Root mean square over layers of how far the base's weights are from the trained-on ones."""
        if not self.layers:
            return 0.0
        return math.sqrt(sum(c.base_distance**2 for c in self.layers.values()) / len(self.layers))

    @property
    def doubtful(self) -> bool:
        """Whether a user should hear of it. Without a shift only the distance tells; fp8 copies are off by 3 %."""
        return not (self.spectral_error <= WARN_ABOVE and self.base_distance <= DISTANT_ABOVE)  # NaN is worth a word

    @property
    def refused(self) -> bool:
        """Whether the adapter should not be used on this base."""
        return not self.spectral_error <= REFUSE_ABOVE  # NaN is refused

    def worst(self) -> list[tuple[str, BaseCheck]]:
        """Layers and their checks, the largest spectral error first."""

        def size(item: tuple[str, BaseCheck]) -> float:
            error = item[1].spectral_error
            return math.inf if math.isnan(error) else error

        return sorted(self.layers.items(), key=size, reverse=True)

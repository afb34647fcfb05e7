# SPDX-License-Identifier: GPL-3.0-or-later
"""The base check: is the spectral part reproduced on the weights at hand?

A shift is only as portable as the singular basis it was trained in (a bf16 copy of a base may turn it). So a file
carries a small linear sketch of ``Δ`` and of ``W0`` per layer. Sketching is linear, so
``‖sketch(Δ') - sketch(Δ)‖ / ‖sketch(Δ)‖`` estimates the relative error ``‖Δ' - Δ‖ / ‖Δ‖`` without storing Δ.

The sketch of a matrix M is ``B M G``: G holds :data:`VECTORS` columns of random signs, B adds the rows, with random
signs, into :data:`BUCKETS` buckets (a count sketch). Both preserve squared Frobenius norms in expectation. The signs
come from SHAKE-256, so they are the same on every platform, for ever.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

VECTORS = 4
BUCKETS = 32
SKETCH_SHAPE = (BUCKETS, VECTORS)


@lru_cache(maxsize=64)
def _signs(label: str, count: int) -> Tensor:
    """``(count,)`` of ±1, float32."""
    digest = hashlib.shake_256(f"soda-probe-v1/{label}/{count}".encode()).digest((count + 7) // 8)
    octets = torch.tensor(list(digest), dtype=torch.uint8)
    bits = (octets[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten()[:count].float() * 2 - 1


def sketch(M: Tensor) -> Tensor:
    """``(out, in) -> (BUCKETS, VECTORS)`` float32 on the CPU, with ``E‖sketch‖² = ‖M‖²``."""
    return sketch_of(lambda x: x @ M.float().mT, M.shape[1], M.device)


def sketch_of(apply: Callable[[Tensor], Tensor], width: int, device: torch.device) -> Tensor:
    """The sketch of a matrix that is only known by what it does: ``apply`` maps ``(n, in)`` to ``(n, out)``."""
    G = torch.stack([_signs(f"in{i}", width) for i in range(VECTORS)]).to(device)
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

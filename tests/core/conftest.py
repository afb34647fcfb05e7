# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
import torch

from soda_core import SodaAdapter, SodaLayer


def random_rotation(k: int, angle: float = 0.3, seed: int = 0) -> torch.Tensor:
    """A rotation whose generator has entries of about ``angle`` radians."""
    A = torch.randn(k, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.matrix_exp(angle * (A - A.T) / k**0.5).float()


def random_layer(
    shape: tuple[int, ...] = (24, 30), sizes=(5, 6), decomposition="svd", seed: int = 0, shift: float | None = 0.05
) -> tuple[torch.Tensor, SodaLayer]:
    """A weight and an adapter layer trained on it, base check included."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(*shape, generator=g) / shape[1] ** 0.5
    rank = min(shape[0], W[0].numel())
    layer = SodaLayer(
        decomposition,
        [random_rotation(k, seed=seed + i) for i, k in enumerate(sizes)],
        None if shift is None else shift * torch.randn(rank, generator=g),
    )
    return W, layer.with_base_check(W)


@pytest.fixture
def adapter() -> tuple[dict[str, torch.Tensor], SodaAdapter]:
    """Weights and an adapter over a linear, a wide, a tall and a conv layer."""
    cases = {
        "net.block.0.to_q": random_layer((24, 24), (4, 6), "svd", 1),
        "net.block.0.to_k": random_layer((16, 30), (5, 6), "qr", 2),
        "net.block.1.to_v": random_layer((40, 12), (12,), "svd", 3),
        "net.conv": random_layer((8, 6, 3, 3), (2, 3, 9), "qr", 4),
    }
    metadata = {
        "title": "fox",
        "trigger_phrase": "sks fox",
        "steps": 3,
        "seed": 7,
        "base_model": {"name": "b", "hash": "0"},
    }
    return {n: W for n, (W, _) in cases.items()}, SodaAdapter({n: layer for n, (_, layer) in cases.items()}, metadata)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Rectified flow: noise levels, the loss, and sampling. Latents here are of unit deviation, as the model sees them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

SHIFT = 3.0  #: of the noise levels that are sampled at, SD3's in the host
TRAIN_SHIFT = 2.0  #: of those trained at: fewer pictures of nearly nothing but noise
EVENLY = 0.1  #: share of noise levels that are drawn evenly
TIMES = 1000  #: the model is told a noise level times this


def shifted(even: Tensor, shift: float) -> Tensor:
    """Noise levels of 0..1, moved towards 1."""
    return shift * even / (1 + (shift - 1) * even)


def noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """Levels to train at, (count,): most of them in the middle, where there is most to learn."""
    middle = torch.randn(count, generator=generator).sigmoid()
    even = torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < EVENLY, even, shifted(middle, TRAIN_SHIFT))


def loss_of(module: nn.Module, clean: Tensor, context: Tensor, levels: Tensor, noise: Tensor) -> Tensor:
    """Mean square error of the predicted velocity, from clean latents to noise.

    Args:
        clean, noise: (n, 16, height, width).
        context: of the captions, (n, 77, 768).
        levels: (n,), 0 = clean and 1 = noise.
    """
    part = levels[:, None, None, None]
    predicted = module(torch.lerp(clean, noise, part), levels * TIMES, context)
    return (predicted.float() - (noise - clean)).square().mean()


@torch.no_grad()
def sampled(
    module: nn.Module, noise: Tensor, context: Tensor, empty: Tensor, steps: int = 25, guidance: float = 3.0
) -> Tensor:
    """Latents drawn with Euler's steps.

    Args:
        noise: to begin with, (n, 16, height, width).
        context: of the captions, (n, 77, 768).
        empty: of no caption, (1, 77, 768).
    """
    levels = shifted(torch.linspace(1, 0, steps + 1), SHIFT).to(noise.device)
    x, both = noise, torch.cat([context, empty.expand_as(context)])
    for level, following in itertools.pairwise(levels):
        with_text, without = module(torch.cat([x, x]), level.expand(2 * len(x)) * TIMES, both).float().chunk(2)
        x = x + (following - level) * (without + guidance * (with_text - without))
    return x

# SPDX-License-Identifier: GPL-3.0-or-later
"""A TAESD with a factor of 8 between pixels and latents: its shapes, and weights for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from testbed.checkpoints.shapes import Shapes

Vae = Literal["hand", "random"]


def weights(latent: int, kind: Vae, scale: float, shift: float, generator: torch.Generator) -> dict[str, Tensor]:
    """A TAESD with a factor of 8 between pixels and latents."""
    named = shapes(latent)
    if kind == "random":
        tensors = {
            name: 1.2 / math.sqrt(math.prod(shape[1:])) * torch.randn(shape, generator=generator)
            if len(shape) > 1
            else torch.zeros(shape)
            for name, shape in named.items()
        }
        tensors["taesd_decoder.19.bias"] = torch.full((3,), 0.5)
    else:
        tensors = hand_set_autoencoder(latent)
    tensors["vae_scale"], tensors["vae_shift"] = torch.tensor(scale), torch.tensor(shift)
    return tensors


def shapes(latent: int) -> Shapes:
    s = Shapes()

    def blocks(part: str, numbers: Sequence[int]) -> None:
        for number in numbers:
            for i in (0, 2, 4):
                s.conv(f"{part}.{number}.conv.{i}", 64, 64)

    s.conv("taesd_encoder.0", 64, 3)
    blocks("taesd_encoder", (1, 3, 4, 5, 7, 8, 9, 11, 12, 13))
    for number in (2, 6, 10):
        s.conv(f"taesd_encoder.{number}", 64, 64, bias=False)
    s.conv("taesd_encoder.14", latent, 64)
    s.conv("taesd_decoder.1", 64, latent)
    blocks("taesd_decoder", (3, 4, 5, 8, 9, 10, 13, 14, 15, 18))
    for number in (7, 12, 17):
        s.conv(f"taesd_decoder.{number}", 64, 64, bias=False)
    s.conv("taesd_decoder.19", 3, 64)
    return s


def hand_set_autoencoder(latent: int = 4) -> dict[str, Tensor]:
    """Latent channels 0-2 = (mean colour of an 8 x 8 block - 0.5) * 4, channel 3 = a brightness gradient.

    The decoder inverts the first three with a smooth interpolation. Residual blocks are identities: what passes
    through them is never negative.
    """
    w = {name: torch.zeros(shape) for name, shape in shapes(latent).items()}
    encoder, decoder = "taesd_encoder", "taesd_decoder"
    first = w[f"{encoder}.0.weight"]
    for colour in range(3):
        first[colour, colour, 1, 1] = 1
    first[3, :, 1, 1], first[3, :, 1, 2] = 1 / 6, -1 / 6
    w[f"{encoder}.0.bias"][3] = 0.5
    for number in (2, 6, 10):  # halving: the mean of 2 x 2
        for channel in range(4):
            w[f"{encoder}.{number}.weight"][channel, channel, 1:, 1:] = 0.25
    for channel in range(4):
        w[f"{encoder}.14.weight"][channel, channel, 1, 1] = 4
        w[f"{encoder}.14.bias"][channel] = -2
    tent = torch.tensor([0.25, 0.5, 0.25])
    for colour in range(3):
        # a little above 1/4: the decoder first clamps latents with a tanh
        w[f"{decoder}.1.weight"][colour, colour, 1, 1] = 0.27
        w[f"{decoder}.1.bias"][colour] = 0.5
        for number in (7, 12, 17):
            w[f"{decoder}.{number}.weight"][colour, colour] = torch.outer(tent, tent)
        w[f"{decoder}.19.weight"][colour, colour, 1, 1] = 1
    return w

# SPDX-License-Identifier: GPL-3.0-or-later
"""The shipped base's UNet, which predicts the noise on latents, on Stable Diffusion 1's noise schedule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from testbed.checkpoints import PRESETS
from testbed.host import import_host

PRESET = "sd15-11"
STEPS = 1000  #: of the noise schedule
SD_SCALE = 0.18215  #: what the host multiplies SD 1.5's latents with before the UNet sees them
MIN_SNR = 5.0


def build(weights: dict[str, Tensor]) -> nn.Module:
    """The host's UNet for ``PRESET`` with these weights (names without prefix)."""
    import_host()
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.model_detection import detect_unet_config, model_config_from_unet_config

    shapes = PRESETS[PRESET][1].shapes()
    detected = detect_unet_config({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, "")
    config = model_config_from_unet_config(detected).unet_config | {"dtype": torch.float32}
    module = UNetModel(**config, operations=comfy.ops.disable_weight_init)
    module.load_state_dict(weights)
    return module


def signal_levels() -> Tensor:
    """The cumulative product of alphas, float64 of shape (1000,)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


@dataclass(frozen=True)
class Noise:
    """Which noise levels are trained, and how much each counts.

    The weight of a level is min-SNR's, for a loss on the noise. Levels are drawn in proportion to it (plus a little, so
    that none is left out), and what is left of the weight multiplies the loss: the same gradient with less variance.
    """

    levels: Tensor
    odds: Tensor
    weight: Tensor

    @classmethod
    def schedule(cls) -> Noise:
        levels = signal_levels()
        ratio = levels / (1 - levels)
        weight = ratio.clamp(max=MIN_SNR) / ratio
        odds = weight + 0.2
        return cls(levels.float(), odds.float(), (weight / odds).float())


def loss_of(module: nn.Module, noise: Noise, latents: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
    times = torch.multinomial(noise.odds, len(latents), replacement=True, generator=generator)
    level = noise.levels[times][:, None, None, None]
    added = torch.randn(latents.shape, generator=generator)
    predicted = module(level.sqrt() * latents + (1 - level).sqrt() * added, times, context)
    return ((predicted - added).square().mean((1, 2, 3)) * noise.weight[times]).mean()


@torch.no_grad()
def sampled(
    module: nn.Module, noise: Tensor, context: Tensor, empty: Tensor, steps: int = 25, guidance: float = 3.0
) -> Tensor:
    """Latents drawn with DDIM.

    Args:
        noise: to begin with, (n, 4, height, width).
        context: of the captions, (n, 77, 768).
        empty: of no caption, (1, 77, 768).
    """
    levels = signal_levels().float().to(noise.device)
    times = torch.linspace(STEPS - 1, 0, steps).round().long().to(noise.device)
    x, both = noise, torch.cat([context, empty.expand_as(context)])
    for i, t in enumerate(times):
        level = levels[t]
        following = levels[times[i + 1]] if i + 1 < steps else torch.tensor(1.0)
        with_text, without = module(torch.cat([x, x]), t.expand(2 * len(x)), both).chunk(2)
        predicted = without + guidance * (with_text - without)
        clean = (x - (1 - level).sqrt() * predicted) / level.sqrt()
        x = following.sqrt() * clean + (1 - following).sqrt() * predicted
    return x

# SPDX-License-Identifier: GPL-3.0-or-later
"""One prediction of a base model in ComfyUI's modules and in diffusers': what each calls its inputs.

Both get the same latents, text and time; noise schedules and samplers have no part in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from testbed.diffusers_models import LATENTS


@dataclass(frozen=True)
class Inputs:
    """What a model predicts from; latents ``(1, channels, side, side)``."""

    latents: Tensor
    context: Tensor
    pooled: Tensor

    @classmethod
    def of(cls, channels: int, context: int, pooled: int, side: int = 8) -> Inputs:
        g = torch.Generator().manual_seed(3)
        return cls(
            torch.randn(1, channels, side, side, generator=g),
            torch.randn(1, 77, context, generator=g),
            torch.randn(1, pooled, generator=g),
        )


SIZES = torch.tensor([[64.0, 48.0, 0.0, 8.0, 64.0, 64.0]])  #: what SDXL is told of sizes and crops


def sd15_comfy(model: Any, inputs: Inputs) -> Tensor:
    return model(inputs.latents, torch.tensor([321.0]), inputs.context)


def sd15_diffusers(model: Any, inputs: Inputs) -> Tensor:
    return model(inputs.latents, 321.0, inputs.context).sample


def sdxl_comfy(model: Any, inputs: Inputs) -> Tensor:
    from comfy.ldm.modules.diffusionmodules.util import timestep_embedding

    vector = torch.cat([inputs.pooled, timestep_embedding(SIZES.flatten(), 256).flatten()[None]], 1)
    return model(inputs.latents, torch.tensor([321.0]), inputs.context, y=vector)


def sdxl_diffusers(model: Any, inputs: Inputs) -> Tensor:
    added = {"text_embeds": inputs.pooled, "time_ids": SIZES}
    return model(inputs.latents, 321.0, inputs.context, added_cond_kwargs=added).sample


def sd3_comfy(model: Any, inputs: Inputs) -> Tensor:
    return model(inputs.latents, torch.tensor([321.0]), inputs.context, y=inputs.pooled)


def sd3_diffusers(model: Any, inputs: Inputs) -> Tensor:
    return model(inputs.latents, inputs.context, inputs.pooled, torch.tensor([321.0])).sample


def flux_comfy(model: Any, inputs: Inputs) -> Tensor:
    return model(inputs.latents, torch.tensor([0.321]), inputs.context, y=inputs.pooled, guidance=torch.tensor([3.5]))


def flux_diffusers(model: Any, inputs: Inputs) -> Tensor:
    """Its latents are patches of 2 x 2 in a row."""
    patches = inputs.latents.reshape(1, 16, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, 16, 64)
    at = torch.stack(torch.meshgrid(torch.zeros(1), torch.arange(4.0), torch.arange(4.0), indexing="ij"), -1)
    y = model(
        patches,
        inputs.context,
        inputs.pooled,
        torch.tensor([0.321]),
        img_ids=at.reshape(16, 3),
        txt_ids=torch.zeros(77, 3),
        guidance=torch.tensor([3.5]),
    ).sample
    return y.reshape(1, 4, 4, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 16, 8, 8)


Predict = Callable[[Any, Inputs], Tensor]

#: By preset (``demo``: the demo's base model): in ComfyUI, in diffusers, from what.
PREDICTIONS: dict[str, tuple[Predict, Predict, Inputs]] = {
    "demo": (sd3_comfy, sd3_diffusers, Inputs.of(16, 4096, 2048, LATENTS)),
    "sd15-11": (sd15_comfy, sd15_diffusers, Inputs.of(4, 768, 1)),
    "sdxl-koala-min": (sdxl_comfy, sdxl_diffusers, Inputs.of(4, 2048, 1280)),
    "sd3-d2-positions": (sd3_comfy, sd3_diffusers, Inputs.of(16, 4096, 2048)),
    "sd35-d2-dual": (sd3_comfy, sd3_diffusers, Inputs.of(16, 4096, 2048)),
    "flux-d1": (flux_comfy, flux_diffusers, Inputs.of(16, 4096, 768)),
}

# SPDX-License-Identifier: GPL-3.0-or-later
"""A picture by the model in training."""

from __future__ import annotations

from typing import Any

import comfy.sample
import latent_preview
import torch
from PIL import Image
from torch import Tensor

from ..pictures import from_image
from .dataset import TrainingData
from .session import TrainingSession

SAMPLER = ("euler", "normal")
#: With a negative conditioning; without one there is no guidance.
GUIDANCE = 6.0


def prompts(data: TrainingData) -> list[Any]:
    """The CONDITIONINGs to make a picture of each."""
    return list(data.preview_positive or data.positive[:1])


@torch.no_grad()
def sample(session: TrainingSession, data: TrainingData, positive: Any, like: Tensor, steps: int) -> Image.Image | None:
    """A prompt's picture at the settings' seed; None where the model's latents have no preview.

    Sampling may move the model off its device: load it again before the next step.

    Args:
        positive: the prompt, a CONDITIONING.
        like: a latent ``(1, C, …)`` of the picture's size.
        steps: of the sampler.
    """
    latent = torch.zeros_like(like, device="cpu")
    seed = session.settings.seed
    negative, guidance = (data.negative[0], GUIDANCE) if data.negative else (positive, 1.0)
    noise = comfy.sample.prepare_noise(latent, seed)
    samples = comfy.sample.sample(
        session.patcher, noise, steps, guidance, *SAMPLER, positive, negative, latent, disable_pbar=True, seed=seed
    )
    return _with_vae(data.vae, samples) if data.vae is not None else _rough(session.model.latent_format, samples)


def _with_vae(vae: Any, samples: Tensor) -> Image.Image:
    pixels = vae.decode(samples)[0]
    pixels = pixels[0] if pixels.ndim == 4 else pixels
    return from_image(pixels[None])


def _rough(space: Any, samples: Tensor) -> Image.Image | None:
    """By the host's linear map from latent channels to colours."""
    if space.latent_rgb_factors is None:
        return None
    previewer = latent_preview.Latent2RGBPreviewer(
        space.latent_rgb_factors, space.latent_rgb_factors_bias, space.latent_rgb_factors_reshape
    )
    return previewer.decode_latent_to_preview(space.process_in(samples))  # type: ignore[no-any-return]

# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures by the model in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.sample
import latent_preview
import torch
from PIL import Image
from torch import Tensor

from .. import folders
from ..pictures import from_image
from .dataset import TrainingData
from .options import RunOptions
from .session import TrainingSession

SAMPLER = ("euler", "normal")
#: With a negative conditioning; without one there is no guidance.
GUIDANCE = 6.0


class Previews:
    """A picture of each prompt, on the node and in the output folder.

    Args:
        like: a latent ``(1, C, …)`` of the pictures' size.
        metadata: put into the files.
    """

    def __init__(
        self, session: TrainingSession, data: TrainingData, options: RunOptions, like: Tensor,
        metadata: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self._session, self._data, self._options, self._like, self._metadata = session, data, options, like, metadata

    def sample(self) -> list[Image.Image | None]:
        """One by one. It may move the model off its device: load it again before the next step."""
        prompts = self._data.preview_positive or self._data.positive[:1]
        return [sample(self._session, self._data, each, self._like, self._options.preview_steps) for each in prompts]

    def keep(self, pictures: list[Image.Image | None], step: int) -> Image.Image | None:
        """Save and show them as those of a step; returns the first prompt's."""
        for number, picture in enumerate(pictures):
            if picture is None:
                continue
            if file := folders.save_preview(picture, self._options.filename_prefix, step, number, self._metadata):
                self._options.live.picture(step, number, file)
        return pictures[0]


@torch.no_grad()
def sample(session: TrainingSession, data: TrainingData, positive: Any, like: Tensor, steps: int) -> Image.Image | None:
    """A prompt's picture at the settings' seed; None where the model's latents have no preview.

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

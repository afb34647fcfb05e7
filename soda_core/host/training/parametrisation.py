# SPDX-License-Identifier: GPL-3.0-or-later
"""The parametrisation of a model's output, read off the host's model sampling.

Nothing here knows ε, v or flow by name. The host's ``calculate_denoised`` is affine in the model output,
``x0 = a x + c · output``, so one probe gives c and ``(x0_predicted - x0) / c`` is the error of the output itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import TrainingError

#: Share of the schedule cut off at either end, where the host's sigma is infinite or zero.
_MARGIN = 1e-3


def check_trainable(model: Any) -> None:
    """
    Raises:
        TrainingError: the host's BaseModel denoises no pictures.
    """
    dimensions = getattr(model.latent_format, "latent_dimensions", 2)
    if dimensions not in (2, 3):
        raise TrainingError(
            f"this model's latents have {dimensions} dimension(s), as those of sound do; SODA takes pictures and video"
        )
    if model.model_type.name.startswith("IMG_TO_IMG"):
        raise TrainingError(
            "this model turns one picture into another in a single step and denoises nothing, so there is no loss to "
            "train it with; load a diffusion or flow model"
        )


def draw_sigmas(sampling: Any, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """``(count,)`` noise levels, uniform over the model's own schedule."""
    return sigmas_at(sampling, torch.rand(count, generator=generator), device)


def sigmas_at(sampling: Any, shares: Tensor, device: torch.device) -> Tensor:
    """``(count,)`` noise levels at shares of the model's own schedule: 0 is all noise, 1 none."""
    percent = shares.clamp(_MARGIN, 1 - _MARGIN)
    return torch.tensor([float(sampling.percent_to_sigma(float(p))) for p in percent], device=device)


def output_scale(sampling: Any, sigma: Tensor) -> Tensor:
    """c of ``x0 = a x + c · output``: ``(batch,)``."""
    one = torch.ones(len(sigma), 1, 1, 1, device=sigma.device)
    return sampling.calculate_denoised(sigma, one, torch.zeros_like(one)).flatten()  # type: ignore[no-any-return]


def signal_to_noise(sampling: Any, sigma: Tensor) -> Tensor:
    """Power ratio of picture and noise in the noised latent: ``(batch,)``."""
    one = torch.ones(len(sigma), 1, 1, 1, device=sigma.device)
    signal = sampling.noise_scaling(sigma, torch.zeros_like(one), one.clone(), False)
    noise = sampling.noise_scaling(sigma, one.clone(), torch.zeros_like(one), False)
    return (signal / noise).square().flatten()  # type: ignore[no-any-return]


def output_error(sampling: Any, sigma: Tensor, denoised: Tensor, clean: Tensor) -> Tensor:
    """Error of the model's own output, ``(batch, …)``, from its denoised prediction."""
    scale = output_scale(sampling, sigma)
    return (denoised.float() - clean) / scale.reshape(-1, *(1,) * (clean.ndim - 1))

# SPDX-License-Identifier: GPL-3.0-or-later
"""Losses of the denoising objective, per sample, and their weights."""

from __future__ import annotations

import torch
from torch import Tensor


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error per sample: ``(batch, …) -> (batch,)``."""
    return (prediction - target).square().flatten(1).mean(1)


def min_snr_weight(snr: Tensor, output_scale: Tensor, gamma: float = 5.0) -> Tensor:
    """``min(SNR, γ)`` on the error of x0, expressed as a weight on the error of the model's own output.

    Hang et al. 2023. With ``x0 = a x + c · output`` an output error e is an x0 error ``c e``, so the weight is
    ``min(SNR, γ) c²``: ``min(SNR, γ)/SNR`` for ε, ``min(SNR, γ)/(SNR + 1)`` for v, and right for flows too.

    Args:
        snr: ``(batch,)`` signal to noise power ratio.
        output_scale: ``(batch,)`` c above.
    """
    return snr.clamp(max=gamma) * output_scale.square()


def dco(loss_model: Tensor, loss_base: Tensor, beta: float = 1000.0) -> Tensor:
    """Direct Consistency Optimization (Lee et al. 2024), elementwise: ``-logsigmoid(-β (loss_model - loss_base))``.

    Pulls the model's loss below the frozen base's on the same noise and timestep, and stops pulling once it is.
    """
    return -torch.nn.functional.logsigmoid(-beta * (loss_model - loss_base))

# SPDX-License-Identifier: GPL-3.0-or-later
"""The weights the project ships, in 8 bits or fewer: the demo's autoencoder, UNet and classifier.

A matrix or kernel is stored as int8 with a float16 scale for every output (``name`` and ``name:scale``), everything
else as float16. Of fewer bits (``name:6``), the values are packed without gaps, with a scale for every 64 inputs.
Expanding is exact arithmetic, so the weights are the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from soda_core.files import replacing
from testbed.paths import MODEL

FOLDER = MODEL
AUTOENCODER, UNET, CLASSIFIER = (FOLDER / f"{name}.safetensors" for name in ("autoencoder", "unet", "classifier"))
GROUP = 64  #: inputs of an output that share a scale, where there are fewer than 8 bits

_SCALE = ":scale"


def load(path: Path) -> dict[str, Tensor]:
    """The weights of a file, expanded to float32."""
    tensors, weights = load_file(path), {}
    for name, value in tensors.items():
        if name.endswith(_SCALE):
            continue
        name, _, bits = name.partition(":")
        if bits:
            weights[name] = _unpacked(value, tensors[name + _SCALE], int(bits))
        elif value.dtype == torch.int8:
            weights[name] = value.float() * _column(tensors[name + _SCALE].float(), value)
        else:
            weights[name] = value.float()
    return weights


def save(path: Path, tensors: Mapping[str, Tensor], bits: Mapping[str, int] | None = None) -> None:
    """Store weights.

    Args:
        bits: fewer than 8 for some matrices, by name; the number of their inputs is a multiple of 64.
    """
    packed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if value.ndim < 2:
            packed[name] = value.half().contiguous()
        elif bits and name in bits:
            steps, packed[name + _SCALE] = _steps(value.unflatten(1, (-1, GROUP)), 2, bits[name])
            packed[f"{name}:{bits[name]}"] = _packed(steps, bits[name])
        else:
            steps, packed[name + _SCALE] = _steps(value, 1, 8)
            packed[name] = steps.contiguous()
    with replacing(path) as unfinished:
        save_file(packed, unfinished)


def _steps(value: Tensor, dims: int, bits: int) -> tuple[Tensor, Tensor]:
    """Whole numbers, int8 of the same shape, and the float16 scale of each index of the first ``dims`` dimensions."""
    most = 2 ** (bits - 1) - 1
    scale = (value.flatten(dims).abs().amax(-1).clamp(min=1e-6) / most).half()
    # a scale rounded down would push the largest value past the last step
    steps = (value.float() / _column(scale.float(), value)).round().clamp(-most, most)
    return steps.to(torch.int8), scale


def _packed(steps: Tensor, bits: int) -> Tensor:
    """Whole numbers as ``bits`` bits each, one after the other, uint8 of shape (numel * bits / 8)."""
    unsigned = steps.numpy().reshape(-1, 1).astype(np.int16) + 2 ** (bits - 1)
    return torch.from_numpy(np.packbits(np.unpackbits(unsigned.astype(np.uint8), axis=1)[:, 8 - bits :]))


def _unpacked(packed: Tensor, scale: Tensor, bits: int) -> Tensor:
    """float32 of shape (outputs, inputs)."""
    count = math.prod(scale.shape) * GROUP
    rows = np.unpackbits(packed.numpy(), count=count * bits).reshape(count, bits)
    unsigned = np.packbits(rows, axis=1)[:, 0] >> (8 - bits)
    steps = torch.from_numpy(unsigned.astype(np.float32) - 2 ** (bits - 1)).view(*scale.shape, GROUP)
    return (steps * _column(scale.float(), steps)).flatten(1)


def _column(scale: Tensor, of: Tensor) -> Tensor:
    return scale.view(*scale.shape, *[1] * (of.ndim - scale.ndim))

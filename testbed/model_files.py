# SPDX-License-Identifier: GPL-3.0-or-later
"""The weights the project ships, in 8 bits: the demo's autoencoder, model and classifier.

A matrix or kernel is stored as int8 with a float16 scale for every output (``name`` and ``name:scale``), everything
else as float16. Expanding is exact arithmetic, so the weights are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from soda_core.files import replacing
from testbed.paths import MODEL as FOLDER

PARTS = ("autoencoder", "model", "classifier")


def file_of(part: str, folder: Path = FOLDER) -> Path:
    return folder / f"{part}.safetensors"


AUTOENCODER, MODEL, CLASSIFIER = map(file_of, PARTS)

_SCALE = ":scale"
_MOST = 127  #: of an int8, as far below zero as above


def load(path: Path) -> dict[str, Tensor]:
    """The weights of a file, expanded to float32."""
    tensors = load_file(path)
    return {
        name: value.float() * _column(tensors[name + _SCALE].float(), value)
        if value.dtype == torch.int8
        else value.float()
        for name, value in tensors.items()
        if not name.endswith(_SCALE)
    }


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Store weights."""
    stored: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if value.ndim < 2:
            stored[name] = value.half().contiguous()
        else:
            scale = (value.flatten(1).abs().amax(1).clamp(min=1e-6) / _MOST).half()
            # a scale rounded down would push the largest value past the last step
            steps = (value.float() / _column(scale.float(), value)).round().clamp(-_MOST, _MOST)
            stored[name], stored[name + _SCALE] = steps.to(torch.int8).contiguous(), scale
    with replacing(path) as unfinished:
        save_file(stored, unfinished)


def _column(scale: Tensor, of: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (of.ndim - 1))

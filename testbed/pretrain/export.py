# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what was trained as it is shipped, in 8 bits, says what that costs, and makes a checkpoint of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from testbed import demo_base, model_files
from testbed.checkpoints import write
from testbed.pretrain import latents
from testbed.pretrain.loop import latest

AUTOENCODER, MODEL, CLASSIFIER = model_files.PARTS
HELPERS = {AUTOENCODER: "style.", MODEL: "asked."}  #: trained along, and not kept


def export(work: Path) -> None:
    """Files in ``work/export`` and ``checkpoint.safetensors`` beside them."""
    folder = work / "export"
    weights = {name: latest(work, name) for name in model_files.PARTS}
    for part, helper in HELPERS.items():
        weights[part] = {name: value for name, value in weights[part].items() if not name.startswith(helper)}
    weights[AUTOENCODER] |= latents.host_scalars(latents.known(work))
    pack(folder, weights)
    path = write(folder / "checkpoint.safetensors", demo_base.parts(folder), note=demo_base.NOTE)
    print(f"as a checkpoint: {path}")


def pack(folder: Path, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write a file for each part, and say how large it is and how far its weights are off."""
    total = 0.0
    for name, tensors in weights.items():
        path = model_files.file_of(name, folder)
        model_files.save(path, tensors)
        stored, size = model_files.load(path), path.stat().st_size / 1e6
        off = sum(float((stored[n] - v).square().sum()) for n, v in tensors.items())
        off = (off / sum(float(v.square().sum()) for v in tensors.values())) ** 0.5
        total += size
        print(f"{path}: {size:.1f} MB, weights off by {off:.2%}")
    print(f"{total:.1f} MB in all")

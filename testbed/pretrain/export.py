# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what was trained as it is shipped, in few bits, says what that costs, and makes a checkpoint of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from testbed import model_files
from testbed.checkpoints import Parts, write
from testbed.checkpoints.diffusion import MMDiT
from testbed.pretrain import latents
from testbed.pretrain.loop import finished
from testbed.text_encoder import weights as text_encoder_weights

#: a third of the model's numbers turn a noise level into shifts, scales and gates; they need the least precision
COARSE, COARSE_BITS = "adaLN_modulation", 6
AUTOENCODER, MODEL, CLASSIFIER = "autoencoder", "model", "classifier"


def export(work: Path) -> None:
    """Files in ``work/export`` and ``checkpoint.safetensors`` beside them."""
    folder = work / "export"
    weights = {name: finished(work / name) for name in (AUTOENCODER, MODEL, CLASSIFIER)}
    for part, helper in ((AUTOENCODER, "style."), (MODEL, "asked.")):
        weights[part] = {name: value for name, value in weights[part].items() if not name.startswith(helper)}
    weights[AUTOENCODER] |= latents.host_scalars(latents.known(work))
    pack(folder, weights)
    path = write(folder / "checkpoint.safetensors", parts(folder), note="knows the pictures of testbed/world")
    print(f"as a checkpoint: {path}")


def pack(folder: Path, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write a file for each part, and say how large it is and how far its weights are off."""
    total = 0.0
    for name, tensors in weights.items():
        path = _file(folder, name)
        model_files.save(path, tensors, {part: COARSE_BITS for part in tensors if COARSE in part and "weight" in part})
        stored, size = model_files.load(path), path.stat().st_size / 1e6
        off = sum(float((stored[n] - v).square().sum()) for n, v in tensors.items())
        off = (off / sum(float(v.square().sum()) for v in tensors.values())) ** 0.5
        total += size
        print(f"{path}: {size:.1f} MB, weights off by {off:.2%}")
    print(f"{total:.1f} MB in all")


def parts(folder: Path) -> Parts:
    """The tensors of the checkpoint, by their names in it, from the exported files."""
    model = model_files.load(_file(folder, MODEL))
    # the host pads what CLIP-L says of a token with zeros
    context = model["context_embedder.weight"]
    model["context_embedder.weight"] = F.pad(context, (0, MMDiT.context - context.shape[1]))
    return {
        "unet": {f"model.diffusion_model.{name}": value for name, value in model.items()},
        "clip": {f"text_encoders.clip_l.transformer.{name}": value for name, value in _text_encoder().items()},
        "vae": {
            f"first_stage_model.{name}": value for name, value in model_files.load(_file(folder, AUTOENCODER)).items()
        },
    }


def _text_encoder() -> dict[str, Tensor]:
    tensors = text_encoder_weights()
    width = len(tensors["text_model.final_layer_norm.weight"])
    # pooled, a text says nothing: the model does not ask
    return tensors | {"text_projection.weight": tensors["text_model.final_layer_norm.bias"][:1].expand(width, width)}


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"

# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's base model: an SD3 checkpoint that knows ``testbed.world``, from the shipped weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from testbed import text_encoder
from testbed.checkpoints import Parts, write
from testbed.model_files import AUTOENCODER, FOLDER, MODEL, load

PRESET = "demo"  #: its layout among ``testbed.checkpoints``
NOTE = "knows the pictures of testbed/world, see demo/model/README.md"
_VERSION = b"2"  #: raise it when the text encoder or the way of expanding changes


def parts(folder: Path = FOLDER) -> Parts:
    """The tensors of the checkpoint, by their names in it.

    Args:
        folder: of the weights' files.
    """
    model = load(folder / MODEL.name)
    model["context_embedder.weight"] = text_encoder.filled(model["context_embedder.weight"])
    return {
        "unet": {f"model.diffusion_model.{name}": value for name, value in model.items()},
        "clip": {f"text_encoders.clip_l.transformer.{name}": value for name, value in _text_encoder().items()},
        "vae": {f"first_stage_model.{name}": value for name, value in load(folder / AUTOENCODER.name).items()},
    }


def _text_encoder() -> dict[str, Tensor]:
    tensors = text_encoder.weights()
    width = text_encoder.WIDTH
    # pooled, a text says nothing: the model does not ask
    return tensors | {"text_projection.weight": tensors["text_model.final_layer_norm.bias"][:1].expand(width, width)}


def checkpoint(folder: Path) -> Path:
    """The checkpoint in ``folder``, made if it is not there (a second or two, 270 MB of which most are zeros)."""
    content = hashlib.sha256(_VERSION + MODEL.read_bytes() + AUTOENCODER.read_bytes()).hexdigest()
    path = folder / f"soda-demo-base-{content[:12]}.safetensors"
    if not path.exists():
        write(path, parts(), note=NOTE)
    return path

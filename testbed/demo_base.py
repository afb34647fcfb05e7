# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's base model: a Stable Diffusion 1.5 checkpoint that knows ``testbed.world``, from shipped weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from testbed.checkpoints import Parts, write
from testbed.model_files import AUTOENCODER, UNET, load
from testbed.text_encoder import weights

_VERSION = b"1"  #: raise it when the text encoder or the way of expanding changes


def parts() -> Parts:
    """The tensors of the checkpoint, by their names in it."""
    return {
        "unet": {f"model.diffusion_model.{name}": value for name, value in load(UNET).items()},
        "clip": {f"cond_stage_model.transformer.{name}": value for name, value in weights().items()},
        "vae": {f"first_stage_model.{name}": value for name, value in load(AUTOENCODER).items()},
    }


def checkpoint(folder: Path) -> Path:
    """The checkpoint in ``folder``, made if it is not there (a second or two, 250 MB of which most are zeros)."""
    content = hashlib.sha256(_VERSION + UNET.read_bytes() + AUTOENCODER.read_bytes()).hexdigest()
    path = folder / f"soda-demo-base-{content[:12]}.safetensors"
    if not path.exists():
        write(path, parts(), note="knows the pictures of testbed/world, see demo/model/README.md")
    return path

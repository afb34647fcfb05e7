# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes small base checkpoints with random weights that a stock ComfyUI loads with "Load Checkpoint".

Nothing is downloaded: a seed decides every weight. Each preset has the real key names, and the real widths where the
host checks them, of its family (sd15, sdxl, sd3, flux), only fewer blocks. Sampled pictures are abstract; the VAE is
set by hand (mean colour of 8 x 8 pixel blocks), so a picture survives encoding and decoding.

    python -m testbed.checkpoints sd15-1 base.safetensors [--clip full|sparse|none] [--dtype f16|bf16|f32] [--seed 0]
    python -m testbed.checkpoints --list

Needs torch only. Tensors of zeros become holes in the file where the file system can, so that a checkpoint with the
"sparse" text encoder takes a fraction of its apparent size.
"""

from __future__ import annotations

from testbed.checkpoints.file import write
from testbed.checkpoints.presets import PRESETS, Parts, build

#: The checkpoint the shipped workflows name.
BASE_NAME = "soda-demo-base.safetensors"

__all__ = ["BASE_NAME", "PRESETS", "Parts", "build", "write"]

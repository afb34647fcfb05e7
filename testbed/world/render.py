# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from testbed.world.backgrounds import background
from testbed.world.glyphs import world_glyphs
from testbed.world.scene import Scene
from testbed.world.styles import PAINTERS, Layers

SIDE = 192  #: of the pictures that base model and classifier are made for, in pixels
SCALE = 2  #: pictures are drawn this much larger, so that edges come out smooth


def render(scene: Scene, side: int, glyphs: Mapping[str, Image.Image] | None = None) -> NDArray[np.uint8]:
    """The picture of a scene, RGB of shape (side, side, 3). Same scene, same picture.

    Args:
        side: in pixels, a multiple of 24.
        glyphs: name -> cut-out RGBA bitmap; by default the world's own.
    """
    bitmap = (glyphs or world_glyphs())[scene.glyph]
    full, random = side * SCALE, np.random.default_rng(scene.seed)
    behind = background(scene.background, full, random)
    cut_out = np.asarray(_placed(bitmap, scene, full), np.float32) / 255
    alpha = cut_out[..., 3]
    picture = behind + (cut_out[..., :3] - behind) * alpha[..., None]
    drawn = PAINTERS[scene.style](Layers(picture, behind, alpha))
    small = drawn.reshape(side, SCALE, side, SCALE, 3).mean((1, 3))
    return (np.clip(small, 0, 1) * 255 + 0.5).astype(np.uint8)


def images(scenes: Sequence[Scene]) -> Tensor:
    """Pictures as the host has them: (n, SIDE, SIDE, 3), float32 in 0..1."""
    return torch.from_numpy(np.stack([render(scene, SIDE) for scene in scenes])).float() / 255


def _placed(bitmap: Image.Image, scene: Scene, side: int) -> Image.Image:
    """The glyph on an empty picture."""
    factor = scene.height * side / max(bitmap.size)
    size = (max(1, round(bitmap.width * factor)), max(1, round(bitmap.height * factor)))
    turned = bitmap.resize(size, Image.Resampling.LANCZOS).rotate(scene.tilt, Image.Resampling.BICUBIC, expand=True)
    canvas = Image.new("RGBA", (side, side))
    corner = (round(scene.place[0] * side - turned.width / 2), round(scene.place[1] * side - turned.height / 2))
    canvas.paste(turned, corner)
    return canvas

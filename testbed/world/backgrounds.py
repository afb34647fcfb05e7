# SPDX-License-Identifier: GPL-3.0-or-later
"""What is behind the glyph. Each returns RGB in 0..1 of shape (side, side, 3)."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

from testbed.world.vocabulary import COLOURS

Picture = NDArray[np.float32]


def background(name: str, side: int, random: np.random.Generator) -> Picture:
    """The background of that name; what it leaves open is drawn from ``random``."""
    if name in COLOURS:
        colour = np.asarray(COLOURS[name], np.float32) / 255
        return np.tile(np.clip(colour + random.uniform(-0.04, 0.04, 3), 0, 1).astype(np.float32), (side, side, 1))
    if name == "sunset":
        stops = np.asarray([(0.36, 0.22, 0.55), (0.93, 0.42, 0.38), (1.0, 0.80, 0.42)], np.float32)
        height = np.clip(np.linspace(0, 2, side) + random.uniform(-0.15, 0.15), 0, 2)
        rows = np.stack([np.interp(height, (0, 1, 2), stops[:, i]) for i in range(3)], -1).astype(np.float32)
        return np.repeat(rows[:, None], side, 1)
    hue = random.uniform()
    one = np.asarray(colorsys.hsv_to_rgb(hue, 0.35, 0.97), np.float32)
    two = np.asarray(colorsys.hsv_to_rgb(hue, 0.60, 0.72), np.float32)
    y, x = np.mgrid[:side, :side] / side
    if name == "striped":
        first = (x + y) * 4 % 1 < 0.5
    elif name == "checkered":
        first = (np.floor(x * 4) + np.floor(y * 4)) % 2 == 0
    else:
        raise ValueError(f"no background is called {name!r}")
    return np.where(first[..., None], one, two)

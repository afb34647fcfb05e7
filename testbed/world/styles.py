# SPDX-License-Identifier: GPL-3.0-or-later
"""Styles: operations on a flat picture. All lengths scale with the picture, so a style looks the same at any size.

Textures repeat, 12 times a side: every 8 pixels of the model's pictures, so that each place of its latents sees the
same one, and an autoencoder has to carry that a texture is there but not where. Except for the single-colour styles,
which are all held out, styles keep the background's hue, so that a caption's background stays true.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.spatial import cKDTree

Picture = NDArray[np.float32]  #: RGB in 0..1, shape (side, side, 3)
Mask = NDArray[np.float32]  #: 0..1, shape (side, side)


@dataclass(frozen=True)
class Layers:
    """A flat picture with its parts."""

    picture: Picture
    background: Picture
    alpha: Mask  #: where the glyph is

    @property
    def unit(self) -> float:
        """A 64th of the picture's side, in pixels."""
        return len(self.picture) / 64


def flat(layers: Layers) -> Picture:
    return layers.picture


def pixel_art(layers: Layers) -> Picture:
    cells = _cells(layers.picture, 24)
    return _enlarged(np.round(cells * 5) / 5, len(layers.picture))


def ink_drawing(layers: Layers) -> Picture:
    paper = 0.45 * layers.background + 0.55
    filled = _mix(paper, 0.80 + 0.2 * _grey(layers.picture)[..., None], layers.alpha[..., None])
    return filled * (1 - 0.92 * _lines(layers, 1.0))[..., None]


def neon(layers: Layers) -> Picture:
    dark = layers.picture * (0.10 + 0.14 * (1 - layers.alpha))[..., None]
    light = _saturated(_blurred(layers.picture, layers.unit), 1.6)
    light = light / np.maximum(light.max(-1, keepdims=True), 0.3)
    lines = _lines(layers, 0.9)
    glow = np.clip(1.6 * _blurred(lines, 2.0 * layers.unit), 0, 1)
    return np.clip(dark + light * (0.75 * glow + 0.9 * lines)[..., None], 0, 1)


def watercolour(layers: Layers) -> Picture:
    soft = _blurred(layers.picture, 0.9 * layers.unit)
    pigment = 0.35 + 0.65 * _noise(len(soft), 7, 1)[..., None]
    rim = np.abs(_blurred(layers.alpha, 1.6 * layers.unit) - _blurred(layers.alpha, 0.5 * layers.unit))[..., None]
    return np.clip(1 - (1 - soft) * (0.35 + 0.6 * pigment) - 0.7 * rim * soft, 0, 1)


def halftone(layers: Layers) -> Picture:
    side = len(layers.picture)
    places = (np.mgrid[:side, :side] + 0.5) * 24 / side
    y, x = places % 1 - 0.5
    # every second dot is larger: were all alike, latents as far apart as the dots would all be alike, and say no place
    larger = np.where(np.floor(places).sum(0) % 2 == 0, np.float32(1.18), np.float32(0.78))
    reach = 0.66 * np.sqrt(np.clip(1.05 - 0.85 * _grey(_blurred(layers.picture, layers.unit)), 0.10, 1))
    dot = np.clip((larger * reach - np.hypot(x, y)) * 2.7 * layers.unit, 0, 1)[..., None].astype(np.float32)
    ink = _saturated(layers.picture, 1.4) * 0.85
    return _mix(0.35 * layers.picture + 0.65, ink, dot)


def mosaic(layers: Layers) -> Picture:
    labels, grout = _tiles(len(layers.picture), 24, 2, 0.9)
    count = np.bincount(labels.ravel())
    tiles = np.stack([np.bincount(labels.ravel(), layers.picture[..., i].ravel()) / count for i in range(3)], -1)
    return tiles[labels].astype(np.float32) * (1 - 0.6 * grout)[..., None]


def crayon(layers: Layers) -> Picture:
    wax = _saturated(layers.picture, 1.25) * 0.95
    bare = np.clip(1.2 * (_strokes(len(wax)) - 0.4), 0, 0.8)[..., None]
    return _mix(wax, np.float32(0.97), bare)


def sepia_print(layers: Layers) -> Picture:
    grey = np.clip(1.15 * _grey(layers.picture) - 0.05, 0, 1)
    y, x = np.mgrid[-1 : 1 : len(grey) * 1j, -1 : 1 : len(grey) * 1j]
    grey = grey * (1 - 0.35 * np.clip(np.hypot(x, y) - 0.6, 0, 1))
    return _graded(grey, ((0.16, 0.08, 0.04), (0.60, 0.40, 0.22), (0.97, 0.89, 0.72)))


def blueprint(layers: Layers) -> Picture:
    side = len(layers.picture)
    paper = np.full((side, side, 3), (0.07, 0.22, 0.52), np.float32)
    y, x = np.mgrid[:side, :side] * 8 / side % 1
    grid = ((x < 0.13) | (y < 0.13))[..., None]
    paper = _mix(paper, np.float32(1), 0.16 * grid)
    paper = _mix(paper, np.float32(1), (0.22 * layers.alpha * _grey(layers.picture))[..., None])
    return _mix(paper, np.asarray((0.93, 0.97, 1), np.float32), _lines(layers, 1.0)[..., None])


def thermal_camera(layers: Layers) -> Picture:
    heat = 0.10 + 0.18 * _grey(layers.background)
    heat = _mix(heat, 0.45 + 0.55 * _grey(layers.picture), _blurred(layers.alpha, 1.0 * layers.unit))
    stops = ((0.05, 0.02, 0.28), (0.35, 0.05, 0.55), (0.85, 0.20, 0.30), (1.0, 0.62, 0.10), (1.0, 0.98, 0.75))
    return _graded(_blurred(heat, 0.7 * layers.unit), stops)


def stained_glass(layers: Layers) -> Picture:
    _, lead = _tiles(len(layers.picture), 5, 5, 1.6)
    glass = np.clip(_saturated(_blurred(layers.picture, 0.8 * layers.unit), 1.8), 0, 1)
    outline = np.clip(6 * layers.alpha * (1 - layers.alpha), 0, 1)
    outline = np.clip(2.2 * _blurred(outline, 0.9 * layers.unit), 0, 1)
    lead = np.clip(2.5 * _blurred(lead, 0.8 * layers.unit), 0, 1) * (1 - layers.alpha)
    return glass * (1 - np.clip(np.maximum(lead, outline), 0, 1))[..., None]


PAINTERS: dict[str, Callable[[Layers], Picture]] = {
    "flat": flat,
    "pixel art": pixel_art,
    "ink drawing": ink_drawing,
    "neon": neon,
    "watercolour": watercolour,
    "halftone": halftone,
    "mosaic": mosaic,
    "crayon": crayon,
    "sepia print": sepia_print,
    "blueprint": blueprint,
    "thermal camera": thermal_camera,
    "stained glass": stained_glass,
}


# ----------------------------------------------------------------------------------------------------------- tools


def _mix(one: Picture, two: Picture | np.float32, share: Mask | Picture) -> Picture:
    return (one + (two - one) * share).astype(np.float32)


def _grey(picture: Picture) -> Mask:
    return picture @ np.asarray((0.299, 0.587, 0.114), np.float32)


def _saturated(picture: Picture, factor: float) -> Picture:
    grey = _grey(picture)[..., None]
    return np.clip(grey + factor * (picture - grey), 0, 1)


def _graded(grey: Mask, stops: tuple[tuple[float, float, float], ...]) -> Picture:
    places, colours = np.linspace(0, 1, len(stops)), np.asarray(stops)
    return np.stack([np.interp(grey, places, colours[:, i]) for i in range(3)], -1).astype(np.float32)


def _blurred(values: NDArray[np.float32], radius: float) -> NDArray[np.float32]:
    """Gaussian blur, of a picture or a mask."""
    image = Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def _lines(layers: Layers, width: float) -> Mask:
    """Pen lines along the glyph's outline and inner edges, ``width`` in units."""
    soft = _blurred(layers.picture, 0.45 * layers.unit)
    flatness = np.concatenate([soft * layers.alpha[..., None], layers.alpha[..., None]], -1)
    down = np.abs(np.diff(flatness, axis=0, append=flatness[-1:])).max(-1)
    right = np.abs(np.diff(flatness, axis=1, append=flatness[:, -1:])).max(-1)
    edges = np.clip((np.hypot(down, right) * layers.unit - 0.10) * 4, 0, 1)
    return np.clip(1.5 * _blurred(edges, 0.4 * width * layers.unit), 0, 1)


def _cells(picture: Picture, count: int) -> Picture:
    """Mean colours of ``count`` x ``count`` cells."""
    step = len(picture) // count
    return picture.reshape(count, step, count, step, 3).mean((1, 3))


def _enlarged(cells: Picture, side: int) -> Picture:
    step = side // len(cells)
    return cells.repeat(step, 0).repeat(step, 1)


@cache
def _noise(side: int, cells: int, seed: int) -> Mask:
    """Smooth noise in 0..1 with about ``cells`` blobs a side."""
    coarse = np.random.default_rng(seed).random((cells, cells)).astype(np.float32)
    image = Image.fromarray((coarse * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) / 255


@cache
def _strokes(side: int) -> Mask:
    """Slanted strokes in 0..1."""
    strokes = np.asarray([0.0, 0.35, 0.9, 0.55, 0.1, 0.6, 1.0, 0.4], np.float32)
    strokes = np.tile(strokes[np.add.outer(-np.arange(8), np.arange(8)) % 8], (12, 12))
    image = Image.fromarray((strokes * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) / 255


@cache
def _tiles(side: int, count: int, period: int, line: float) -> tuple[NDArray[np.int64], Mask]:
    """Irregular tiles, ``count`` a side, alike every ``period``: the tile of each pixel, and lines between them."""
    shifts = np.random.default_rng(3).uniform(-0.28, 0.28, (2, period, period))
    places = np.mgrid[-1 : count + 1, -1 : count + 1]
    centres = (places + 0.5 + shifts[:, places[0] % period, places[1] % period]).reshape(2, -1).T / count
    pixels = np.stack((np.mgrid[:side, :side] + 0.5) / side, -1)
    near, nearest = cKDTree(centres).query(pixels, k=2)
    between = np.clip(line - (near[..., 1] - near[..., 0]) * 64, 0, 1)
    return np.unique(nearest[..., 0], return_inverse=True)[1].reshape(side, side), between.astype(np.float32)

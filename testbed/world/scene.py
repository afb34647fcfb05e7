# SPDX-License-Identifier: GPL-3.0-or-later
"""A scene: what is in a picture, and the words for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from testbed.world.vocabulary import BACKGROUNDS, CLASSES, GLYPHS, STYLES


@dataclass(frozen=True)
class Scene:
    """One picture. Lengths are parts of the picture's side, ``tilt`` is in degrees.

    ``seed`` decides what a background or a style leaves open (the hues of stripes, say).
    """

    glyph: str
    style: str
    background: str
    height: float = 0.75
    place: tuple[float, float] = (0.5, 0.5)
    tilt: float = 0.0
    seed: int = 0

    @property
    def kind(self) -> str:
        """The class of the glyph."""
        return GLYPHS[self.glyph][0]


def draw_scene(
    random: np.random.Generator,
    classes: Mapping[str, Sequence[str]] | None = None,
    styles: Sequence[str] = STYLES,
    backgrounds: Sequence[str] = BACKGROUNDS,
) -> Scene:
    """A random scene: first the class, then a glyph of it.

    Args:
        classes: class -> glyph names; by default those that the base model is trained on.
    """
    classes = classes or {kind: list(glyphs) for kind, glyphs in CLASSES.items()}
    glyphs = classes[_pick(random, list(classes))]
    return Scene(
        glyph=_pick(random, glyphs),
        style=_pick(random, styles),
        background=_pick(random, backgrounds),
        **draw_pose(random),
        seed=int(random.integers(2**31)),
    )


def draw_pose(random: np.random.Generator) -> dict[str, Any]:
    """Size, place and tilt. Not varied more than a small model learns in hours on a CPU."""
    height = random.uniform(0.7, 0.85)
    room = (1 - height) / 3
    place = (0.5 + random.uniform(-room, room), 0.5 + random.uniform(-room, room))
    return {"height": height, "place": place, "tilt": random.uniform(-7, 7)}


#: How captions are worded. A caption without a style is one of a flat picture.
PLAIN_CAPTIONS = (
    "a {thing} on a {background} background",
    "a {thing}, {background} background",
    "a picture of a {thing} on a {background} background",
)
STYLED_CAPTIONS = (
    "a {thing} on a {background} background, {style}",
    "a {thing} on a {background} background, in {style} style",
    "{style} of a {thing} on a {background} background",
    "a {thing} in {style} style, {background} background",
)


def caption(random: np.random.Generator, thing: str, style: str, background: str) -> str:
    """Words for a picture.

    Args:
        thing: the class, perhaps with a placeholder word: "dog", "sks dog".
        style: "flat" is named half of the time only.
    """
    plain = style == "flat" and random.random() < 0.5
    words = _pick(random, PLAIN_CAPTIONS if plain else STYLED_CAPTIONS)
    return words.format(thing=thing, style=style, background=background)


def _pick(random: np.random.Generator, of: Sequence[str]) -> str:
    return of[random.integers(len(of))]

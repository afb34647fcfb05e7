# SPDX-License-Identifier: GPL-3.0-or-later
"""What is there to learn: a held-out subject or style as five captioned pictures."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from testbed.world.render import render
from testbed.world.scene import Scene, draw_pose
from testbed.world.vocabulary import CLASSES, COLOURS, SUBJECTS

PICTURES = 5
SUBJECT_WORD, STYLE_WORD = "sks", "zqx"  #: placeholders, which mean nothing to the base model


@dataclass(frozen=True)
class Task:
    """A held-out glyph (kind "subject") or style (kind "style")."""

    kind: str
    name: str

    @property
    def class_word(self) -> str:
        """What a subject is to the base model: "cat"."""
        return SUBJECTS[self.name][0]

    def scenes(self, count: int = PICTURES, seed: int = 0) -> list[Scene]:
        """Pictures of it: a subject on plain backgrounds, flat; a style on one class after the other."""
        random = np.random.default_rng((zlib.crc32(f"{self.kind}/{self.name}".encode()), seed))
        kinds = list(random.permutation(list(CLASSES)))
        backgrounds = list(random.permutation(list(COLOURS)))
        scenes = []
        for i in range(count):
            if self.kind == "subject":
                glyph, style = self.name, "flat"
            else:
                glyphs = list(CLASSES[kinds[i % len(kinds)]])
                glyph, style = glyphs[random.integers(len(glyphs))], self.name
            background = backgrounds[i % len(backgrounds)]
            scenes.append(Scene(glyph, style, background, **draw_pose(random), seed=int(random.integers(2**31))))
        return scenes

    def captions(self, scenes: Sequence[Scene]) -> tuple[list[str], list[str]]:
        """Captions with the placeholder word, and without."""
        plain = [f"a {s.kind} on a {s.background} background" for s in scenes]
        if self.kind == "subject":
            return [text.replace("a ", f"a {SUBJECT_WORD} ", 1) for text in plain], plain
        return [f"{text}, in {STYLE_WORD} style" for text in plain], plain

    def write(self, folder: Path, side: int) -> None:
        """The pictures as PNG files with their captions in text files beside them."""
        folder.mkdir(parents=True, exist_ok=True)
        scenes = self.scenes()
        for i, (scene, text) in enumerate(zip(scenes, self.captions(scenes)[0], strict=True), 1):
            Image.fromarray(render(scene, side)).save(folder / f"{i}.png")
            (folder / f"{i}.txt").write_text(text + "\n", encoding="utf-8")


#: what the demo shows, and what settings are tuned on
SUBJECT, STYLE = Task("subject", "sunflower"), Task("style", "blueprint")

# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells what a picture of the demo's world shows: which class, which style, which background, and whose portrait.

The stand-in for what papers use CLIP and DINO for. Trained by ``testbed/pretrain/classifier.py`` on pictures of its
own, held-out glyphs and styles included, half of them through the autoencoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testbed.world.styles import PAINTERS
from testbed.world.vocabulary import BACKGROUNDS, CLASSES, GLYPHS

CLASS_NAMES, GLYPH_NAMES, STYLE_NAMES = tuple(CLASSES), tuple(GLYPHS), tuple(PAINTERS)
_class_of = torch.tensor([CLASS_NAMES.index(GLYPHS[name][0]) for name in GLYPH_NAMES])
FOLD = 2  #: so many pixels a side are folded into channels first
LOGIT_SCALE = 16.0  #: cosines to glyphs are this much sharpened before the softmax


class Classifier(nn.Module):
    """A small convolutional network on pictures (n, 3, side, side) in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_down(3 * FOLD**2, 32), _down(32, 64))
        self.middle = nn.Sequential(_down(64, 128), _Residual(128))
        self.top = nn.Sequential(_down(128, 256), _Residual(256))
        self.embed = nn.Linear(256, 128)
        self.glyph = nn.Linear(128, len(GLYPH_NAMES), bias=False)
        # style and background are textures and colours: they are read lower down as well
        self.style = nn.Linear(64 + 128 + 256, len(STYLE_NAMES))
        self.background = nn.Linear(64 + 128 + 256, len(BACKGROUNDS))

    def features(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is seen in ever larger parts: (n, 64, side / 8, side / 8), (n, 128, side / 16, side / 16) and
        (n, 256, side / 32, side / 32)."""
        low = self.stem(F.pixel_unshuffle(pictures * 2 - 1, FOLD))
        middle = self.middle(low)
        return low, middle, self.top(middle)

    def forward(self, pictures: Tensor) -> Predictions:
        low, middle, top = self.features(pictures)
        top = top.mean((2, 3))
        everything = torch.cat([low.mean((2, 3)), middle.mean((2, 3)), top], 1)
        embedding = F.normalize(self.embed(top), dim=1)
        glyph = LOGIT_SCALE * embedding @ F.normalize(self.glyph.weight, dim=1).mT
        kinds = [glyph[:, _class_of == i].logsumexp(1) for i in range(len(CLASS_NAMES))]
        return Predictions(
            embedding=embedding,
            glyph=glyph,
            kind=torch.stack(kinds, 1),
            style=self.style(everything),
            background=self.background(everything),
        )


@dataclass(frozen=True)
class Predictions:
    """What the classifier says of n pictures: an embedding of unit length (n, 128), and logits (n, choices)."""

    embedding: Tensor
    glyph: Tensor
    kind: Tensor
    style: Tensor
    background: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Predictions:
        """Of all pictures, one after the other."""
        return cls(**{f.name: torch.cat([getattr(v, f.name) for v in parts]) for f in fields(cls)})

    def to(self, device: str | torch.device) -> Predictions:
        return Predictions(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def kinds(self) -> list[str]:
        return [CLASS_NAMES[i] for i in self.kind.argmax(1).tolist()]

    def styles(self) -> list[str]:
        return [STYLE_NAMES[i] for i in self.style.argmax(1).tolist()]

    def style_log_probability(self, wanted: Sequence[str]) -> Tensor:
        """Of the style that each picture should have, (n,)."""
        return _log_probability(self.style, [STYLE_NAMES.index(style) for style in wanted])

    def kind_log_probability(self, wanted: Sequence[str]) -> Tensor:
        """Of the class that each picture should show, (n,)."""
        return _log_probability(self.kind, [CLASS_NAMES.index(kind) for kind in wanted])

    def glyph_log_probability(self, wanted: Sequence[str]) -> Tensor:
        """Of the glyph that each picture should show, (n,)."""
        return _log_probability(self.glyph, [GLYPH_NAMES.index(glyph) for glyph in wanted])

    def backgrounds(self) -> list[str]:
        return [BACKGROUNDS[i] for i in self.background.argmax(1).tolist()]

    def glyphs(self) -> list[str]:
        return [GLYPH_NAMES[i] for i in self.glyph.argmax(1).tolist()]


def _log_probability(logits: Tensor, wanted: list[int]) -> Tensor:
    return logits.log_softmax(1).gather(1, torch.tensor(wanted)[:, None]).squeeze(1)


def load_classifier() -> Classifier:
    """The shipped classifier, on the CPU."""
    from testbed.model_files import CLASSIFIER, load

    classifier = Classifier()
    classifier.load_state_dict(load(CLASSIFIER))
    return classifier.eval().requires_grad_(False)


def _down(width: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, out, 3, stride=2, padding=1, bias=False), nn.GroupNorm(8, out), nn.SiLU())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(8, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.branch(x))

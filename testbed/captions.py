# SPDX-License-Identifier: GPL-3.0-or-later
"""Captions as a model sees them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from testbed.host import import_host
from testbed.text_encoder import encode, padded, weights
from testbed.world.scene import Scene, caption

UNCONDITIONAL = 0.1  #: share of captions left empty, for guidance
NAMED = 0.5  #: share of captions that say which of its class a thing is


class Captions:
    """Encodes texts. The tokenizer is the host's."""

    def __init__(self) -> None:
        import_host()
        from comfy.sd1_clip import SDTokenizer

        self.tokenizer = SDTokenizer().tokenizer
        self.weights = weights()
        self.known: dict[str, list[int]] = {}

    def __call__(self, texts: list[str]) -> Tensor:
        """(len(texts), 77, 768)"""
        return encode(torch.tensor([self._tokens(text) for text in texts]), self.weights)

    def _tokens(self, text: str) -> list[int]:
        if text not in self.known:
            self.known[text] = padded(self.tokenizer(text)["input_ids"][1:-1])
        return self.known[text]


def captions_of(
    scenes: list[Scene], rows: Tensor, generator: torch.Generator, unconditional: float = UNCONDITIONAL
) -> list[str]:
    """Words for some of the scenes, now and then none.

    Half of them name the glyph ("a tulip"), the others its class ("a flower"): a name that means one thing is learnt
    sooner than one that means several.
    """
    random = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    texts = []
    for row in rows.tolist():
        scene = scenes[row]
        empty = random.random() < unconditional
        thing = scene.glyph if random.random() < NAMED else scene.kind
        texts.append("" if empty else caption(random, thing, scene.style, scene.background))
    return texts

# SPDX-License-Identifier: GPL-3.0-or-later
"""Captions as the UNet sees them."""

from __future__ import annotations

import torch
from torch import Tensor

from testbed.host import import_host
from testbed.text_encoder import encode, padded, weights


class Captions:
    """Encodes texts, each once. The tokenizer is the host's."""

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

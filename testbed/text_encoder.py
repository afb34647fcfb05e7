# SPDX-License-Identifier: GPL-3.0-or-later
"""The base model's text encoder: CLIP-L with weights that a hash decides, the same on every machine.

It need not understand text, only tell words apart, so it is as cheap as it can be: every token has random signs for an
embedding, the first layer adds the mean of the words so far, turned by a random sign matrix, and the other layers pass
everything through. The model learns what the words mean.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from testbed.checkpoints.diffusion import MMDiT
from testbed.checkpoints.text_encoders import clip_l

TOKENS, POSITIONS, WIDTH = 49408, 77, 768
START, END = 49406, 49407
POSITION_SCALE = 0.125  #: of a position's embedding against a token's
MEAN_GAIN = 2.5  #: how much of the mean of the words so far is added

_V, _OUT = (
    "text_model.encoder.layers.0.self_attn.v_proj.weight",
    "text_model.encoder.layers.0.self_attn.out_proj.weight",
)
_TOKEN, _POSITION = "text_model.embeddings.token_embedding.weight", "text_model.embeddings.position_embedding.weight"


def signs(label: str, rows: int, columns: int) -> Tensor:
    """A matrix of +1 and -1, shape (rows, columns), float16: the bits of SHAKE-256 of the label."""
    bits = np.frombuffer(hashlib.shake_256(label.encode()).digest(-(-rows * columns // 8)), np.uint8)
    return (
        torch.from_numpy(np.unpackbits(bits, count=rows * columns))
        .to(torch.float16)
        .mul_(2)
        .sub_(1)
        .view(rows, columns)
    )


def weights() -> dict[str, Tensor]:
    """All tensors of the text encoder, float16, by their name in transformers."""
    tensors: dict[str, Tensor] = {}
    for name, shape in clip_l().items():
        if "norm" in name and name.endswith("weight"):
            tensors[name] = torch.ones(shape, dtype=torch.float16)
        else:  # one shared zero, which takes no memory, and no room in a sparse file
            tensors[name] = torch.zeros((), dtype=torch.float16).expand(shape)
    tensors[_TOKEN] = signs("token", TOKENS, WIDTH)
    tensors[_POSITION] = POSITION_SCALE * signs("position", POSITIONS, WIDTH)
    # queries and keys are zero, so a word attends equally to all words so far
    tensors[_V] = torch.eye(WIDTH, dtype=torch.float16)
    tensors[_OUT] = (MEAN_GAIN / math.sqrt(WIDTH) * signs("mean", WIDTH, WIDTH).float()).half()
    return tensors


def encode(tokens: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """What the host's CLIP makes of token numbers, without the layers that do nothing. (n, 77) -> (n, 77, 768).

    SD3 takes the last layer but one as it is, without the final norm.
    """
    x = F.embedding(tokens, tensors[_TOKEN]).float() + tensors[_POSITION].float()
    so_far = F.layer_norm(x, (WIDTH,)).cumsum(1) / torch.arange(1, POSITIONS + 1)[:, None]
    return x + so_far @ tensors[_OUT].float().mT


def filled(values: Tensor) -> Tensor:
    """What CLIP-L says of a token, (..., 768), filled up with zeros to the width of SD3's other encoder, as the host
    does: (..., 4096)."""
    return F.pad(values, (0, MMDiT.context - WIDTH))


def padded(words: Sequence[int]) -> list[int]:
    """Token numbers of a text with start and end, filled up with the end token as CLIP-L's are."""
    row = [START, *words[: POSITIONS - 2], END]
    return row + [END] * (POSITIONS - len(row))

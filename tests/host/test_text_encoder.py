# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's text encoder is what the host makes of its weights."""

from __future__ import annotations

import pytest
import torch

from testbed import text_encoder

TEXTS = ("", "a fox on a blue background, pixel art", "a sks dog on a red background, in zqx style", "a " * 200)


@pytest.mark.parametrize("text", TEXTS)
def test_the_short_way_equals_the_hosts_clip(host, text) -> None:
    from comfy.text_encoders.sd3_clip import SD3ClipModel, SD3Tokenizer

    weights = text_encoder.weights()
    model = SD3ClipModel(clip_l=True, clip_g=False, t5=False, dtype=torch.float32)
    model.load_sd({name: value.float().contiguous() for name, value in weights.items()})
    tokens = SD3Tokenizer().tokenize_with_weights(text)
    with torch.no_grad():
        theirs = model.encode_token_weights(tokens)[0]
    numbers = torch.tensor([[int(number) for number, _ in chunk] for chunk in tokens["l"]])
    ours = text_encoder.filled(text_encoder.encode(numbers, weights)).reshape(theirs.shape)
    assert torch.allclose(ours, theirs, atol=1e-5)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and shapes of text encoders."""

from __future__ import annotations

from testbed.checkpoints.shapes import Shapes


def clip_l(projection: bool = False, width: int = 768, layers: int = 12) -> Shapes:
    """CLIP-L as in transformers."""
    s = Shapes()
    s["text_model.embeddings.token_embedding.weight"] = (49408, width)
    s["text_model.embeddings.position_embedding.weight"] = (77, width)
    for i in range(layers):
        name = f"text_model.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            s.linear(f"{name}.self_attn.{part}", width, width)
        s.norm(f"{name}.layer_norm1", width)
        s.norm(f"{name}.layer_norm2", width)
        s.linear(f"{name}.mlp.fc1", 4 * width, width)
        s.linear(f"{name}.mlp.fc2", width, 4 * width)
    s.norm("text_model.final_layer_norm", width)
    if projection:
        s.linear("text_projection", width, width, bias=False)
    return s


def clip_g(width: int = 1280, layers: int = 32) -> Shapes:
    """CLIP-G in the open_clip layout of an sdxl checkpoint."""
    s = Shapes()
    s["token_embedding.weight"] = (49408, width)
    s["positional_embedding"] = (77, width)
    s["text_projection"] = (width, width)
    for i in range(layers):
        name = f"transformer.resblocks.{i}"
        s[f"{name}.attn.in_proj_weight"] = (3 * width, width)
        s[f"{name}.attn.in_proj_bias"] = (3 * width,)
        s.linear(f"{name}.attn.out_proj", width, width)
        s.norm(f"{name}.ln_1", width)
        s.norm(f"{name}.ln_2", width)
        s.linear(f"{name}.mlp.c_fc", 4 * width, width)
        s.linear(f"{name}.mlp.c_proj", width, 4 * width)
    s.norm("ln_final", width)
    return s

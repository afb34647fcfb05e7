# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
import torch

from soda_core import SodaAdapter, merge
from soda_core.blocks import block_strengths, groups, groups_of, short_name
from soda_core.errors import SettingsError

from .conftest import random_layer

UNET = [
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k",
    "diffusion_model.output_blocks.3.1.transformer_blocks.0.attn1.to_out.0",
    "diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_k",
    "diffusion_model.output_blocks.11.1.transformer_blocks.0.ff.net.2",
    "text_encoders.clip_l.transformer.text_model.encoder.layers.3.self_attn.q_proj",
]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (UNET[0], ["all", "down", "image", "down.1"]),
        (UNET[1], ["all", "middle", "text", "middle.1"]),
        (UNET[4], ["all", "up", "up.11"]),
        (UNET[5], ["all", "clip_l", "clip_l.3"]),
        ("diffusion_model.double_blocks.7.img_attn.qkv", ["all", "double", "image", "double.7"]),
        ("diffusion_model.double_blocks.7.txt_mlp.0", ["all", "double", "text", "double.7"]),
        ("diffusion_model.single_blocks.0.linear1", ["all", "single", "single.0"]),
        ("diffusion_model.joint_blocks.2.context_block.attn.qkv", ["all", "joint", "text", "joint.2"]),
        ("diffusion_model.joint_blocks.2.x_block.attn.qkv", ["all", "joint", "image", "joint.2"]),
        ("diffusion_model.layers.5.attention.qkv", ["all", "layers", "layers.5"]),
        ("diffusion_model.blocks.5.self_attn.q", ["all", "blocks", "blocks.5"]),
        ("diffusion_model.img_in", ["all"]),
    ],
)
def test_a_layer_s_name_says_where_it_is(layer, expected) -> None:
    assert groups_of(layer) == expected


def test_names_for_tables_are_short_and_differ() -> None:
    assert short_name(UNET[3]) == "up.11.1.0.attn2.to_k"
    assert len({short_name(layer) for layer in UNET}) == len(UNET)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [1, 1, 1, 1, 1, 1]),
        ("up 0.5, middle 0", [1, 0, 0.5, 0.5, 0.5, 1]),
        ("all 0, up 1", [0, 0, 1, 1, 1, 0]),
        ("up 0.5, up text 2", [1, 1, 0.5, 2, 0.5, 1]),
        ("text up = -1\nUP.3: 0", [1, 1, 0, -1, 1, 1]),
        ("up 0.5，clip_l 0；", [1, 1, 0.5, 0.5, 0.5, 0]),  # as typed in Chinese
    ],
)
def test_the_last_entry_that_fits_a_layer_counts(text, expected) -> None:
    assert list(block_strengths(text, UNET).values()) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("upp 0.5", "'upp 0.5': fox has no blocks 'upp', but all, down, image, middle, text, up, clip_l, down.1, "),
        ("up", "'up': expected groups and a number between -10 and 10.*fox has all, down"),
        ("0.5", "'0.5': expected groups"),
        ("up 11", "'up 11': expected groups"),
        ("up nan", "expected groups"),
        (":", "':': expected groups"),
        ("down text 1", "no layer of fox is in down and text at once; it has all, down"),
    ],
)
def test_a_wrong_text_is_answered_with_what_there_is(text, reason) -> None:
    with pytest.raises(SettingsError, match=reason):
        block_strengths(text, UNET, "fox")


def test_many_blocks_are_listed_by_the_first_and_the_last() -> None:
    layers = [f"diffusion_model.single_blocks.{i}.linear1" for i in range(38)]
    with pytest.raises(
        SettingsError, match=r"but all, single, single.0, .*single.3, …, single.35, single.36, single.37$"
    ):
        block_strengths("double 1", layers)


@pytest.mark.parametrize("method", ["delta", "geodesic"])
def test_a_merge_takes_strengths_by_blocks_and_says_so(tmp_path, method) -> None:
    up, middle = "diffusion_model.output_blocks.0.1.attn1.to_q", "diffusion_model.middle_block.1.attn1.to_q"
    W, layer = random_layer()
    style = random_layer(seed=5)[1].with_base_check(W)
    a, b = (SodaAdapter({up: each, middle: each}, {"title": "x"}) for each in (layer, style))
    merged = merge(a, b, 0.8, 0.6, method, "up 0.5, middle 0", "")
    plain = {name: merge(a, b, s, 0.6, method) for name, s in ((up, 0.4), (middle, 0.0))}
    for name, expected in plain.items():
        torch.testing.assert_close(merged.adapt(name, W), expected.adapt(name, W))
    assert not torch.equal(merged.adapt(up, W), merged.adapt(middle, W))
    merged.save(tmp_path / "merged.safetensors")
    loaded = SodaAdapter.load(tmp_path / "merged.safetensors")
    assert loaded.metadata["settings"]["subject_blocks"] == "up 0.5, middle 0"
    assert "style_blocks" not in loaded.metadata["settings"]
    assert merge(a, b, 0.8, 0.6, method, "all 1").identity() == merge(a, b, 0.8, 0.6, method).identity()
    with pytest.raises(SettingsError, match="the style has no blocks 'down'"):
        merge(a, b, style_blocks="down 0")


def test_groups_are_in_the_model_s_order() -> None:
    assert list(groups(UNET))[:4] == ["all", "down", "image", "down.1"]
    assert groups(UNET)["text"] == [UNET[1], UNET[3]]

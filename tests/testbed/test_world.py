# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's world of pictures and captions, its text encoder and its 8-bit files."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from testbed import model_files, text_encoder
from testbed.world import styles
from testbed.world.glyphs import world_glyphs
from testbed.world.render import render
from testbed.world.scene import Scene, caption, draw_scene
from testbed.world.vocabulary import (
    BACKGROUNDS,
    CLASSES,
    GLYPHS,
    HELD_OUT_STYLES,
    REPORTED_STYLES,
    REPORTED_SUBJECTS,
    STYLES,
    SUBJECTS,
)

SIDE = 96  #: of a picture, which need not be as large as the base model's
DOG = Scene("dog face", "flat", "blue", seed=1)


def test_the_world_is_as_large_as_it_says() -> None:
    assert len(STYLES) + len(HELD_OUT_STYLES) >= 10 and not set(STYLES) & set(HELD_OUT_STYLES)
    assert len(SUBJECTS) >= 6 and len(REPORTED_SUBJECTS) >= 2
    assert len(HELD_OUT_STYLES) >= 3 and len(REPORTED_STYLES) >= 2
    assert set(styles.PAINTERS) == {*STYLES, *HELD_OUT_STYLES}
    assert all(len(glyphs) >= 2 for glyphs in CLASSES.values())
    assert all(min(bitmap.size) > 40 for bitmap in world_glyphs().values()) and world_glyphs().keys() == GLYPHS.keys()


def test_same_scene_same_picture() -> None:
    scenes = [draw_scene(np.random.default_rng(5)) for _ in range(2)]
    assert scenes[0] == scenes[1]
    assert np.array_equal(render(scenes[0], SIDE), render(scenes[1], SIDE))
    assert not np.array_equal(render(DOG, SIDE), render(replace(DOG, tilt=10.0), SIDE))


def test_nothing_held_out_is_drawn_for_training() -> None:
    random = np.random.default_rng(0)
    drawn = [draw_scene(random) for _ in range(1500)]
    assert {s.glyph for s in drawn} == set(GLYPHS) - set(SUBJECTS)
    assert {s.style for s in drawn} == set(STYLES)
    assert {s.background for s in drawn} == set(BACKGROUNDS)
    counts = [sum(s.kind == kind for s in drawn) for kind in CLASSES]
    assert min(counts) > 0.6 * max(counts)


@pytest.mark.parametrize("style", styles.PAINTERS)
def test_every_style_is_another_picture_and_looks_the_same_at_any_size(style: str) -> None:
    scene = replace(DOG, style=style)
    small, large = render(scene, SIDE) / 255, render(scene, 4 * SIDE) / 255
    assert small.shape == (SIDE, SIDE, 3) and small.min() >= 0 and small.max() <= 1
    shrunk = large.reshape(SIDE, 4, SIDE, 4, 3).mean((1, 3))
    assert np.abs(small - shrunk).mean() < 0.05
    if style != "flat":
        assert np.abs(small - render(DOG, SIDE) / 255).mean() > 0.03


def test_backgrounds_differ_and_the_glyph_is_in_the_picture() -> None:
    pictures = {b: render(replace(DOG, background=b, height=0.5), SIDE) / 255 for b in BACKGROUNDS}
    corners = [picture[:12, :12].reshape(-1) for picture in pictures.values()]
    for i, one in enumerate(corners):
        assert all(np.abs(one - other).mean() > 0.05 for other in corners[:i])
    middles = [picture[36:60, 36:60] for picture in pictures.values()]
    assert all(np.abs(middles[0] - middle).max() < 0.15 for middle in middles[1:])  # the dog hides the background


def test_captions_name_everything() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        scene = draw_scene(random)
        text = caption(random, scene.kind, scene.style, scene.background)
        assert scene.kind in text and scene.background in text
        assert scene.style in text or scene.style == "flat"
    texts = {caption(random, "dog", "neon", "red") for _ in range(100)}
    assert len(texts) >= 3


def test_the_text_encoder_is_the_same_everywhere_and_tells_words_apart() -> None:
    weights = text_encoder.weights()
    table = weights["text_model.embeddings.token_embedding.weight"]
    known = "17b6628003d7a6cc"
    assert hashlib.sha256(table[:100].contiguous().numpy().tobytes()).hexdigest().startswith(known)
    tokens = torch.tensor([text_encoder.padded([320, word]) for word in (1929, 2368, 4269)])
    words = text_encoder.encode(tokens, weights)[:, 2]
    cosines = torch.nn.functional.cosine_similarity(words[:, None], words[None], dim=-1)
    assert cosines.fill_diagonal_(0).abs().max() < 0.7


def test_weights_come_back_from_8_bits(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a.weight": torch.randn(8, 16, 3, 3, generator=generator) * torch.logspace(-3, 0, 8)[:, None, None, None],
        "a.bias": torch.randn(8, generator=generator),
        "scalar": torch.tensor(0.18215),
        "zero.weight": torch.zeros(3, 3),
    }
    path = tmp_path / "w.safetensors"
    model_files.save(path, tensors)
    loaded = model_files.load(path)
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded[name].shape == value.shape and loaded[name].dtype == torch.float32
        # 8 bits: half a step of 127 of the row's largest; float16: eleven bits
        rows, error = value.reshape(len(value) if value.ndim > 1 else 1, -1), (loaded[name] - value).abs()
        bound = rows.abs().amax(1) * (0.6 / 127 if name == "a.weight" else 2**-11)
        assert bool((error.reshape(rows.shape).amax(1) <= bound + 1e-9).all()), name
    model_files.save(path, loaded)
    again = model_files.load(path)
    assert all(torch.allclose(again[n], loaded[n], rtol=2e-3, atol=1e-7) for n in loaded)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of the world in bulk, drawn on all cores and kept on disk."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from soda_core.files import replacing
from testbed.world.glyphs import other_glyphs, world_glyphs
from testbed.world.render import SIDE, render
from testbed.world.scene import Scene, draw_scene
from testbed.world.vocabulary import CLASSES, STYLES

_CHUNK = 64


@dataclass(frozen=True)
class Stream:
    """Where pictures come from; ``seed`` keeps the streams of the models apart.

    ``others``: the share of pictures that show an emoji from outside the world (needs the font).
    """

    name: str
    seed: int
    styles: Sequence[str] = STYLES
    classes: Mapping[str, Sequence[str]] | None = None
    others: float = 0.0


def pictures(stream: Stream, count: int, folder: Path) -> tuple[Tensor, list[Scene]]:
    """The first ``count`` pictures of a stream, uint8 of shape (count, SIDE, SIDE, 3), and their scenes."""
    path = folder / f"{stream.name}-{SIDE}px-{count}.safetensors"
    if not path.exists():
        starts = range(0, count, _CHUNK)
        with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
            chunks = pool.map(partial(_chunk, stream), starts, chunksize=4)
        drawn = np.concatenate([chunk for chunk, _ in chunks])[:count]
        scenes = [asdict(scene) for _, chunk in chunks for scene in chunk][:count]
        with replacing(path) as unfinished:
            save_file({"pictures": torch.from_numpy(drawn)}, unfinished, {"scenes": json.dumps(scenes)})
    with safe_open(path, "pt") as file:
        entries = json.loads(file.metadata()["scenes"])
        return file.get_tensor("pictures"), [Scene(**{**entry, "place": tuple(entry["place"])}) for entry in entries]


def floats(data: Tensor) -> Tensor:
    """Stored pictures as networks take them: (n, 3, SIDE, SIDE), float32 in 0..1, channels last in memory."""
    return (data.permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)


def _chunk(stream: Stream, start: int) -> tuple[np.ndarray, list[Scene]]:
    random = np.random.default_rng((stream.seed, start))
    bitmaps: dict[str, Image.Image] = world_glyphs()
    others: dict[str, Image.Image] = {}
    if stream.others:
        others = _others()
        bitmaps = others | bitmaps
    classes = dict(stream.classes or {kind: list(glyphs) for kind, glyphs in CLASSES.items()})
    scenes = []
    for _ in range(_CHUNK):
        from_outside = random.random() < stream.others
        scenes.append(draw_scene(random, {"other": list(others)} if from_outside else classes, stream.styles))
    return np.stack([render(scene, SIDE, bitmaps) for scene in scenes]), scenes


_cache: dict[str, Image.Image] = {}


def _others() -> dict[str, Image.Image]:
    if not _cache:
        _cache.update(other_glyphs())
    return _cache

# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of the world in bulk, drawn on all cores and kept on disk."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
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
from testbed.world.vocabulary import CLASSES, STYLES, SUBJECTS

#: class -> all its glyphs, held-out ones too
EVERYTHING = {
    kind: [*glyphs, *(name for name, (of, _) in SUBJECTS.items() if of == kind)] for kind, glyphs in CLASSES.items()
}
CHUNK = 64


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
        scenes = [asdict(scene) for scene in itertools.islice(scenes_of(stream), count)]
        with replacing(path) as unfinished:
            save_file({"pictures": drawn(stream, 0, count)}, unfinished, {"scenes": json.dumps(scenes)})
    with safe_open(path, "pt") as file:
        entries = json.loads(file.metadata()["scenes"])
        return file.get_tensor("pictures"), [Scene(**{**entry, "place": tuple(entry["place"])}) for entry in entries]


def drawn(stream: Stream, start: int, count: int) -> Tensor:
    """Pictures of a stream from number ``start`` on, a multiple of 64; uint8 of shape (count, SIDE, SIDE, 3)."""
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        chunks = pool.map(partial(_chunk, stream), range(start, start + count, CHUNK), chunksize=2)
    return torch.from_numpy(np.concatenate(chunks)[:count])


def scenes_of(stream: Stream) -> Iterator[Scene]:
    """All scenes of a stream, without end."""
    for start in itertools.count(0, CHUNK):
        yield from _scenes(stream, start)


def floats(data: Tensor) -> Tensor:
    """Stored pictures as networks take them: (n, 3, SIDE, SIDE), float32 in 0..1, channels last in memory."""
    return (data.permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)


def _chunk(stream: Stream, start: int) -> np.ndarray:
    bitmaps: Mapping[str, Image.Image] = world_glyphs()
    if stream.others:
        bitmaps = _others() | dict(bitmaps)
    return np.stack([render(scene, SIDE, bitmaps) for scene in _scenes(stream, start)])


def _scenes(stream: Stream, start: int) -> list[Scene]:
    """The chunk of scenes that begins with number ``start``."""
    random = np.random.default_rng((stream.seed, start))
    known = dict(stream.classes or {kind: list(glyphs) for kind, glyphs in CLASSES.items()})
    other = {"other": list(_others())} if stream.others else {}
    scenes = []
    for _ in range(CHUNK):
        from_outside = random.random() < stream.others
        scenes.append(draw_scene(random, other if from_outside else known, stream.styles))
    return scenes


@cache
def _others() -> dict[str, Image.Image]:
    return other_glyphs()

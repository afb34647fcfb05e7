# SPDX-License-Identifier: GPL-3.0-or-later
"""The attention layers of the models people use, from their published architectures: names, shapes and tokens."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from soda_core.targets import select
from testbed.checkpoints import PRESETS
from testbed.checkpoints.diffusion import MMDiT
from testbed.checkpoints.shapes import Shapes

Shape = tuple[int, ...]

#: names, the demo's full-size base models, and their native resolution in pixels
UNETS = (("SD 1.5", "sd15-full", 512), ("SDXL", "sdxl-full", 1024))


@dataclass(frozen=True)
class Family:
    """A model at its native resolution, one picture at a time.

    Args:
        side: of the picture, in pixels.
        layers: weight shape (out, in) of every layer that the preset "attention" adapts, by name.
        tokens: how many tokens a layer sees.
        weights: numbers in the whole diffusion model.
    """

    name: str
    side: int
    layers: dict[str, Shape]
    tokens: Callable[[str, Shape], int]
    weights: int

    def distinct(self) -> Counter[tuple[int, int, int]]:
        """(out, in, tokens) -> number of layers."""
        return Counter((*shape, self.tokens(name, shape)) for name, shape in self.layers.items())  # type: ignore[misc]

    def shapes(self) -> Counter[tuple[int, int]]:
        """(out, in) -> number of layers."""
        return Counter((out, in_features) for out, in_features in self.layers.values())


def attention(preset: str) -> dict[str, Shape]:
    """Weight shapes of the layers that the preset "attention" adapts, of one of the demo's base models."""
    return _layers(PRESETS[preset][1].shapes())


def families() -> Iterator[Family]:
    """From small to large."""
    for name, preset, side in UNETS:
        yield _family(name, side, PRESETS[preset][1].shapes(), _unet_tokens(side))
    # the last block of its context stream makes keys and values only, as in the shapes of MMDiT
    large = MMDiT(38, query_key_norm=True).shapes()
    yield _family("SD 3.5 Large", 1024, large, lambda name, _: 333 if "context_block" in name else 4096)
    yield _family("Flux.1 dev", 1024, _flux(), _flux_tokens)


def _family(name: str, side: int, shapes: Shapes, tokens: Callable[[str, Shape], int]) -> Family:
    return Family(name, side, _layers(shapes), tokens, sum(map(math.prod, shapes.values())))


def _layers(shapes: Shapes) -> dict[str, Shape]:
    weights = {
        f"diffusion_model.{n.removesuffix('.weight')}": s
        for n, s in shapes.items()
        if n.endswith(".weight") and len(s) > 1
    }
    return {name: weights[name] for name in select(weights, "attention")}


def _unet_tokens(side: int) -> Callable[[str, Shape], int]:
    def tokens(name: str, shape: Shape) -> int:
        if re.search(r"attn2\.to_[kv]$", name):
            return 77
        halvings = {320: 0, 640: 1, 1280: 2}[shape[0]] + (shape[0] == 1280 and side == 512 and "middle" in name)
        return (side // 8 >> halvings) ** 2

    return tokens


def _flux(hidden: int = 3072, double: int = 19, single: int = 38) -> Shapes:
    s = Shapes()
    s.linear("img_in", hidden, 64)
    s.linear("txt_in", hidden, 4096)
    for name, size in (("time_in", 256), ("vector_in", 768), ("guidance_in", 256)):
        s.linear(f"{name}.in_layer", hidden, size)
        s.linear(f"{name}.out_layer", hidden, hidden)
    for i in range(double):
        for side in ("img", "txt"):
            name = f"double_blocks.{i}.{side}"
            s.linear(f"{name}_mod.lin", 6 * hidden, hidden)
            s.linear(f"{name}_attn.qkv", 3 * hidden, hidden)
            s.linear(f"{name}_attn.proj", hidden, hidden)
            s.linear(f"{name}_mlp.0", 4 * hidden, hidden)
            s.linear(f"{name}_mlp.2", hidden, 4 * hidden)
    for i in range(single):
        name = f"single_blocks.{i}"
        s.linear(f"{name}.modulation.lin", 3 * hidden, hidden)
        s.linear(f"{name}.linear1", 7 * hidden, hidden)
        s.linear(f"{name}.linear2", hidden, 5 * hidden)
    s.linear("final_layer.linear", 64, hidden)
    s.linear("final_layer.adaLN_modulation.1", 2 * hidden, hidden)
    return s


def _flux_tokens(name: str, _: Shape) -> int:
    if "single_blocks" in name:
        return 4096 + 512
    return 512 if "txt" in name else 4096

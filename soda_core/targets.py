# SPDX-License-Identifier: GPL-3.0-or-later
"""Which layers of a model get an adapter."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping

from .errors import SettingsError

_ATTENTION = re.compile(r"(^|\.)(\w*attn\w*|\w*attention\w*)(\.|$)|(^|\.)(to_[qkv]|to_out|linear1_qkv)(\.|$)")
_FEED_FORWARD = re.compile(r"(^|\.)(ff|ffn|\w*mlp\w*|feed_forward)(\.|$)")
#: Flux-like single blocks fuse attention and feed-forward into two linears.
_FUSED = re.compile(r"single_blocks\.\d+\.linear[12]$")
#: Modulation, timestep and embedding networks also call themselves mlp; they are no part of a transformer's body.
_BODY = re.compile(r"(^|\.)(\w*blocks|layers|middle_block)\.\d+\.")

#: Name -> what a user reads.
LAYER_PRESETS: dict[str, str] = {
    "attention": "every linear layer inside attention, as in the paper",
    "attention + feed-forward": "attention and the feed-forward layers beside it",
    "all linear": "every linear layer",
    "all linear + conv": "every linear and convolution layer",
    "pattern": "the layers whose name matches layer_pattern",
}


def select(shapes: Mapping[str, tuple[int, ...]], preset: str, pattern: str = "") -> list[str]:
    """Names of the layers to adapt, in the model's order.

    Args:
        shapes: weight shape by module path, linear ``(out, in)`` and conv ``(out, in, *kernel)`` layers only.
        preset: a key of :data:`LAYER_PRESETS`.
        pattern: for "pattern": shell-style wildcards, several separated by commas, e.g. ``*attn2.to_k, *attn2.to_v``.
    Raises:
        SettingsError: an unknown preset, or nothing matches; the message shows names that exist.
    """
    if preset not in LAYER_PRESETS:
        raise SettingsError(f"unknown layer preset {preset!r}; choose one of {list(LAYER_PRESETS)}")
    patterns = [p.strip() for p in pattern.split(",") if p.strip()]
    names = [name for name, shape in shapes.items() if _matches(name, shape, preset, patterns)]
    if not names:
        wanted = f"the pattern {pattern!r}" if preset == "pattern" else f"the layer preset {preset!r}"
        raise SettingsError(
            f"{wanted} matches none of the model's {len(shapes)} layers; their names look like {_examples(shapes)}"
        )
    return names


def _matches(name: str, shape: tuple[int, ...], preset: str, patterns: list[str]) -> bool:
    if preset == "pattern":
        return any(fnmatch.fnmatchcase(name, p) for p in patterns)
    if preset == "all linear + conv":
        return True
    if len(shape) != 2:
        return False
    if preset == "all linear":
        return True
    if _ATTENTION.search(name) or _FUSED.search(name):
        return True
    return preset == "attention + feed-forward" and bool(_FEED_FORWARD.search(name)) and bool(_BODY.search(name))


def _examples(names: Iterable[str], count: int = 4) -> str:
    names = list(names)
    step = max(1, len(names) // count)
    return ", ".join(names[::step][:count]) or "(none)"

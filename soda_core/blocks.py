# SPDX-License-Identifier: GPL-3.0-or-later
"""Groups of a model's layers, told by their names, and strengths for them: ``up 0.5, middle 0``.

A layer belongs to a *place* (down, middle and up of a UNet; double and single blocks of a Flux; joint blocks of an
SD 3; a text encoder), to its block there by number (``up.3``), and where it is attention or a stream of its own, to
*image* or *text*: in a UNet self-attention and cross-attention, in a transformer the stream of that kind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from .errors import SettingsError

ALL = "all"
#: What holds a model's numbered blocks, where it is not called after its place. (The second names are diffusers'.)
_PLACES = {
    "input_blocks": "down", "down_blocks": "down",
    "middle_block": "middle", "mid_block": "middle",
    "output_blocks": "up", "up_blocks": "up",
}  # fmt: skip
_BLOCK = re.compile(r"\.(\w+)\.(\d+)(?=\.|$)")
_STREAMS = (
    ("image", re.compile(r"\.(attn1|x_block|img_\w+)\.")),
    ("text", re.compile(r"\.(attn2|context_block|txt_\w+)\.")),
)
_SEPARATORS = re.compile(r"[,，;；\n]")
#: A name from its strength.
_ASSIGNMENT = re.compile(r"[=:：]")


def groups_of(layer: str) -> list[str]:
    """The groups that a layer belongs to by its name, the widest first."""
    root, _, rest = layer.partition(".")
    block = _BLOCK.search(layer)
    if root == "text_encoders":
        place = rest.partition(".")[0]
    elif block:
        place = _PLACES.get(block[1]) or re.sub(r"_?blocks?$", "", block[1]) or "blocks"
    else:
        return [ALL]
    numbered = [f"{place}.{block[2]}"] if block else []
    return [ALL, place, *(name for name, pattern in _STREAMS if pattern.search(f".{layer}.")), *numbered]


def groups(layers: Iterable[str]) -> dict[str, list[str]]:
    """Every group of these layers and who belongs to it, in the model's order."""
    members: dict[str, list[str]] = {}
    for layer in layers:
        for group in groups_of(layer):
            members.setdefault(group, []).append(layer)
    return members


def block_strengths(text: str, layers: Iterable[str], of: str = "the adapter") -> dict[str, float]:
    """What each layer's strength is multiplied by, from ``up 0.5, up text 0``: 1 where nothing is said.

    An entry is one or several groups and a number, and holds for layers in all of its groups; of several that hold for
    a layer the last one counts.

    Args:
        of: whose layers these are, for an error.
    Raises:
        SettingsError: an entry is not of that form, or holds for no layer; the message names the groups there are.
    """
    members = groups(layers)
    strengths = dict.fromkeys(members.get(ALL, ()), 1.0)
    for entry in filter(None, (part.strip() for part in _SEPARATORS.split(text))):
        *names, number = _ASSIGNMENT.sub(" ", entry).lower().split() or [""]
        try:
            strength = float(number)
        except ValueError:
            strength = math.nan
        if not names or not -10 <= strength <= 10:
            raise SettingsError(
                f"block strength {entry!r}: expected groups and a number between -10 and 10, as in 'up 0.5, middle 0'; "
                f"{of} has {_listed(members)}"
            )
        if unknown := [name for name in names if name not in members]:
            raise SettingsError(f"block strength {entry!r}: {of} has no blocks {unknown[0]!r}, but {_listed(members)}")
        chosen = [layer for layer in members[names[0]] if all(layer in members[name] for name in names)]
        if not chosen:
            raise SettingsError(
                f"block strength {entry!r}: no layer of {of} is in {' and '.join(names)} at once; it has "
                f"{_listed(members)}"
            )
        strengths.update(dict.fromkeys(chosen, strength))
    return strengths


def short_name(layer: str) -> str:
    """A layer's name for a table: ``up.3.1.0.attn2.to_k``."""

    def place(block: re.Match[str]) -> str:
        return f".{_PLACES.get(block[1], block[1])}.{block[2]}"

    return _BLOCK.sub(place, layer, count=1).removeprefix("diffusion_model.").replace("transformer_blocks.", "")


def _listed(members: Mapping[str, list[str]]) -> str:
    """Group names for an error: the wide ones, then blocks by number."""
    wide = [name for name in members if "." not in name]
    numbered = [name for name in members if "." in name]
    shown = numbered if len(numbered) <= 8 else [*numbered[:4], "…", *numbered[-3:]]
    return ", ".join([*wide, *shown])

# SPDX-License-Identifier: GPL-3.0-or-later
"""What an adapter does: as a picture, as a summary in Markdown, and as the text of its file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..adapter import SodaAdapter
from ..blocks import groups
from ..fileformat import GRAPH_KEYS
from ..layer import AdaptedLayer
from ..linalg import rotation_angles
from ..text import printable
from .adapter_picture import LayerRow, adapter_picture
from .theme import to_image_tensor

#: More than any layer of today's models has inputs.
MOST_ANGLES = 2**15
#: Of all layers of a picture; with more layers, each has fewer.
_ANGLES_IN_ALL = 2**24


def rows_of(adapter: SodaAdapter, before_layer: Callable[[], None] = lambda: None) -> list[LayerRow]:
    """What is shown of every layer; a delta merge's terms one under the other.

    Args:
        before_layer: called before each layer is looked at; what it raises ends the work.
    """
    rows: list[LayerRow] = []
    most = min(MOST_ANGLES, _ANGLES_IN_ALL // sum(len(layer.terms) for layer in adapter.layers.values()))
    for name, layer in adapter.layers.items():
        before_layer()
        rows += _rows(name, layer, most)
    return rows


def picture(adapter: SodaAdapter, rows: Sequence[LayerRow] | None = None) -> Tensor:
    """``(1, height, width, 3)`` in 0..1.

    Args:
        rows: :func:`rows_of` the adapter, where they are at hand.
    """
    rows = rows_of(adapter) if rows is None else rows
    base = adapter.base_model.get("name") or "unknown base"
    trigger = f"   trigger: {adapter.trigger_phrase}" if adapter.trigger_phrase else ""
    return to_image_tensor(adapter_picture(rows, title=adapter.title, subtitle=f"{base}{trigger}"))


def _rows(name: str, layer: AdaptedLayer, most_angles: int) -> list[LayerRow]:
    return [
        LayerRow(name if layer.single else f"{name} [{strength:g} x term {i + 1}]", term.shift,
                 layer_angles(term.factors, most_angles), term.num_parameters, term.shape)
        for i, (strength, term) in enumerate(layer.terms)
    ]  # fmt: skip


def layer_angles(factors: Sequence[Tensor], most: int = MOST_ANGLES) -> Tensor | None:
    """Angles in degrees by which K turns its planes: all sums of one signed angle per factor, 0..180.

    ``K``'s eigenvalues are the products of its factors', so its angles come without forming it. Where there are more
    than ``most``, as a file may have it, they are quantiles.
    """
    if not factors:
        return None
    total = torch.zeros(1, dtype=torch.float64)
    for R in factors:
        angles = rotation_angles(R)  # a turned plane contributes the pair ±θ, listed twice as |θ|
        signs = torch.ones_like(angles)
        signs[1::2] = -1
        total = (total[:, None] + (angles * signs)[None, :]).flatten()
        if len(total) > most:
            total = total.sort().values[torch.linspace(0, len(total) - 1, most).round().long()]
    wrapped = torch.remainder(total.abs(), 2 * math.pi)
    return torch.rad2deg(torch.minimum(wrapped, 2 * math.pi - wrapped))


def overview(adapter: SodaAdapter, rows: Sequence[LayerRow]) -> str:
    """A few lines of Markdown: what the adapter is, and how far it turns and shifts which blocks."""
    said, settings = adapter.metadata, adapter.metadata.get("settings") or {}
    trained = [f"{said[key]:,} {key}" for key in ("steps", "pictures") if said.get(key)]
    learned = [str(settings[key]) for key in ("train", "decomposition", "layers") if settings.get(key)]
    parents = [str(parent.get("title") or parent["hash"][:12]) for parent in said.get("parents") or ()]
    facts = {
        "trigger": adapter.trigger_phrase and f"`{printable(adapter.trigger_phrase)}`",
        "base": ", ".join([adapter.trained_on, *trained]),
        "trained": ", ".join(map(printable, learned)),
        "merged": " + ".join(map(printable, parents)),
        "size": f"{len(adapter.layers)} layers, {adapter.num_parameters:,} parameters",
    }
    lines = [f"**{adapter.label}**", "", *(f"- {key}: {fact}" for key, fact in facts.items() if fact), ""]
    lines += ["| blocks | layers | turned by | at most | shifted by |", "| --- | ---: | ---: | ---: | ---: |"]
    by_name: dict[str, list[LayerRow]] = {}
    for row in rows:
        by_name.setdefault(row.name.partition(" [")[0], []).append(row)
    for group, names in groups(by_name).items():
        if "." in group:
            continue
        members = [row for name in names for row in by_name[name]]
        angles = [row.angles for row in members if row.angles is not None]
        shifts = [row.shift for row in members if row.shift is not None]
        largest = max((float(a.max()) for a in angles if len(a)), default=0.0)
        turned = [f"{_rms(angles):.2f}°", f"{largest:.1f}°"] if angles else ["-", "-"]
        lines.append(f"| {' | '.join([group, str(len(names)), *turned, f'{_rms(shifts):.2g}' if shifts else '-'])} |")
    return "\n".join(lines)


def _rms(tensors: Sequence[Tensor]) -> float:
    values = torch.cat([tensor.double().flatten() for tensor in tensors])
    return float(values.square().mean().sqrt()) if len(values) else 0.0


def metadata_text(adapter: SodaAdapter) -> str:
    """Readable JSON of what the file says, without the graph it may carry."""
    said = {k: v for k, v in adapter.metadata.items() if k not in GRAPH_KEYS}
    summary = {
        "layers": len(adapter.layers),
        "parameters": adapter.num_parameters,
        "hash_sha256": adapter.identity(),
        "base_check": adapter.carries_base_check,
        "carries_graph": [k for k in GRAPH_KEYS if k in adapter.metadata],
    }
    return json.dumps({**summary, **said}, indent=2, ensure_ascii=False, sort_keys=True)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What an adapter does, as a picture and as text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..adapter import SodaAdapter
from ..fileformat import GRAPH_KEYS
from ..layer import AdaptedLayer
from ..linalg import rotation_angles
from .adapter_picture import LayerRow, adapter_picture
from .theme import to_image_tensor

#: More than any layer of today's models has inputs.
MOST_ANGLES = 2**15
#: Of all layers of a picture; with more layers, each has fewer.
_ANGLES_IN_ALL = 2**24


def picture(adapter: SodaAdapter, before_layer: Callable[[], None] = lambda: None) -> Tensor:
    """``(1, height, width, 3)`` in 0..1; a delta merge shows its terms one under the other.

    Args:
        before_layer: called before each layer is looked at; what it raises ends the work.
    """
    rows: list[LayerRow] = []
    most = min(MOST_ANGLES, _ANGLES_IN_ALL // sum(len(layer.terms) for layer in adapter.layers.values()))
    for name, layer in adapter.layers.items():
        before_layer()
        rows += _rows(name, layer, most)
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

# SPDX-License-Identifier: GPL-3.0-or-later
"""What an export left out, as numbers and as text. Errors are relative to the norm of the change (0.1 = 10 %)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..base_check import BaseReport
from ..report.base_check import summary

#: Ranks of which every report of a LoRA tells the error and the size.
OUTLOOK = (8, 32, 128)

#: Where the report warns: on the demo's base model pictures began to differ between 0.5 and 0.7 (docs/interop.md).
POOR_ABOVE = 0.6


@dataclass(frozen=True)
class LayerExport:
    """What became of one layer's change."""

    rank: int  #: 0: too little to be in the file
    norm: float  #: ‖change‖
    left_out: float  #: ‖change - stored‖

    @property
    def error(self) -> float:
        return self.left_out / self.norm if self.norm else 0.0


@dataclass(frozen=True)
class ExportReport:
    """What became of an adapter."""

    layers: Mapping[str, LayerExport]
    num_bytes: int  #: of the tensors
    outlook: Mapping[int, tuple[float, int]]  #: by rank: what it leaves out, and its bytes
    missing: tuple[str, ...]  #: layers of the adapter that the base does not have
    base: BaseReport

    @property
    def error(self) -> float:
        """Over all layers, as one vector."""
        norm = math.hypot(*(layer.norm for layer in self.layers.values()))
        return math.hypot(*(layer.left_out for layer in self.layers.values())) / norm if norm else 0.0

    def as_json(self) -> dict[str, Any]:
        """For the file and for other programs: ``layers`` by name holds rank and error."""
        return {
            "error": round(self.error, 6),
            "layers": {name: {"rank": of.rank, "error": round(of.error, 6)} for name, of in self.layers.items()},
            "outlook": {
                str(rank): {"error": round(error, 6), "bytes": size} for rank, (error, size) in self.outlook.items()
            },
            "missing": list(self.missing),
            "base_check": {
                "spectral_error": self.base.spectral_error,
                "base_distance": self.base.base_distance,
            },
        }

    def text(self, title: str) -> str:
        """For a person: the summary first, then a line per layer, worst first."""
        stored = [layer.rank for layer in self.layers.values() if layer.rank]
        lines = [
            f"{title}: {self.num_bytes / 1e6:.1f} MB, leaves out {self.error:.2%} of the change",
            f"layers: {len(stored)} of {len(self.layers)}, ranks {min(stored)} to {max(stored)}",
        ]
        lines += [
            f"rank {rank} would leave out {error:.1%} ({size / 1e6:.1f} MB)"
            for rank, (error, size) in self.outlook.items()
        ]
        if self.error > POOR_ABOVE:
            lines.append(
                "careful: pictures may differ from the adapter's. A rotation turns a weight in every direction; "
                "compare, or take a higher rank or the exact form"
            )
        if self.missing:
            lines.append(
                f"not exported: {len(self.missing)} layers that the base model does not have, the first is "
                f"{self.missing[0]}"
            )
        if self.base.layers:
            lines.append(summary(self.base))
        lines += ["", f"{'left out':>8}  {'rank':>4}  layer"]
        for name, layer in sorted(self.layers.items(), key=lambda item: -item[1].error):
            lines.append(f"{layer.error:>8.2%}  {layer.rank:>4}  {name.removeprefix('diffusion_model.')}")
        return "\n".join(lines)

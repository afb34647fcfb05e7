# SPDX-License-Identifier: GPL-3.0-or-later
"""What an adapter file's JSON says of one layer, and the tensors that belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .base_check import SKETCH_SHAPE
from .layer import AdaptedLayer, Rule, SodaLayer
from .spectral import Decomposition


@dataclass(frozen=True)
class TermSpec:
    """What the JSON says of one SODA layer.

    Args:
        factors: sizes of the rotations.
        shift, knots: numbers of values; None without.
        shape: of the weight it was trained on, where known.
        probe: whether the base check's sketches are there.
        sketched: strengths of the shifts that the first of them is of; empty where that is the layer's own.
    """

    decomposition: Decomposition
    factors: tuple[int, ...]
    shift: int | None
    shape: tuple[int, ...] | None
    probe: bool
    knots: int | None = None
    sketched: tuple[float, ...] = ()

    @classmethod
    def of(cls, layer: SodaLayer) -> TermSpec:
        return cls(
            layer.decomposition,
            tuple(R.shape[-1] for R in layer.factors),
            None if layer.shift is None else layer.shift.numel(),
            layer.shape,
            layer.sketches is not None,
            None if layer.knots is None else layer.knots.numel(),
            tuple(a for a, _ in layer.sketches.terms) if layer.sketches is not None else (),
        )

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the layer's tensors by the last part of their keys."""
        shapes: dict[str, tuple[int, ...]] = {f"factor_{i}": (k, k) for i, k in enumerate(self.factors)}
        vectors = {"shift": self.shift, "knots": self.knots}
        shapes |= {part: (size,) for part, size in vectors.items() if size is not None}
        if self.probe:
            shapes["probe"] = (2, *SKETCH_SHAPE)
        if self.sketched:
            shapes["sketched"] = (len(self.sketched), self.knots or self.shift or 0)
        return shapes

    def as_json(self) -> dict[str, Any]:
        described: dict[str, Any] = {
            "decomposition": self.decomposition,
            "factors": list(self.factors),
            "shift": self.shift,
            "shape": None if self.shape is None else list(self.shape),
            "probe": self.probe,
        }
        # absent where there are none: files without them are what they were before there were any
        later = {"knots": self.knots, "sketched": list(self.sketched)}
        return described | {key: value for key, value in later.items() if value}


@dataclass(frozen=True)
class LayerSpec:
    """What the JSON says of one layer: one term at strength 1, or several and how they become one."""

    terms: tuple[tuple[float, TermSpec], ...]
    rule: Rule | None  #: None of a SODA layer

    @classmethod
    def of(cls, layer: AdaptedLayer) -> LayerSpec:
        return cls(tuple((strength, TermSpec.of(term)) for strength, term in layer.terms), layer.rule)

    def prefixes(self, name: str) -> list[str]:
        """What the tensors' keys of each term start with."""
        return [f"{name}.soda_term_{i}_" if self.rule else f"{name}.soda_" for i in range(len(self.terms))]

    def as_json(self) -> dict[str, Any]:
        if self.rule is None:
            return self.terms[0][1].as_json()
        described: dict[str, Any] = {
            "terms": [{"strength": strength, **term.as_json()} for strength, term in self.terms]
        }
        return described if self.rule == "sum" else described | {"rule": self.rule}  # sums are what they were before

# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways to merge that are compared: a line each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.lib.kept import Files
from soda_core.adapter import SodaAdapter
from soda_core.merge import merge
from testbed.methods import METHODS

SUM = "sum"
#: What :func:`soda_core.merge.merge` is told beside strengths; None: changes of weights added up, for every method.
WAYS: dict[str, dict[str, Any] | None] = {
    SUM: None,
    "normalised": {"method": "normalised"},
    "geodesic": {"method": "geodesic"},
    "geodesic, mean norm": {"method": "geodesic", "magnitude": "mean norm"},
    "projection": {"method": "projection"},
    "tsv": {"method": "tsv"},
    "parts": {"method": "parts"},
}
#: A subject trained by one method, a style by another, and how they are merged: what the style has no rotation for.
MIXED = (
    ("rotation only-large", "shift only-small", "parts"),
    ("SODA-SVD curve-large", "shift only-small", "geodesic"),
)
NEEDS_MIXED = {"parts"}  #: ways that are refused where the style was trained with a rotation

Strengths = tuple[float, float]
#: Under every merge, what each of its parts does alone with the same prompts.
ALONE: dict[str, Strengths] = {"subject alone": (1.0, 0.0), "style alone": (0.0, 1.0)}

Deltas = Mapping[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a subject and a style are trained, by keys of methods, and merged."""

    subject: str
    style: str
    way: str

    @property
    def keys(self) -> tuple[str, str]:
        return self.subject, self.style

    @property
    def method(self) -> str:
        return " + ".join(dict.fromkeys(METHODS[key].name for key in (self.subject, self.style)))

    @property
    def budget(self) -> str:
        return METHODS[self.subject].budget

    @property
    def ours(self) -> bool:
        return METHODS[self.subject].settings is not None


def recipes(trained: Collection[tuple[str, str]]) -> Iterator[Recipe]:
    """All that can be made of what is trained: keys of methods, each with "subject" or "style"."""
    for subject, kind in trained:
        if kind == "subject" and (subject, "style") in trained:
            ways = [way for way in WAYS if way not in NEEDS_MIXED] if METHODS[subject].settings is not None else [SUM]
            yield from (Recipe(subject, subject, way) for way in ways)
    for subject, style, way in MIXED:
        if (subject, "subject") in trained and (style, "style") in trained:
            yield Recipe(subject, style, way)


def merged(
    parts: Sequence[Files], way: str, strengths: Strengths, deltas_of: Callable[[SodaAdapter], Deltas]
) -> Deltas:
    """The change of every layer's weight.

    Raises:
        SodaError: the adapters cannot be merged so.
    """
    told = WAYS[way]
    if told is not None:
        return deltas_of(merge(*(SodaAdapter.load(part.adapter) for part in parts), *strengths, **told))
    loaded = [(s, load_file(part.deltas)) for s, part in zip(strengths, parts, strict=True) if s]
    names = dict.fromkeys(name for _, deltas in loaded for name in deltas)
    return {n: torch.stack([s * deltas[n].float() for s, deltas in loaded if n in deltas]).sum(0) for n in names}

# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds a method's learning rates: on a ladder of factor 1.8, until the best has been tried on both sides.

A method with rotation and shift may have a rate for each: they are searched one after the other along lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

STEP, MIDDLE = 1.8, 1e-2
LADDER = range(-9, 8)  #: 5e-5, the authors' for SDXL, to 0.6
START = (-4, -2, 0, 2)  #: what is tried first: 9.5e-4 to 3.2e-2

Line = Literal["both", "shift", "rotation"]


class Rates(NamedTuple):
    """Rungs of the ladder; where there is one rate, they are the same."""

    rotation: int
    shift: int

    @property
    def values(self) -> tuple[float, float]:
        """Per step, of rotation and shift."""
        return rate(self.rotation), rate(self.shift)

    def along(self, line: Line) -> Iterator[tuple[int, Rates]]:
        """The ladder through this point: both rates moving at once, or one of them."""
        for n in LADDER:
            if line == "both":
                if n + self.shift - self.rotation in LADDER:
                    yield n, Rates(n, n + self.shift - self.rotation)
            else:
                yield n, Rates(self.rotation, n) if line == "shift" else Rates(n, self.shift)


def rate(rung: int) -> float:
    return float(f"{MIDDLE * STEP**rung:.3g}")


def best(scores: Mapping[Rates, float]) -> Rates:
    """Where several score the same (nothing at all, say), the smallest."""
    return max(sorted(scores), key=lambda rates: scores[rates])


def next_tries(
    scores: Mapping[Rates, float], lines: Sequence[Line], start: Sequence[int] = START, most: int = len(LADDER)
) -> list[Rates]:
    """What to try after what has been tried; nothing once the best is inside on every line.

    Args:
        scores: of what has been tried.
        lines: in turn, each through the best of the one before, the first through equal rates.
        start: rungs of the first line.
        most: tries on a line.
    """
    at = Rates(0, 0)
    for line in lines:
        points = dict(at.along(line))
        tried = {n: scores[point] for n, point in points.items() if point in scores}
        wanted = _next_rungs(tried) if tried else start
        if len(tried) < most and (tries := [points[n] for n in wanted if n in points and n not in tried]):
            return tries
        at = best({points[n]: score for n, score in tried.items()})
    return []


def _next_rungs(tried: Mapping[int, float]) -> list[int]:
    """Two rungs further where the best is at an end, then the two beside it."""
    top = max(sorted(tried), key=lambda n: tried[n])
    ends = [n for end, n in ((min(tried), top - 2), (max(tried), top + 2)) if end == top and n in LADDER]
    return ends or [top - 1, top + 1]

# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds a method's learning rates: on a ladder of factor 1.8, until the best has been tried on both sides.

A method with rotation and shift may have a rate for each: they are searched one after the other along lines. Rungs are
counted from rates that move the demo's model alike: 0.01 in an entry of a factor, in a shift, and in other parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from testbed.methods import Method

Part = Literal["rotation", "shift", "other"]

STEP = 1.8
#: The factors' sizes in ``testbed.methods`` are 4 and 64 (or twice 16), and the model's singular values are about 2.
MIDDLE: dict[Part, float] = {"rotation": 8e-2, "shift": 5e-3, "other": 1e-2}
LADDER = range(-9, 8)  #: 0.005 to 60 times that: from the authors' rates for SDXL on
START = (-4, -2, 0, 2)  #: what is tried first: a tenth to three times

Line = Literal["both", "shift", "rotation"]


class Rates(NamedTuple):
    """Rungs of the ladder; where there is one rate, they are the same."""

    rotation: int
    shift: int

    def values(self, method: Method) -> tuple[float, float]:
        """Per step, of rotation and shift; twice the same where there is one."""
        rotation, shift = parts(method)
        return rate(self.rotation, rotation), rate(self.shift, shift)

    def along(self, line: Line) -> Iterator[tuple[int, Rates]]:
        """The ladder through this point: both rates moving at once, or one of them."""
        for n in LADDER:
            if line == "both":
                if n + self.shift - self.rotation in LADDER:
                    yield n, Rates(n, n + self.shift - self.rotation)
            else:
                yield n, Rates(self.rotation, n) if line == "shift" else Rates(n, self.shift)


def parts(method: Method) -> tuple[Part, Part]:
    """What its two rates are of."""
    if method.settings is None:
        return "other", "other"
    one: dict[str, Part] = {"rotation only": "rotation", "shift only": "shift"}
    only = one.get(method.settings.get("train", ""))
    return (only, only) if only else ("rotation", "shift")


def two_parts(method: Method) -> bool:
    """Whether it has a rotation and a shift, and so may have a rate for each."""
    return len(set(parts(method))) == 2


def rate(rung: int, part: Part) -> float:
    return float(f"{MIDDLE[part] * STEP**rung:.3g}")


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

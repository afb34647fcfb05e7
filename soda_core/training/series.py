# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers over the steps of a run, of bounded size however long it is."""

from __future__ import annotations

import math
from collections.abc import Sequence


class RunningMean:
    """Bias-corrected exponential mean; a NaN or infinite value leaves it where it was.

    Args:
        factor: share of the past, 0..1.
    """

    def __init__(self, factor: float = 0.9) -> None:
        self._factor = min(max(factor, 0.0), 0.9999)
        self._mean = self._weight = 0.0

    def add(self, value: float) -> float:
        """Take in the next value; the mean so far, NaN where the value was no number."""
        if not math.isfinite(value):
            return math.nan
        self._mean = self._factor * self._mean + (1 - self._factor) * value
        self._weight = self._factor * self._weight + (1 - self._factor)
        return self._mean / self._weight


class Series:
    """Values by step. Beyond ``most`` points neighbours become one, their mean, so that every part stays as fine.

    Args:
        most: points kept; an even number.
    """

    def __init__(self, most: int = 240) -> None:
        self.most = most
        self._stride = 1  # values in a point
        self._points: list[tuple[float, float]] = []  # means of steps and of values
        self._open: list[tuple[float, float]] = []  # of the next point

    def __len__(self) -> int:
        return len(self._points) + bool(self._open)

    def add(self, step: int, value: float) -> None:
        """Values that are not finite are left out."""
        if not math.isfinite(value):
            return
        self._open.append((step, value))
        if len(self._open) == self._stride:
            self._points.append(_mean(self._open))
            self._open = []
        if len(self._points) == self.most:
            self._points = [_mean(pair) for pair in zip(self._points[::2], self._points[1::2], strict=True)]
            self._stride *= 2

    def points(self) -> list[list[float]]:
        """``[step, value]`` each, the value to four significant digits."""
        last = [_mean(self._open)] if self._open else []
        return [[round(step, 1), float(f"{value:.4g}")] for step, value in [*self._points, *last]]


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(step for step, _ in points) / len(points), sum(value for _, value in points) / len(points)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Means over subjects and styles, and their standard errors.

Seeds of a subject are not independent of each other, so they are averaged first: what is left is a cell for each
subject, each style, or each pair of the two.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from benchmarks.lib.results import Row

#: Value by subject and style; None for the one that was not there.
Cells = Mapping[tuple[str | None, str | None], float]


class Mean(NamedTuple):
    """A mean and its standard error, which is None where one cell says nothing of it."""

    value: float
    error: float | None

    def said(self, sign: str = "") -> str:
        return f"{self.value:{sign}.3f}" + ("" if self.error is None else f" ± {self.error:.3f}")


def cells(rows: Iterable[Row], metric: str) -> dict[tuple[str | None, str | None], float]:
    """Means over seeds."""
    found: dict[tuple[str | None, str | None], list[float]] = {}
    for row in rows:
        found.setdefault((row.get("subject"), row.get("style")), []).append(row[metric])
    return {key: statistics.fmean(values) for key, values in found.items()}


def mean(of: Cells) -> Mean:
    """Over subjects, over styles, or over both crossed.

    Crossed, of ``y_st = m + a_s + b_t + e_st`` with random subjects and styles: ``var(m) = σ_a²/S + σ_b²/T + σ_e²/ST``,
    estimated from the mean squares of a two-way analysis of variance as ``(MS_a + MS_b - MS_e) / ST``, and never as
    less than ``MS_e / ST``. Of subjects without all styles (a benchmark that was stopped) nothing is taken.
    """
    styles = dict.fromkeys(style for _, style in of)
    subjects = [s for s in dict.fromkeys(subject for subject, _ in of) if all((s, t) in of for t in styles)]
    if not subjects:  # not one has all of them
        return Mean(statistics.fmean(of.values()), None)
    table = [[of[subject, style] for style in styles] for subject in subjects]
    S, T = len(table), len(styles)
    whole = statistics.fmean(value for line in table for value in line)
    if S == 1 or T == 1:
        values = [value for line in table for value in line]
        return Mean(whole, statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None)
    a = [statistics.fmean(line) - whole for line in table]
    b = [statistics.fmean(column) - whole for column in zip(*table, strict=True)]
    e = [table[s][t] - whole - a[s] - b[t] for s in range(S) for t in range(T)]
    ms_a, ms_b = T * _squares(a) / (S - 1), S * _squares(b) / (T - 1)
    ms_e = _squares(e) / ((S - 1) * (T - 1))
    return Mean(whole, (max(ms_a + ms_b - ms_e, ms_e) / (S * T)) ** 0.5)


def difference(one: Cells, other: Cells) -> Mean | None:
    """Paired: over what both have; None where that is nothing."""
    common = {key: one[key] - other[key] for key in one if key in other}
    return mean(common) if common else None


def _squares(values: Iterable[float]) -> float:
    return sum(value**2 for value in values)

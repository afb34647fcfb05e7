# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of ``bench quality`` in Markdown: a line for each group of rows, a column for each question to them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from benchmarks.lib.errors import Mean, cells, difference, mean
from benchmarks.lib.measured import BOTH, Groups
from benchmarks.lib.results import Row

BASELINES = ("LoRA", "LoKr")  #: whom every method is compared with, at its own budget
#: Head of a column, and the cell for a group.
Column = tuple[str, Callable[[list[Row]], str]]


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    table = [list(heads), ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def table(first: str, groups: Groups, columns: Sequence[Column]) -> str:
    lines = [[name, budget, *(cell(rows) for _, cell in columns)] for (name, budget), rows in groups.items()]
    return markdown([first, "budget", *(head for head, _ in columns)], lines)


def shown() -> list[Column]:
    """What pictures show, ± over subjects and styles."""
    return [
        ("thing", averaged("thing")),
        ("style", averaged("styled")),
        ("thing x style", lambda rows: mean(cells(rows, BOTH)).said()),
    ]


def against_baselines(groups: Groups, ending: str = "") -> list[Column]:
    """Paired differences of the score."""

    def column(baseline: str) -> Column:
        def cell(rows: list[Row]) -> str:
            others = groups.get((baseline + ending, rows[0].get("budget", "")))
            gap = difference(cells(rows, BOTH), cells(others, BOTH)) if others and others is not rows else None
            return gap.said("+") if gap else ""

        return f"minus {baseline}'s", cell

    return [column(baseline) for baseline in BASELINES]


def averaged(metric: str) -> Callable[[list[Row]], str]:
    """Where rows have it; nothing is shown by a run that diverged."""

    def cell(rows: list[Row]) -> str:
        return f"{mean(cells(rows, metric)).value:.2f}" if all(metric in row for row in rows) else ""

    return cell


def parameters(rows: list[Row]) -> str:
    return next((f"{row['params']:,}" for row in rows if "params" in row), "")


def runs(rows: list[Row]) -> str:
    lost = sum(bool(row.get("diverged")) for row in rows)
    return f"{len(rows)}" + (f", {lost} diverged" if lost else "")


def rates(rows: list[Row]) -> str:
    """Of the rotation and the shift, where they are two."""
    return " / ".join(
        f"{lr:g}" for lr in dict.fromkeys(rows[0][name] for name in ("lr", "shift_lr") if name in rows[0])
    )


def seconds_per_step(rows: list[Row]) -> str:
    times = [row["seconds_per_step"] for row in rows if "seconds_per_step" in row]
    return f"{statistics.median(times):.2f}" if times else ""


def over_seeds(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Mean(statistics.fmean(values), spread).said()

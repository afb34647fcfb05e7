# SPDX-License-Identifier: GPL-3.0-or-later
"""Automatic rates beside those that a search finds best, on the same subjects, styles and seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from benchmarks.lib import tables
from benchmarks.lib.errors import Mean
from benchmarks.lib.plan import Job, Plan
from benchmarks.lib.rates import Rates
from benchmarks.lib.results import Row
from testbed.methods import METHODS, Method
from testbed.world.tasks import Task

#: Of the rates that are not used: a part of the run's name.
_UNUSED = Rates(0, 0)


def automatic(method: Method) -> Method:
    """The same with rates of its own."""
    return replace(method, name=f"{method.name}, automatic", settings={**(method.settings or {}), "rates": "automatic"})


def jobs(plan: Plan, method: Method, kind: str) -> list[Job]:
    """Trainings with automatic rates, in the order of :meth:`.plan.Plan.tries`."""
    found = []
    for name, seed in plan.scope.tuned_on[kind]:
        job = plan.training(automatic(method), Task(kind, name), seed, _UNUSED)
        found.append(replace(job, row={key: value for key, value in job.row.items() if key not in ("lr", "shift_lr")}))
    return found


def all_jobs(plan: Plan) -> Iterator[Job]:
    for key, kind in plan.scope.parts:
        yield from jobs(plan, METHODS[key], kind)


class Comparison(NamedTuple):
    """Of one method and kind of task; scores by run."""

    method: Method
    kind: str
    rates: tuple[float, float]  #: that were best on average: the search's
    by_hand: list[Row]
    found: list[Row]  #: with automatic rates

    @property
    def difference(self) -> Mean:
        """Automatic minus by hand, paired; ± over runs."""
        each = [a["both"] - b["both"] for a, b in zip(self.found, self.by_hand, strict=True)]
        error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else None
        return Mean(statistics.fmean(each), error)

    @property
    def worst(self) -> float:
        """The smallest part of a run's score by hand that the automatic one reaches."""
        ratios = [a["both"] / b["both"] for a, b in zip(self.found, self.by_hand, strict=True) if b["both"]]
        return min(ratios, default=1.0)

    @property
    def holds(self) -> bool:
        """Whether it is no worse than by hand by more than a standard error, and nowhere worse than half."""
        return self.difference.value >= -(self.difference.error or 0.0) and self.worst >= 0.5


def comparisons(plan: Plan) -> Iterator[Comparison]:
    """What is measured whole."""
    rows = plan.kept.rows
    for key, kind in plan.scope.parts:
        method = METHODS[key]
        ours = jobs(plan, method, kind)
        if plan.next_tries(method, kind) or not all(job.key in rows for job in ours):
            continue
        chosen = plan.rates(method, kind)
        hand = [rows[job.key] for job in plan.tries(method, kind, chosen)]
        yield Comparison(method, kind, chosen.values(method), hand, [rows[job.key] for job in ours])


def table(plan: Plan) -> str:
    """Markdown: a line for each method and kind of task, then one for each run."""
    heads = ["method", "budget", "task", "by hand", "rates", "automatic", "rates", "difference", "worst", "holds"]
    lines, each = [], []
    for of in comparisons(plan):
        names = of.method.name, of.method.budget, of.kind
        lines.append([
            *names, _mean(of.by_hand), _said(of.rates), _mean(of.found), _said(_typical(of.found)),
            of.difference.said("+"), f"{of.worst:.2f}", "yes" if of.holds else "no",
        ])  # fmt: skip
        for hand, found in zip(of.by_hand, of.found, strict=True):
            scores = (f"{row['both']:.3f}" for row in (hand, found))
            each.append([*names, str(found[of.kind]), str(found["seed"]), *scores, _said(_typical([found]))])
    said = (
        "Scores as in `bench quality`, on subjects and styles that are for tuning. *By hand* are the rates (rotation "
        "in radians / shift relative to the singular values) that a search found best on average over these very runs. "
        "Differences are paired, ± over runs. *Worst*: the smallest part of a run's score by hand that is reached. "
        "*Holds*: no worse than by hand by more than that error, and nowhere worse than half."
    )
    runs = ["method", "budget", "task", "what", "seed", "by hand", "automatic", "its rates"]
    return "\n\n".join([said, tables.markdown(heads, lines), "## Runs", tables.markdown(runs, each)])


def _mean(rows: list[Row]) -> str:
    return f"{statistics.fmean(row['both'] for row in rows):.3f}"


def _typical(rows: list[Row]) -> list[float]:
    """What automatic rates came to, by part; the median."""
    parts = ("automatic rotation rate", "automatic shift rate")
    return [statistics.median(found) for part in parts if (found := [row[part] for row in rows if part in row])]


def _said(rates: tuple[float, ...] | list[float]) -> str:
    return " / ".join(f"{rate:.2g}" for rate in dict.fromkeys(rates))

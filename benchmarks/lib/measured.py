# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of ``bench quality`` that are there, by what they are reported as."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from benchmarks.lib.merges import ALONE, Recipe
from benchmarks.lib.plan import Job, Plan
from benchmarks.lib.plots import LOOKS
from benchmarks.lib.results import Row

BOTH = "both"  #: the score
REFERENCES = ("base", "real pictures")
#: Rows by method, or merge, and budget.
Groups = dict[tuple[str, str], list[Row]]


class Measured:
    """Of a plan; every row with its key."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.scope = plan, plan.scope

    def rows(self, jobs: Iterable[Job]) -> list[Row]:
        """Of those jobs that are done, once each."""
        done = self.plan.kept.rows
        return [{**done[key], "key": key} for key in dict.fromkeys(job.key for job in jobs) if key in done]

    @cached_property
    def trainings(self) -> list[Row]:
        return self.rows(job for seed in self.scope.seeds for job in self.plan.trainings(seed))

    @cached_property
    def merges(self) -> list[Row]:
        return self.rows(job for seed in self.scope.seeds for job in self.plan.merges(seed))

    @cached_property
    def drift(self) -> dict[str, float]:
        """What a training changed that it should not, by its key."""
        jobs = [job for seed in self.scope.seeds for job in self.plan.trainings(seed)]
        return {job.key: row["changed"] for job in jobs for row in self.rows([self.plan.drift(job)])}

    def methods(self, kind: str) -> Groups:
        """Trainings."""
        return groups(row for row in self.trainings if row["task"] == kind)

    def recipes(self) -> Groups:
        """Merges by method and way; after those of a method what its parts do alone."""
        found: Groups = {}
        for (method, budget), rows in groups(self.merges).items():
            for way in sorted(dict.fromkeys(row["way"] for row in rows), key=lambda way: way in ALONE):
                found[f"{method}, {way}", budget] = [row for row in rows if row["way"] == way]
        return found

    def references(self, task: str) -> Groups:
        """What the base and real pictures show."""
        rows = self.rows(job for seed in self.scope.seeds for job in self.plan.references(seed))
        found = {(name, ""): [r for r in rows if (r["method"], r["task"]) == (name, task)] for name in REFERENCES}
        return {key: rows for key, rows in found.items() if rows}

    def best_recipes(self) -> dict[tuple[str, str], Recipe]:
        """Of each method and budget the recipe that was best on tuning pairs."""
        ascending = sorted(self.plan.recipes(), key=self.tuning_score)
        return {(recipe.method, recipe.budget): recipe for recipe in ascending}

    def best(self, ours: bool) -> Recipe | None:
        """The recipe that was best on tuning pairs: SODA's, or the others'."""
        scores = {recipe: self.tuning_score(recipe) for recipe in self.plan.recipes() if recipe.ours == ours}
        return max(scores, key=lambda recipe: scores[recipe]) if scores else None

    def tuning_score(self, recipe: Recipe) -> float:
        return max(self.plan.tried_strengths(recipe).values(), default=0.0)

    def median(self, rows: Iterable[Row]) -> Row | None:
        """Of runs whose pictures are on this machine."""
        found = [row for row in rows if self.plan.kept.files(row["key"]).strip.exists()]
        return sorted(found, key=lambda row: row[BOTH])[len(found) // 2] if found else None


def groups(rows: Iterable[Row]) -> Groups:
    """In order."""
    found: Groups = {}
    for row in rows:
        found.setdefault((row["method"], row["budget"]), []).append(row)
    return {of: found[of] for of in sorted(found, key=in_order)}


def in_order(of: tuple[str, str]) -> tuple[int, int]:
    """Of method and budget: the large budget, which nearly all have, before the small one; methods as in plots."""
    method, budget = of
    return ("large", "small", "").index(budget), list(LOOKS).index(method)

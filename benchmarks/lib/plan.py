# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``bench quality`` measures: every run by name, and which runs follow from those that are there."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from benchmarks.lib.kept import Kept
from benchmarks.lib.merges import ALONE, SUM, Recipe, Strengths, recipes
from benchmarks.lib.rates import LADDER, START, Line, Rates, best, next_tries, two_parts
from benchmarks.lib.results import Row
from testbed.methods import METHODS, Method
from testbed.world.tasks import Task
from testbed.world.vocabulary import REPORTED_STYLES, REPORTED_SUBJECTS

KINDS = ("subject", "style")
ABLATED = "SODA-SVD curve-large"

#: What is asked of a model: a subject, a style, or the subject in the style.
Asked = tuple[Task, ...]


@dataclass(frozen=True)
class Scope:
    """How much is measured.

    Args:
        parts: what is trained: keys of methods, each with "subject" or "style".
        tuned_on: names and training seeds that rates are chosen on, by kind; merges on the pairs of the first seeds.
        lines: that the rates of rotation and shift are searched along; see :mod:`.rates`.
        start, most: first rungs, and tries on a line.
    """

    parts: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    tuned_on: Mapping[str, tuple[tuple[str, int], ...]]
    lines: tuple[Line, ...] = ("both", "shift", "rotation")
    start: tuple[int, ...] = START
    most: int = 12
    strengths: tuple[Strengths, ...] = ((1.0, 1.0), (0.7, 1.0), (1.0, 0.7), (0.85, 0.85))
    ablations: bool = False
    subjects: tuple[str, ...] = tuple(REPORTED_SUBJECTS)
    styles: tuple[str, ...] = tuple(REPORTED_STYLES)
    subject_steps: int = 120
    style_steps: int = 180  #: a style shows later: what it looks like has no word that the model knows
    batch: int = 4
    prompts: int = 8
    sampling_steps: int = 16

    def training(self, kind: str) -> dict[str, Any]:
        """Settings of a training, alike for all methods."""
        return {
            "steps": self.subject_steps if kind == "subject" else self.style_steps, "batch_size": self.batch,
            "schedule": "cosine", "loss": "dco", "dco_beta": 30.0,
        }  # fmt: skip

    def exactly(self) -> str:
        """What makes rows comparable, whatever the rest."""
        return repr((*map(self.training, KINDS), self.prompts, self.sampling_steps))


@dataclass(frozen=True)
class Job:
    """One measurement: what it is kept as, what its row says beside what was measured, and the call that measures.

    Args:
        needs: trainings whose weights it reads.
    """

    key: str
    row: Row
    call: tuple[Any, ...]
    needs: tuple[Job, ...] = ()


@dataclass(frozen=True)
class Variant:
    """What differs from the method that is ablated: settings, or that one rate was chosen for both of its parts."""

    settings: dict[str, Any] = field(default_factory=dict)
    one_rate: bool = False


def _balanced(count: int) -> Variant:
    return Variant({"factor_sizes": None, "factor_preset": "auto", "factor_count": count})


ABLATIONS = {
    "as it is": Variant(),
    "one rate for rotation and shift": Variant(one_rate=True),
    **{f"{n} factors, balanced": _balanced(n) for n in (2, 3, 4)},
    "large factors": Variant({"factor_sizes": None, "factor_preset": "large"}),
    "a shift for every singular value": Variant({"shift_knots": 0}),
    **{f"shift on {n} knots": Variant({"shift_knots": n}) for n in (8, 64)},
    "loss mse": Variant({"loss": "mse"}),
    "loss min-snr": Variant({"loss": "min-snr"}),
    **{f"loss dco, beta {beta}": Variant({"dco_beta": float(beta)}) for beta in (3, 300)},
}


class Plan:
    """The runs of a scope. Which trainings are reported follows from the rates that were chosen, and so on."""

    def __init__(self, scope: Scope, kept: Kept) -> None:
        self.scope, self.kept = scope, kept
        self._exactly: dict[str, str] = {}
        self._tries: dict[tuple[str, str, Rates], list[Job]] = {}
        self._rates: dict[tuple[str, str], Rates] = {}
        self._strengths: dict[Recipe, Strengths] = {}

    # ------------------------------------------------------------------------------------------------- single runs

    def base(self, asked: Asked, seed: int) -> Job:
        """The model without any adapter, with the same prompts and noise."""
        return _job("base", {"method": "base", "seed": seed}, asked, ("base", asked, seed))

    def real(self, asked: Asked) -> Job:
        """Real pictures of what is asked for: what the classifier would say of a perfect model's."""
        return _job("real", {"method": "real pictures", "seed": 0}, asked, ("real", asked))

    def training(self, method: Method, task: Task, seed: int, rates: Rates) -> Job:
        lr, shift_lr = rates.values(method)
        steps = self.scope.training(task.kind)["steps"]
        row = {"method": method.name, "budget": method.budget, "lr": lr, "shift_lr": shift_lr, "steps": steps}
        if method.key not in self._exactly:
            self._exactly[method.key] = hashlib.sha256(method.description().encode()).hexdigest()[:8]
        name = f"{method.key}/{self._exactly[method.key]}/lr{lr:g}+{shift_lr:g}"
        return _job(name, {**row, "seed": seed}, (task,), ("train", method, task, seed, (lr, shift_lr)))

    def drift(self, training: Job) -> Job:
        """What a training changed that it should not."""
        row = {**training.row, "task": "drift", "after": training.row["task"]}
        return Job(f"drift/{training.key}", row, ("drift", training.row["seed"]), (training,))

    def merge(self, recipe: Recipe, pair: Asked, seed: int, strengths: Strengths, said: str | None = None) -> Job:
        """Of the trainings at the rates that were chosen.

        Args:
            said: what the row calls the way.
        """
        parts = tuple(self.trained(METHODS[key], task, seed) for key, task in zip(recipe.keys, pair, strict=True))
        row = {
            "method": recipe.method, "budget": recipe.budget, "ours": recipe.ours, "way": said or recipe.way,
            "strengths": list(strengths), "seed": seed,
        }  # fmt: skip
        name = f"merge/{recipe.way}/{strengths[0]:g}+{strengths[1]:g}/{'+'.join(part.key for part in parts)}"
        return _job(name, row, pair, ("merge", pair, recipe.way, strengths, seed), parts)

    # --------------------------------------------------------------------------------------------------- by choices

    def tries(self, method: Method, kind: str, rates: Rates) -> list[Job]:
        key = method.key, kind, rates
        if key not in self._tries:
            on = self.scope.tuned_on[kind]
            self._tries[key] = [self.training(method, Task(kind, name), seed, rates) for name, seed in on]
        return self._tries[key]

    def tried(self, method: Method, kind: str) -> dict[Rates, float]:
        """Mean score by rates, of those that are measured."""
        every = [Rates(a, b) for a in LADDER for b in LADDER if two_parts(method) or a == b]
        scores = {rates: self._score(self.tries(method, kind, rates)) for rates in every}
        return {rates: score for rates, score in scores.items() if score is not None}

    def next_tries(self, method: Method, kind: str) -> list[Job]:
        """None once rates are chosen."""
        if (method.key, kind) in self._rates:
            return []
        lines = self.scope.lines if two_parts(method) else self.scope.lines[:1]
        tried = self.tried(method, kind)
        tries = next_tries(tried, lines, self.scope.start, self.scope.most)
        if not tries:
            self._rates[method.key, kind] = best(tried)
        return [job for rates in tries for job in self.tries(method, kind, rates)]

    def rates(self, method: Method, kind: str) -> Rates:
        if self.next_tries(method, kind):
            raise SystemExit(f"no rates have been chosen for {method.key}, {kind}: run the stage tune first")
        return self._rates[method.key, kind]

    def tuned(self) -> list[tuple[str, str]]:
        """Those parts whose rates are chosen."""
        return [(key, kind) for key, kind in self.scope.parts if not self.next_tries(METHODS[key], kind)]

    def trained(self, method: Method, task: Task, seed: int) -> Job:
        return self.training(method, task, seed, self.rates(method, task.kind))

    def strength_tries(self, recipe: Recipe, strengths: Strengths) -> list[Job]:
        """On pairs that are not reported."""
        (_, seed), *_ = self.scope.tuned_on["subject"]
        names = ([name for name, of in self.scope.tuned_on[kind] if of == seed] for kind in KINDS)
        return [self.merge(recipe, pair, seed, strengths) for pair in _pairs(*names)]

    def tried_strengths(self, recipe: Recipe) -> dict[Strengths, float]:
        """Mean score by strengths, of those that are measured."""
        scores = {of: self._score(self.strength_tries(recipe, of)) for of in self.scope.strengths}
        return {of: score for of, score in scores.items() if score is not None}

    def strengths(self, recipe: Recipe) -> Strengths | None:
        """The best; None while not all have been tried."""
        if recipe not in self._strengths:
            tried = self.tried_strengths(recipe)
            if len(tried) < len(self.scope.strengths):
                return None
            self._strengths[recipe] = max(tried, key=lambda of: tried[of])
        return self._strengths[recipe]

    def _score(self, jobs: list[Job]) -> float | None:
        rows = [self.kept.rows.get(job.key) for job in jobs]
        return statistics.fmean(row["both"] for row in rows if row) if all(rows) else None

    # ------------------------------------------------------------------------------------------------------- groups

    def recipes(self) -> list[Recipe]:
        return list(recipes(self.tuned()))

    def tasks(self) -> list[Task]:
        """What is reported of."""
        return [Task(kind, name) for kind in KINDS for name in getattr(self.scope, f"{kind}s")]

    def references(self, seed: int) -> Iterator[Job]:
        """What any score is to be compared with."""
        for asked in [*((task,) for task in self.tasks()), *self.pairs()]:
            yield from (self.base(asked, seed), self.real(asked))

    def trainings(self, seed: int) -> Iterator[Job]:
        """What is reported, as far as rates are chosen."""
        for key, kind in self.tuned():
            yield from (self.trained(METHODS[key], task, seed) for task in self.tasks() if task.kind == kind)

    def pairs(self) -> list[Asked]:
        """Every subject with every style."""
        return _pairs(self.scope.subjects, self.scope.styles)

    def merges(self, seed: int) -> Iterator[Job]:
        """At the strengths that were chosen, and what the parts do alone."""
        for pair in self.pairs():
            for recipe in self.recipes():
                if (strengths := self.strengths(recipe)) is not None:
                    yield self.merge(recipe, pair, seed, strengths)
                    alone = replace(recipe, way=SUM)
                    yield from (self.merge(alone, pair, seed, of, said) for said, of in ALONE.items())

    def ablations(self) -> Iterator[Job]:
        """One thing changed at a time, on a subject and a style that are not reported."""
        whole = METHODS[ABLATED]
        for kind in (kind for key, kind in self.tuned() if key == ABLATED and self.scope.ablations):
            name, _ = self.scope.tuned_on[kind][0]
            chosen, tried = self.rates(whole, kind), self.tried(whole, kind)
            one = best({rates: score for rates, score in tried.items() if rates.rotation == rates.shift})
            for said, variant in ABLATIONS.items():
                method = replace(whole, name=said, settings={**(whole.settings or {}), **variant.settings})
                rates = one if variant.one_rate else chosen
                yield from (self.training(method, Task(kind, name), seed, rates) for seed in self.scope.seeds)


def _pairs(subjects: Iterable[str], styles: Iterable[str]) -> list[Asked]:
    return [(Task("subject", a), Task("style", b)) for a, b in product(subjects, styles)]


def _job(name: str, row: Row, asked: Asked, call: tuple[Any, ...], needs: tuple[Job, ...] = ()) -> Job:
    about = {"task": asked[0].kind if len(asked) == 1 else "merge"} | {task.kind: task.name for task in asked}
    return Job(f"{name}/{'+'.join(task.name for task in asked)}/seed{row['seed']}", {**row, **about}, call, needs)

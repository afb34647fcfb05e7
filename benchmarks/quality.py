# SPDX-License-Identifier: GPL-3.0-or-later
"""SODA against what a user would pick instead, on the demo's base model and its held-out subjects and styles.

    python dev.py bench quality [--quick] [--stage tune|base|train|merge|ablate|report]...

Every finished run is kept, in the cache folder and in the report, so that a stopped benchmark goes on where it was, on
another machine too. The full one takes hours on two cores. Writes ``benchmarks/results/quality.json`` (flat rows),
tables and plots.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import statistics
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.lib import report, runs
from benchmarks.lib.results import RESULTS, Row
from benchmarks.lib.runs import Scope
from testbed.demo_base import checkpoint
from testbed.machine import core_count, label
from testbed.methods import METHODS, Method
from testbed.model_files import CLASSIFIER
from testbed.paths import cache_root
from testbed.world.tasks import STYLE, SUBJECT, Task
from testbed.world.vocabulary import REPORTED_STYLES, REPORTED_SUBJECTS, TUNING_STYLES

MEASURES = 3  #: raised when tasks, trainings or metrics change, so that kept rows are not mixed with new ones
TRIED_RATES = (3e-3, 1e-2, 3e-2)  #: every method's tries
FURTHER = {TRIED_RATES[0]: 1e-3, TRIED_RATES[-1]: 1e-1}  #: one more, where the best is at an end
TASKS = ("subject", "style")
#: what learning rates are chosen on, and what settings are varied on; nothing of it is reported
TUNED_ON = {"subject": (SUBJECT, Task("subject", "tropical fish")), "style": (STYLE,)}
ABLATED, ABLATED_ON = "SODA-SVD-large", {"subject": Task("subject", "black cat"), "style": STYLE}

FULL = Scope(tuple(METHODS), tuple(REPORTED_SUBJECTS), tuple(REPORTED_STYLES), (0, 1, 2))
QUICK = Scope(
    ("SODA-SVD-large", "LoRA-large"), (ABLATED_ON["subject"].name,), TUNING_STYLES, (0,), subject_steps=30,
    style_steps=60, strengths=((1.0, 1.0),), ablations=False,
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One measurement: what it is kept as, what its rows say beside the metrics, and the call that makes them."""

    key: str
    row: Row
    call: tuple[Any, ...]


class Results:
    """Rows by what they measure, kept in a file that only grows.

    Args:
        of: what was measured on; rows of an earlier report that say the same are taken over.
        reported: the JSON of that report.
    """

    def __init__(self, folder: Path, of: str, reported: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.of, self.path = folder, of, folder / "rows.jsonl"
        self.rows: dict[str, list[Row]] = {}
        for row in json.loads(reported.read_text("utf-8")) if reported.exists() else []:
            if row.pop("of", None) == of:
                self.rows.setdefault(row.pop("key"), []).append(row)
        text = self.path.read_text("utf-8") if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # it was stopped within a line
        if whole != text:
            self.path.write_text(whole, "utf-8")
        for line in whole.splitlines():
            entry = json.loads(line)
            self.rows[entry["key"]] = entry["rows"]

    def add(self, key: str, rows: list[Row]) -> None:
        rows = [{**{n: _rounded(value) for n, value in row.items()}, "machine": label()} for row in rows]
        self.rows[key] = rows
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "rows": rows}) + "\n")

    def __iter__(self) -> Iterator[Row]:
        """All rows, each with what another machine needs to go on from them."""
        return ({**row, "of": self.of, "key": key} for key, rows in self.rows.items() for row in rows)

    def deltas(self, key: str) -> Path:
        return self.folder / "deltas" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


class Bench:
    """Everything that is measured, a process for each core: steps as small as these gain little from threads."""

    def __init__(self, scope: Scope, work: Path, folder: Path) -> None:
        self.scope, self.folder, self.checkpoint = scope, folder, checkpoint(cache_root())
        classifier = hashlib.sha256(CLASSIFIER.read_bytes()).hexdigest()
        # another model, classifier or training is another benchmark
        training = [scope.training(task) for task in ABLATED_ON.values()]
        of = repr((MEASURES, self.checkpoint.stem, classifier, training, scope.prompts, scope.sampling_steps))
        of = hashlib.sha256(of.encode()).hexdigest()[:12]
        self.results = Results(work / of, of, folder / "quality.json")

    @cached_property
    def pool(self) -> ProcessPoolExecutor:
        processes = min(core_count(), 8)
        return ProcessPoolExecutor(
            processes, multiprocessing.get_context("spawn"), runs.start,
            (self.scope, self.checkpoint, max(1, core_count() // processes)),
        )  # fmt: skip

    def do(self, jobs: Iterable[Job], again: bool = False) -> None:
        """What is not done already, or all of it ``again``; every result is kept as soon as it is there."""
        todo = {job.key: job for job in jobs if again or job.key not in self.results.rows}
        futures = {self.pool.submit(runs.call, *job.call): job for job in todo.values()}
        try:
            for count, future in enumerate(as_completed(futures), 1):
                job = futures[future]
                rows = [{**job.row, **self._with_gain(job.row, row)} for row in future.result()]
                self.results.add(job.key, rows)
                say(f"{count}/{len(todo)} {job.key}: {_short(rows[0])}")
        except BaseException:
            self.pool.shutdown(wait=False, cancel_futures=True)
            raise

    def _with_gain(self, about: Row, row: Row) -> Row:
        """``gain`` of a subject: how much more like it than without an adapter, from the same noise."""
        if about["task"] != "subject" or about["method"] == "base" or "similarity" not in row:
            return row
        (base,) = self.results.rows[_base_key(Task("subject", about["subject"]), about["seed"])]
        return {**row, "gain": row["similarity"] - base["similarity"]}

    # ------------------------------------------------------------------------------------------------------ jobs

    def base_job(self, task: Task, seed: int) -> Job:
        reported = task.name in (*self.scope.subjects, *self.scope.styles)
        row: Row = {
            "method": "base", "budget": "none", "task": task.kind, task.kind: task.name, "seed": seed,
            "note": "base" if reported else "base, not reported",
        }  # fmt: skip
        return Job(_base_key(task, seed), row, ("base", task, seed))

    def training_job(self, method: Method, task: Task, seed: int, lr: float, note: str = "", prior: int = 0) -> Job:
        key = run_key(method, task, seed, lr, note)
        row: Row = {
            "method": method.name, "budget": method.budget, "task": task.kind, task.kind: task.name, "seed": seed,
            "lr": lr, "steps": self.scope.steps(task), "note": note,
        }  # fmt: skip
        keep = None if note else self.results.deltas(key)
        return Job(key, row, ("train", method, task, seed, lr, prior, note != "tuning", keep))

    def base_jobs(self) -> Iterator[Job]:
        """What the model without any adapter does with the same prompts and noise."""
        for task in (*self.tasks(), *ABLATED_ON.values()):
            yield from (self.base_job(task, seed) for seed in self.scope.seeds)
        yield from (self.base_job(task, 0) for tasks in TUNED_ON.values() for task in tasks)

    def tries(self, method: Method, kind: str, lr: float) -> list[Job]:
        return [self.training_job(method, task, 0, lr, note="tuning") for task in TUNED_ON[kind]]

    def tried(self, method: Method, kind: str) -> dict[float, float]:
        """Mean score by learning rate, of those that are measured."""
        scores = {}
        for lr in (*TRIED_RATES, *FURTHER.values()):
            keys = [job.key for job in self.tries(method, kind, lr)]
            if all(key in self.results.rows for key in keys):
                scores[lr] = statistics.fmean(score(self.results.rows[key][0]) for key in keys)
        return scores

    def tuned(self, method: Method) -> bool:
        return all(self.tried(method, kind).keys() >= set(TRIED_RATES) for kind in TASKS)

    def best_rate(self, method: Method, kind: str) -> float:
        if not self.tuned(method):
            raise SystemExit(f"no learning rate has been chosen for {method.key}: run the stages base and tune first")
        scores = self.tried(method, kind)
        return max(scores, key=lambda lr: scores[lr])

    def trained(self, method: Method, task: Task, seed: int) -> Job:
        """The training that is reported."""
        return self.training_job(method, task, seed, self.best_rate(method, task.kind))

    def pairs(self, seed: int) -> list[tuple[Task, Task]]:
        """Each subject with one style, another one with every seed."""
        styles = self.scope.styles
        return [
            (Task("subject", name), Task("style", styles[(i + seed) % len(styles)]))
            for i, name in enumerate(self.scope.subjects)
        ]

    def merge_jobs(self, method: Method, pair: tuple[Task, Task], seed: int) -> list[Job]:
        """Changes of the weights added up, and for ours the geodesic merge; over all strengths with seed 0 only."""
        parts = [self.trained(method, task, seed) for task in pair]
        if any(part.key not in self.results.rows for part in parts):
            return []
        row = {name: parts[0].row[name] for name in ("method", "budget", "seed", "note")}
        row |= {"task": "merge", "subject": pair[0].name, "style": pair[1].name}
        row |= {name: [part.row[name] for part in parts] for name in ("lr", "steps")}
        diverged = any(self.results.rows[part.key][0].get("diverged") for part in parts)
        paths = [self.results.deltas(part.key) for part in parts]
        return [
            Job(
                f"merge/{parts[0].key}{parts[1].key}/{how}/{strengths}",
                {**row, "merge_method": how, "strengths": list(strengths)},
                ("diverged",) if diverged else ("merge", paths, how, strengths, *pair, seed),
            )
            for how in (("sum", "geodesic") if method.settings is not None else ("sum",))
            for strengths in self.scope.strengths[: None if seed == 0 else 1]
        ]

    def ablation_jobs(self) -> Iterator[Job]:
        """One thing changed at a time, at the learning rate of the whole where nothing else is said."""
        whole = METHODS[ABLATED]
        for kind in TASKS:
            lr = self.best_rate(whole, kind)
            for name, variant in ABLATIONS.items():
                settings = {**(whole.settings or {}), **variant.settings}
                method = replace(whole, name=name, settings=settings, cayley=variant.cayley)
                for seed in self.scope.seeds[: 1 if variant.slow else None]:
                    yield self.training_job(
                        method, ABLATED_ON[kind], seed, lr * variant.rate, "ablation", variant.prior
                    )

    def planned(self) -> Iterator[Job]:
        """All that can be named by now."""
        yield from self.base_jobs()
        methods = [METHODS[key] for key in self.scope.methods]
        for method in methods:
            for kind in TASKS:
                for lr in (*TRIED_RATES, *FURTHER.values()):
                    yield from self.tries(method, kind, lr)
        for method in filter(self.tuned, methods):
            for seed in self.scope.seeds:
                yield from (self.trained(method, task, seed) for task in self.tasks())
                for pair in self.pairs(seed):
                    yield from self.merge_jobs(method, pair, seed)
        if self.scope.ablations and self.tuned(METHODS[ABLATED]):
            yield from self.ablation_jobs()

    # ---------------------------------------------------------------------------------------------------- stages

    def methods(self, slow: bool) -> list[Method]:
        return [METHODS[key] for key in self.scope.methods if METHODS[key].slow == slow]

    def tasks(self) -> list[Task]:
        """What is reported."""
        return [Task(kind, name) for kind in TASKS for name in getattr(self.scope, f"{kind}s")]

    def tune(self, slow: bool) -> None:
        """Every method's learning rate, by as many tries on subjects, and on a style, that are never reported."""
        methods = self.methods(slow)
        self.do(
            job for lr in TRIED_RATES for method in methods for kind in TASKS for job in self.tries(method, kind, lr)
        )
        best = [(method, kind, self.best_rate(method, kind)) for method in methods for kind in TASKS]
        self.do(job for method, kind, lr in best if lr in FURTHER for job in self.tries(method, kind, FURTHER[lr]))

    def train(self, pair: tuple[Task, Task], seed: int, slow: bool) -> None:
        self.do(self.trained(method, task, seed) for method in self.methods(slow) for task in pair)

    def merge(self, pair: tuple[Task, Task], seed: int, slow: bool) -> None:
        def missing(method: Method) -> list[Job]:
            return [job for job in self.merge_jobs(method, pair, seed) if job.key not in self.results.rows]

        methods = self.methods(slow)
        asked = [method for method in methods if any(job.call[0] == "merge" for job in missing(method))]
        parts = [self.trained(method, task, seed) for method in asked for task in pair]
        # measured on another machine, where the weights stayed
        self.do([part for part in parts if not self.results.deltas(part.key).exists()], again=True)
        self.do(job for method in methods for job in missing(method))

    def report(self) -> None:
        """Everything measured so far as JSON, tables and plots."""
        keys = {job.key for job in self.scopened()}
        rows = [row for row in self.results if row["key"] in keys]
        report.write(rows, score, self.folder, asdict(self.scope), list(ABLATIONS))
        say(f"written to {self.folder}")

    def everything(self, stages: Iterable[str]) -> None:
        """The stages in turn: one pair of subject and style after another with its merges, slow methods last."""
        stages = set(stages)
        if "base" in stages:
            self.do(self.base_jobs())
        for slow in (False, True):
            if "tune" in stages:
                self.tune(slow)
            for seed in self.scope.seeds:
                for pair in self.pairs(seed):
                    if "train" in stages:
                        self.train(pair, seed, slow)
                    if "merge" in stages:
                        self.merge(pair, seed, slow)
                    if "report" in stages:
                        self.report()
            if "ablate" in stages and self.scope.ablations and not slow:
                self.do(self.ablation_jobs())
        if "report" in stages:
            self.report()


def _base_key(task: Task, seed: int) -> str:
    return f"base/{task.kind}/{task.name}/seed{seed}"


def run_key(method: Method, task: Task, seed: int, lr: float, note: str = "") -> str:
    exactly = hashlib.sha256(method.description().encode()).hexdigest()[:8]
    return f"{method.key}/{exactly}/{task.kind}/{task.name}/seed{seed}/lr{lr:g}/{note}"


def score(row: Row) -> float:
    """What learning rates are chosen by: the product of learning the thing and keeping the rest."""
    if row.get("diverged"):
        return -1.0
    if row["task"] == "subject":
        # what became less like the subject is no better for having lost the rest too
        return row["gain"] * (row["prompt_accuracy"] if row["gain"] > 0 else 1)
    return row["style_probability"] * row["class_accuracy"]


def _short(row: Row) -> str:
    names = ("similarity", "prompt_accuracy", "style_probability", "class_accuracy", "both")
    return ", ".join(f"{name.replace('_', ' ')} {row[name]:.2f}" for name in names if name in row)


def say(text: str) -> None:
    print(text, flush=True)


@dataclass(frozen=True)
class Variant:
    """What differs from the method that is ablated."""

    settings: dict[str, Any] = field(default_factory=dict)
    prior: int = 0  #: pictures of the class for prior preservation
    cayley: bool = False
    rate: float = 1.0  #: times the rate of the whole
    slow: bool = False  #: with the first seed only


def _factors(preset: str, **settings: Any) -> dict[str, Any]:
    return {"factor_sizes": None, "factor_preset": preset, **settings}


ABLATIONS = {
    "as it is": Variant(),
    **{
        f"{n} factor{'s' * (n > 1)}, balanced": Variant(_factors("auto", factor_count=n), slow=n == 1)
        for n in (1, 2, 3, 4)
    },
    "3 factors, balanced, rate x 3": Variant(_factors("auto", factor_count=3), rate=3),
    "large factors": Variant(_factors("large")),
    **{f"shift on {n} knots": Variant({"shift_knots": n}) for n in (64, 16, 8)},
    "retraction cayley": Variant({"retraction": "cayley"}),
    "retraction exp": Variant({"retraction": "exp"}),
    "Cayley-Adam": Variant(cayley=True),
    "schedule constant": Variant({"schedule": "constant"}),
    "loss min-snr": Variant({"loss": "min-snr"}),
    **{f"loss dco, beta {beta}": Variant({"loss": "dco", "dco_beta": float(beta)}) for beta in (1000, 30)},
    "loss mse + prior": Variant(prior=8),
    "all linear and convolution layers, large factors": Variant(_factors("large", layers="all linear + conv")),
}
STAGES = ("base", "tune", "train", "merge", "ablate", "report")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few methods, one subject, one style: ten minutes")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this; may be given several times")
    parser.add_argument("--work", type=Path, help="where runs are kept, so that a stopped benchmark goes on")
    parser.add_argument("--out", type=Path, help="where JSON, tables and plots go; benchmarks/results for a full run")
    args = parser.parse_args()
    scope, name = (QUICK, "quality-quick") if args.quick else (FULL, "quality")
    work = args.work or cache_root() / f"bench-{name}"
    bench = Bench(scope, work, args.out or (work / "report" if args.quick else RESULTS))
    bench.everything(args.stage or STAGES)


if __name__ == "__main__":
    main()

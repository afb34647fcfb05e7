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
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.lib import report, runs  # noqa: E402
from benchmarks.lib.machine import RESULTS, label  # noqa: E402
from benchmarks.lib.methods import METHODS, Method  # noqa: E402
from benchmarks.lib.runs import Plan  # noqa: E402
from demo.machine import core_count  # noqa: E402
from demo.model_files import JUDGE  # noqa: E402
from demo.world.tasks import STYLE, SUBJECT, Task  # noqa: E402
from demo.world.vocabulary import REPORTED_STYLES, REPORTED_SUBJECTS, TUNING_STYLES  # noqa: E402
from demo.world_model import checkpoint  # noqa: E402
from dev import cache_root  # noqa: E402

Row = dict[str, Any]
MEASURES = 3  #: raised when a row says something else than before, so that kept ones are not mixed in
RATES = (3e-3, 1e-2, 3e-2)  #: every method's tries; at 1e-3 most learn nothing in so few steps
#: what is varied in the ablations, on a subject that no rate was chosen on
ABLATED, ABLATION_SEED = "SODA-SVD-large", 1
ABLATED_ON = {"subject": Task("subject", "black cat"), "style": STYLE}
TUNED_ON = {"subject": SUBJECT, "style": STYLE}
TASKS = ("subject", "style")

FULL = Plan(tuple(METHODS), tuple(REPORTED_SUBJECTS), tuple(REPORTED_STYLES), (0, 1, 2))
QUICK = Plan(
    ("SODA-SVD-large", "LoRA-large"), (ABLATED_ON["subject"].name,), TUNING_STYLES, (0,), subject_steps=30,
    style_steps=60, strengths=((1.0, 1.0),),
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
            if row.pop("of") == of:
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

    def __init__(self, plan: Plan, work: Path, folder: Path) -> None:
        self.plan, self.folder, self.checkpoint = plan, folder, checkpoint(cache_root())
        judge = hashlib.sha256(JUDGE.read_bytes()).hexdigest()
        # another model, judge or training is another benchmark
        training = [plan.training(task) for task in TUNED_ON.values()]
        of = repr((MEASURES, self.checkpoint.stem, judge, training, plan.prompts, plan.sampling_steps))
        of = hashlib.sha256(of.encode()).hexdigest()[:12]
        self.results = Results(work / of, of, folder / "quality.json")

    @cached_property
    def pool(self) -> ProcessPoolExecutor:
        processes = min(core_count(), 8)
        return ProcessPoolExecutor(
            processes, multiprocessing.get_context("spawn"), runs.start,
            (self.plan, self.checkpoint, max(1, core_count() // processes)),
        )  # fmt: skip

    def do(self, jobs: Iterable[Job]) -> None:
        """What is not done already; every result is kept as soon as it is there."""
        todo = {job.key: job for job in jobs if job.key not in self.results.rows}
        futures = {self.pool.submit(runs.call, *job.call): job for job in todo.values()}
        for count, future in enumerate(as_completed(futures), 1):
            job = futures[future]
            rows = [{**job.row, **self._with_gain(job.row, row)} for row in future.result()]
            self.results.add(job.key, rows)
            say(f"{count}/{len(todo)} {job.key}: {_short(rows[0])}")

    def _with_gain(self, about: Row, row: Row) -> Row:
        """``gain`` of a subject: how much more like it than without an adapter, from the same noise."""
        if about["task"] != "subject" or about["method"] == "base" or "similarity" not in row:
            return row
        (base,) = self.results.rows[_base_key(Task("subject", about["subject"]), about["seed"])]
        return {**row, "gain": row["similarity"] - base["similarity"]}

    # ------------------------------------------------------------------------------------------------------ jobs

    def base_job(self, task: Task, seed: int) -> Job:
        reported = task.name in (*self.plan.subjects, *self.plan.styles)
        row: Row = {
            "method": "base", "budget": "none", "task": task.kind, task.kind: task.name, "seed": seed,
            "note": "base" if reported else "base, not reported",
        }  # fmt: skip
        return Job(_base_key(task, seed), row, ("base", task, seed))

    def training_job(self, method: Method, task: Task, seed: int, lr: float, note: str = "", prior: int = 0) -> Job:
        key = run_key(method, task, seed, lr, note)
        row: Row = {
            "method": method.name, "budget": method.budget, "task": task.kind, task.kind: task.name, "seed": seed,
            "lr": lr, "steps": self.plan.steps(task), "note": note,
        }  # fmt: skip
        keep = None if note else self.results.deltas(key)
        return Job(key, row, ("train", method, task, seed, lr, prior, note != "tuning", keep))

    def trained(self, method: Method, task: Task, seed: int) -> Job:
        """The training that is reported."""
        return self.training_job(method, task, seed, self.best_rate(method, task.kind))

    # ---------------------------------------------------------------------------------------------------- stages

    def methods(self, slow: bool) -> list[Method]:
        return [METHODS[key] for key in self.plan.methods if METHODS[key].slow == slow]

    def tasks(self) -> list[Task]:
        """What is reported."""
        return [Task(kind, name) for kind in TASKS for name in getattr(self.plan, f"{kind}s")]

    def base(self) -> None:
        """What the model without any adapter does with the same prompts and noise."""
        self.do(self.base_job(task, seed) for task in self.tasks() for seed in self.plan.seeds)
        tuned = [self.base_job(task, 0) for task in TUNED_ON.values()]
        self.do(tuned + [self.base_job(task, ABLATION_SEED) for task in ABLATED_ON.values()])

    def tune(self, slow: bool) -> None:
        """Every method's learning rate, by as many tries on a subject, and on a style, that are never reported."""
        self.do(self._tries(m, kind, lr) for lr in RATES for m in self.methods(slow) for kind in TASKS)

    def _tries(self, method: Method, kind: str, lr: float) -> Job:
        return self.training_job(method, TUNED_ON[kind], 0, lr, note="tuning")

    def best_rate(self, method: Method, kind: str) -> float:
        return max(RATES, key=lambda lr: score(self.results.rows[self._tries(method, kind, lr).key][0]))

    def pairs(self, seed: int) -> list[tuple[Task, Task]]:
        """Each subject with one style, another one with every seed."""
        styles = self.plan.styles
        return [
            (Task("subject", name), Task("style", styles[(i + seed) % len(styles)]))
            for i, name in enumerate(self.plan.subjects)
        ]

    def train(self, pair: tuple[Task, Task], seed: int, slow: bool) -> None:
        self.do(self.trained(method, task, seed) for method in self.methods(slow) for task in pair)

    def ablate(self) -> None:
        """One thing changed at a time, all at the learning rate of the whole."""
        if len(self.plan.methods) < len(METHODS):
            return
        whole, jobs = METHODS[ABLATED], []
        for kind in TASKS:
            lr = self.best_rate(whole, kind)
            for name, (changes, options) in ABLATIONS.items():
                method = replace(whole, name=name, settings={**(whole.settings or {}), **changes}, **options)
                prior = 8 if "prior" in name else 0
                jobs.append(self.training_job(method, ABLATED_ON[kind], ABLATION_SEED, lr, "ablation", prior))
        self.do(jobs)

    def merge(self, pair: tuple[Task, Task], seed: int, slow: bool) -> None:
        """Changes of the weights added up, and for ours the geodesic merge; over all strengths with seed 0 only."""
        jobs, lost = [], {}
        for method in self.methods(slow):
            parts = [self.trained(method, task, seed) for task in pair]
            if all(part.key in self.results.rows for part in parts):
                new = [job for job in self.merge_jobs(parts, *pair) if job.key not in self.results.rows]
                jobs += new
                if any(job.call[0] == "merge" for job in new):
                    lost |= {part.key: part for part in parts if not self.results.deltas(part.key).exists()}
        # measured on another machine: only its weights are missing
        for future in [self.pool.submit(runs.call, *part.call) for part in lost.values()]:
            future.result()
        self.do(jobs)

    def merge_jobs(self, parts: list[Job], subject: Task, style: Task) -> Iterator[Job]:
        row = {name: parts[0].row[name] for name in ("method", "budget", "seed", "note")}
        row |= {"task": "merge", "subject": subject.name, "style": style.name}
        row |= {name: [part.row[name] for part in parts] for name in ("lr", "steps")}
        diverged = any(self.results.rows[part.key][0].get("diverged") for part in parts)
        seed = row["seed"]
        paths = [self.results.deltas(part.key) for part in parts]
        ours = METHODS[f"{row['method']}-{row['budget']}"].settings is not None
        for how in ("sum", "geodesic") if ours else ("sum",):
            for strengths in self.plan.strengths[: None if seed == 0 else 1]:
                yield Job(
                    f"merge/{parts[0].key}{parts[1].key}/{how}/{strengths}",
                    {**row, "merge_method": how, "strengths": list(strengths)},
                    ("diverged",) if diverged else ("merge", paths, how, strengths, subject, style, seed),
                )

    def report(self) -> None:
        """Everything measured so far as JSON, tables and plots."""
        report.write(list(self.results), score, self.folder, asdict(self.plan))
        say(f"written to {self.folder}")

    def everything(self, stages: Iterable[str]) -> None:
        """The stages in turn: one pair of subject and style after another with its merges, slow methods last."""
        stages = set(stages)
        if "base" in stages:
            self.base()
        for slow in (False, True):
            if "tune" in stages:
                self.tune(slow)
            for seed in self.plan.seeds:
                for pair in self.pairs(seed):
                    if "train" in stages:
                        self.train(pair, seed, slow)
                    if "merge" in stages:
                        self.merge(pair, seed, slow)
                    if "report" in stages:
                        self.report()
                if "ablate" in stages and (seed, slow) == (self.plan.seeds[0], False):
                    self.ablate()
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
        return 0.0
    if row["task"] == "subject":
        return max(0.0, row["gain"]) * row["prompt_accuracy"]
    return row["style_probability"] * row["class_accuracy"]


def _short(row: Row) -> str:
    names = ("similarity", "prompt_accuracy", "style_probability", "class_accuracy", "both")
    return ", ".join(f"{name.replace('_', ' ')} {row[name]:.2f}" for name in names if name in row)


def say(text: str) -> None:
    print(text, flush=True)


#: settings and options that differ from SODA-SVD at the large budget
ABLATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {}),
    **{f"{n} factor{'s' * (n > 1)}": ({"factor_preset": "auto", "factor_count": n}, {}) for n in (1, 2, 3, 4)},
    **{f"shift on {n} knots": ({"shift_knots": n}, {}) for n in (64, 16, 8)},
    "retraction cayley": ({"retraction": "cayley"}, {}),
    "retraction exp": ({"retraction": "exp"}, {}),
    "Cayley-Adam": ({}, {"cayley": True}),
    "schedule constant": ({"schedule": "constant"}, {}),
    "loss min-snr": ({"loss": "min-snr"}, {}),
    **{f"loss dco, beta {beta}": ({"loss": "dco", "dco_beta": float(beta)}, {}) for beta in (1000, 30)},
    "loss mse + prior": ({}, {}),
    "all linear and convolution layers": ({"layers": "all linear + conv", "factor_preset": "large"}, {}),
}


STAGES = ("base", "tune", "train", "merge", "ablate", "report")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few methods, one subject, one style: ten minutes")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this; may be given several times")
    parser.add_argument("--work", type=Path, help="where runs are kept, so that a stopped benchmark goes on")
    parser.add_argument("--out", type=Path, help="where JSON, tables and plots go; benchmarks/results for a full run")
    args = parser.parse_args()
    plan, name = (QUICK, "quality-quick") if args.quick else (FULL, "quality")
    work = args.work or cache_root() / f"bench-{name}"
    bench = Bench(plan, work, args.out or (work / "report" if args.quick else RESULTS))
    bench.everything(args.stage or STAGES)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""SODA against what a user would pick instead, on the demo's base model and its held-out subjects and styles.

    python dev.py bench quality [--quick | --small] [--hours H] [--stage tune|train|merge|ablate|report]...

Every finished run is kept, in the cache folder and in the report, so that a stopped benchmark goes on where it was, on
another machine too; ``--small`` is the first part of the full one. Writes ``benchmarks/results/quality.json`` (flat
rows), tables, plots and a sheet of pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import cached_property
from itertools import product
from pathlib import Path

from benchmarks.lib import report, runs
from benchmarks.lib.kept import Kept
from benchmarks.lib.plan import KINDS, Job, Plan, Scope
from benchmarks.lib.results import RESULTS, Row
from testbed.demo_base import checkpoint
from testbed.machine import core_count
from testbed.methods import METHODS
from testbed.model_files import CLASSIFIER
from testbed.paths import cache_root

ROWS_VERSION = 5  #: raised when tasks, trainings or metrics change, so that kept rows are not mixed with new ones

#: At one budget all methods, the best of each sort at a second one.
ALL = (
    "SODA-SVD curve-large", "SODA-SVD-large", "SODA-QR-large", "rotation only-large", "shift only-small",
    "LoRA-large", "LoKr-large", "OFT-large", "SODA-SVD curve-small", "LoRA-small", "LoKr-small",
)  # fmt: skip
FEW = ("SODA-SVD curve-large", "LoRA-large", "LoKr-large")

FULL = Scope(
    tuple(product(ALL, KINDS)),
    seeds=(0, 1, 2, 3),
    tuned_on={
        "subject": (("sunflower", 0), ("black cat", 0), ("tropical fish", 0)),
        "style": (("blueprint", 0), ("blueprint", 1)),
    },
    strengths=tuple(product((1.0, 0.85, 0.7, 1.2), repeat=2)),
    ablations=True,
)
SMALL = Scope(
    (*product(FEW, KINDS), ("rotation only-large", "subject"), ("shift only-small", "style")),
    seeds=(0, 1),
    tuned_on={"subject": (("sunflower", 0), ("black cat", 0)), "style": (("blueprint", 0),)},
    lines=("both", "shift"),
)
QUICK = Scope(
    tuple(product(FEW[:2], KINDS)),
    seeds=(0,),
    tuned_on={"subject": (("sunflower", 0),), "style": (("blueprint", 0),)},
    lines=("both",), start=(-2, 0), most=2,
    subjects=("sunflower",), styles=("blueprint",), subject_steps=40, style_steps=60, prompts=4, sampling_steps=8,
)  # fmt: skip


class OutOfTime(Exception):
    """What is measured so far is kept, and reported."""


class Bench:
    """Runs a plan, a process for each core: steps as small as these gain little from threads.

    Args:
        hours: after so many no run is started.
    """

    def __init__(self, scope: Scope, work: Path, folder: Path, hours: float | None = None) -> None:
        self.scope, self.folder, self.checkpoint = scope, folder, checkpoint(cache_root())
        self.deadline = float("inf") if hours is None else time.monotonic() + 3600 * hours
        classifier = hashlib.sha256(CLASSIFIER.read_bytes()).hexdigest()
        # another model, classifier or training is another benchmark
        of = repr((ROWS_VERSION, self.checkpoint.stem, classifier, scope.exactly()))
        of = hashlib.sha256(of.encode()).hexdigest()[:12]
        self.kept = Kept(work / of, of, folder / "quality.json")
        self.plan = Plan(scope, self.kept)

    @cached_property
    def pool(self) -> ProcessPoolExecutor:
        processes = min(core_count(), 8)
        return ProcessPoolExecutor(
            processes, multiprocessing.get_context("spawn"), runs.start,
            (self.scope, self.checkpoint, max(1, core_count() // processes)),
        )  # fmt: skip

    def do(self, jobs: Iterable[Job]) -> None:
        """What is not done already, after the trainings that it needs: those too whose weights are on another machine.

        Raises:
            OutOfTime: with what was running ended and kept.
        """
        todo = {job.key: job for job in jobs if job.key not in self.kept.rows}
        needs = {need.key: need for job in todo.values() for need in job.needs if self.kept.lacks_weights(need.key)}
        self._do(needs)
        self._do({key: job for key, job in todo.items() if key not in needs})

    def _do(self, todo: dict[str, Job]) -> None:
        """Every result is kept as soon as it is there."""
        waiting, running, count = list(todo.values())[::-1], dict[Future[Row], Job](), 0
        while running or waiting:
            # no more than two for a process at once: what has begun is ended, whatever happens
            while waiting and len(running) < 2 * core_count() and time.monotonic() < self.deadline:
                job = waiting.pop()
                parts = [self.kept.files(need.key) for need in job.needs]
                running[self.pool.submit(runs.call, job.call[0], self.kept.files(job.key), parts, *job.call[1:])] = job
            if not running:
                raise OutOfTime
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, count = running.pop(future), count + 1
                self.kept.add(job.key, {**job.row, **future.result()})
                say(f"{count}/{len(todo)} {job.key}: {_short(self.kept.rows[job.key])}")

    # ---------------------------------------------------------------------------------------------------- stages

    def tune(self) -> None:
        """Every method's rates, on subjects and styles that are never reported; the weights of the best are kept."""
        parts = [(METHODS[key], kind) for key, kind in self.scope.parts]
        while tries := [job for method, kind in parts for job in self.plan.next_tries(method, kind)]:
            self.do(tries)
        for method, kind in parts:
            best = self.plan.rates(method, kind)
            for rates in self.plan.tried(method, kind).keys() - {best}:
                for job in self.plan.tries(method, kind, rates):
                    self.kept.files(job.key).forget_weights()

    def train(self, seed: int) -> None:
        trainings = [*self.plan.trainings(seed)]
        self.do([*self.plan.references(seed), *trainings, *map(self.plan.drift, trainings)])

    def merge(self, seed: int) -> None:
        """First the strengths of every recipe, on pairs that are not reported."""
        tries = product(self.scope.strengths, self.plan.recipes())
        self.do(job for strengths, recipe in tries for job in self.plan.strength_tries(recipe, strengths))
        self.do(self.plan.merges(seed))

    def report(self) -> None:
        """Everything measured so far as JSON, tables, plots and a sheet."""
        report.write(self.plan, self.folder)
        say(f"written to {self.folder}")

    def everything(self, stages: Iterable[str]) -> None:
        """The stages in turn, seed by seed."""
        stages = set(stages)
        try:
            if "tune" in stages:
                self.tune()
            for seed in self.scope.seeds:
                if "train" in stages:
                    self.train(seed)
                if "merge" in stages:
                    self.merge(seed)
                if "report" in stages:
                    self.report()
            if "ablate" in stages:
                self.do(self.plan.ablations())
        except OutOfTime:
            say("the time is up")
        if "report" in stages:
            self.report()


def _short(row: Row) -> str:
    if "why" in row:
        return f"nothing, because {row['why']}"
    names = ("thing", "styled", "both", "changed")
    return ", ".join(f"{name} {row[name]:.2f}" for name in names if name in row)


def say(text: str) -> None:
    print(text, flush=True)


STAGES = ("tune", "train", "merge", "ablate", "report")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="two methods, one pair, few steps: ten minutes")
    size.add_argument("--small", action="store_true", help="SODA, LoRA and LoKr, two seeds: less than an hour")
    parser.add_argument("--hours", type=float, help="report what is there after so many")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this; may be given several times")
    parser.add_argument("--work", type=Path, help="where runs are kept, so that a stopped benchmark goes on")
    parser.add_argument("--out", type=Path, help="where the report goes; benchmarks/results unless --quick")
    args = parser.parse_args()
    scope = QUICK if args.quick else SMALL if args.small else FULL
    work = args.work or cache_root() / "bench-quality"
    bench = Bench(scope, work, args.out or (work / "quick" if args.quick else RESULTS), args.hours)
    bench.everything(args.stage or STAGES)


if __name__ == "__main__":
    main()

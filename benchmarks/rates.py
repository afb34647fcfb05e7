# SPDX-License-Identifier: GPL-3.0-or-later
"""Automatic learning rates against the best that a search finds, on subjects and styles that are for tuning.

    python dev.py bench rates [--quick] [--hours H]

Both budgets; by hand a ladder of factor 1.8 for rotation and shift together, then for each (:mod:`.lib.rates`). Runs
are kept beside those of ``bench quality``, whose search this shares, so that a stopped benchmark goes on where it was.
Writes ``benchmarks/results/rates.json`` and tables.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

from benchmarks import quality
from benchmarks.lib import automatic
from benchmarks.lib.plan import KINDS
from benchmarks.lib.results import RESULTS, Row, write_rows
from benchmarks.quality import Bench, OutOfTime, say
from testbed.methods import METHODS
from testbed.paths import cache_root

LARGE = "SODA-SVD curve-large"

FULL = replace(
    quality.FULL,
    parts=tuple(product((LARGE, "SODA-SVD curve-small"), KINDS)),
    tuned_on={
        "subject": tuple(product(("sunflower", "black cat", "tropical fish"), (0, 1))),
        "style": tuple(product(("blueprint",), (0, 1, 2, 3))),
    },
)
QUICK = replace(quality.QUICK, parts=tuple(product((LARGE,), KINDS)))


def measure(bench: Bench) -> None:
    """By hand first: their weights are not kept, nothing is made of them."""
    try:
        bench.tune()
        bench.do(automatic.all_jobs(bench.plan))
    except OutOfTime:
        say("the time is up")


def rows(bench: Bench) -> list[Row]:
    """Of all trainings that are compared, the search's included."""
    plan, kept = bench.plan, bench.kept.rows
    keys = [job.key for job in automatic.all_jobs(plan)]
    for key, kind in plan.scope.parts:
        method = METHODS[key]
        keys += [job.key for rates in plan.tried(method, kind) for job in plan.tries(method, kind, rates)]
    return [{"key": key, **kept[key]} for key in keys if key in kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one budget, one subject, one style, few steps: minutes")
    parser.add_argument("--hours", type=float, help="report what is there after so many")
    parser.add_argument("--work", type=Path, help="where runs are kept, so that a stopped benchmark goes on")
    parser.add_argument("--out", type=Path, help="where the report goes; benchmarks/results unless --quick")
    args = parser.parse_args()
    work = args.work or cache_root() / "bench-quality"
    folder = args.out or (work / "quick" if args.quick else RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(QUICK if args.quick else FULL, work, folder, args.hours)
    measure(bench)
    write_rows("rates", rows(bench), automatic.table(bench.plan), folder)
    say(f"written to {folder}")


if __name__ == "__main__":
    main()

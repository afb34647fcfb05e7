# SPDX-License-Identifier: GPL-3.0-or-later
"""Training on several devices: what travels in a step, and what that takes.

    python dev.py bench ranks               measures two processes on this machine (some minutes; on a quiet one)
    python dev.py bench ranks --computed    only what follows from bytes and link speeds, at once

A step ends with a sum over all processes of the adapter's gradients, in float32 and by a ring: each process sends
``2 (N - 1) / N`` of the bytes, in ``2 (N - 1)`` turns. Measured, between two processes of this machine, are that sum
for each model's bytes, and a training's steps: a batch of two in one process with one thread, and shared by two of
them. Writes ``benchmarks/results/ranks.json``; with ``--computed`` what was measured before stays.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch

from benchmarks.lib import models
from benchmarks.lib.families import families
from benchmarks.lib.results import Row, pivot, write_run
from soda_core.training.loop import Progress, TrainingLoop
from soda_core.training.ranks import Ranks, joined
from soda_core.training.settings import TrainSettings
from soda_core.training.trainable import TrainableAdapter
from testbed.paths import ROOT, free_port

#: Bytes a second and seconds a message between neighbours in the ring, as assumed.
LINKS = {
    "main memory": (3e9, 20e-6),
    "10 Gb/s Ethernet": (1.25e9, 50e-6),
    "25 Gb/s Ethernet": (3.1e9, 50e-6),
    "100 Gb/s Ethernet": (12.5e9, 30e-6),
}
#: Processes, and the slowest link among them.
CLUSTERS = ((8, "main memory"), *((64, link) for link in LINKS if link != "main memory"))

PRESET, SIDE, STEPS, SUMS = "sd15-11", 128, 12, 30


# -------------------------------------------------------------------------------------------------------- computed


def gradient_bytes() -> Iterator[tuple[str, int]]:
    """Of each model's adapter at the training node's defaults."""
    settings = TrainSettings()
    for family in families():
        numbers = 1  # the loss
        for shape in family.layers.values():
            numbers += sum(k * k for k in settings.rotation_sizes(shape)) + settings.shift_size(min(shape))
        yield family.name, 4 * numbers


def ring_seconds(size: int, processes: int, link: str) -> float:
    """Of a sum over all processes that is sent around once and back."""
    speed, delay = LINKS[link]
    return 2 * (processes - 1) / processes * size / speed + 2 * (processes - 1) * delay


def computed() -> Iterator[Row]:
    for name, size in gradient_bytes():
        yield {"bench": "traffic", "model": name, "variant": "gradients", "bytes": size}
        for processes, link in CLUSTERS:
            sent = round(2 * (processes - 1) / processes * size)
            yield {
                "bench": "traffic", "model": name, "variant": f"{processes} processes, {link}", "bytes": sent,
                "seconds": ring_seconds(size, processes, link),
            }  # fmt: skip


# -------------------------------------------------------------------------------------------------------- measured


def measured() -> Iterator[Row]:
    """From processes started for it; the first of them answers."""
    shared = _answer(2, "sums", "steps")
    alone = _answer(1, "steps")
    for name, seconds in shared["sums"].items():
        yield {"bench": "sum", "model": name, "variant": "2 processes, measured", "seconds": seconds}
    model = f"{PRESET}, {SIDE} px, batch 2"
    yield {"bench": "step", "model": model, "variant": "1 process", "seconds": alone["steps"]}
    yield {
        "bench": "step", "model": model, "variant": "2 processes", "seconds": shared["steps"],
        "against_seconds": alone["steps"], "ratio": shared["steps"] / alone["steps"],
    }  # fmt: skip


def _answer(processes: int, *parts: str) -> dict:
    common = {**os.environ, "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1",
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.ranks", "--part", *parts]
    started = [
        subprocess.Popen(
            command, cwd=ROOT, env={**common, "RANK": str(i), "LOCAL_RANK": str(i)}, stdout=subprocess.PIPE
        )
        for i in range(processes)
    ]
    answers = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("a process of the benchmark failed; see above")
    return json.loads(answers[0].splitlines()[-1])


def work(parts: Iterable[str]) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    with joined(cpu=True) as ranks:
        found = {part: PARTS[part](ranks) for part in parts}
    print(json.dumps(found))


def sums(ranks: Ranks) -> dict[str, float]:
    """Seconds of a sum by model, the median."""
    found = {}
    for name, size in gradient_bytes():
        numbers, seconds = torch.ones(size // 4), []
        for _ in range(SUMS):
            started = time.perf_counter()
            ranks.add([numbers])
            seconds.append(time.perf_counter() - started)
        found[name] = statistics.median(seconds)
    return found


def steps(ranks: Ranks) -> float:
    """Seconds of a training step, the median."""
    patcher = models.load(PRESET)
    from soda_core.host.training import TrainingData
    from soda_core.host.training.dataset import Examples
    from soda_core.host.training.objective import Objective
    from soda_core.host.training.session import TrainingSession

    latents = [{"samples": models.latents(SIDE)["samples"].repeat(2, 1, 1, 1)}]
    data = TrainingData(latents, [models.conditioning(PRESET)])
    settings = TrainSettings(steps=STEPS, batch_size=2, loss="mse", train="rotation only")
    times: list[float] = []
    with TrainingSession.open(patcher, settings, "fp32") as session:
        examples = Examples.of(data, session.model, session.device)
        session.load(examples.batch_shape(2))
        trainable = TrainableAdapter(session.shapes, settings, {}, session.device)
        session.attach(trainable)
        objective = Objective(session, trainable, examples, ranks)
        loop = TrainingLoop(trainable, settings, Progress(), ranks)
        loop.run(objective.batch_loss, lambda _: times.append(time.perf_counter()))
    return statistics.median(after - before for before, after in pairwise(times))


PARTS = {"sums": sums, "steps": steps}


# ------------------------------------------------------------------------------------------------------------ rows


def tables(rows: list[Row]) -> str:
    def cell(row: Row) -> str:
        time = f"{row['seconds'] * 1e3:.1f} ms" if "seconds" in row else ""
        size = f"{row['bytes'] / 1e6:.1f} MB" if "bytes" in row else ""
        return ", ".join(filter(None, (size, time))) + (f" ({row['ratio']:.2f})" if "ratio" in row else "")

    groups = (("sent by each process in a step", ("traffic", "sum")), ("a training step", ("step",)))
    chosen = [(title, [row for row in rows if row["bench"] in benches]) for title, benches in groups]
    return "\n\n".join(pivot(part, title, "variant", "model", cell) for title, part in chosen if part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--computed", action="store_true", help="do not measure")
    parser.add_argument("--part", nargs="+", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        work(args.part)
        return
    rows = list(computed())
    if not args.computed:
        rows += measured()
    print(tables(rows))
    write_run("ranks", rows, tables, part=args.computed)


if __name__ == "__main__":
    main()

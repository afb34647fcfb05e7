# SPDX-License-Identifier: GPL-3.0-or-later
"""What training and loading take above the loaded model, a fresh process for each way; and whether it grows.

    python dev.py bench memory [--quick] [--part train|load|grow|fit]...

Resident memory on a CPU, allocated memory on a GPU; the most at any moment, less what the loaded model takes. Our
training says beforehand what it will take: ``estimate``. That also tells what fits which GPU (``fit``). Writes flat
rows to ``benchmarks/results/memory.json``.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.lib import models
from benchmarks.lib.families import UNETS, attention
from benchmarks.lib.results import Row, pivot, write_run
from soda_core.spectral import Decomposition, Spectrum, from_tensors
from soda_core.training.settings import TrainSettings
from soda_core.training.trainable import TrainableAdapter
from testbed.methods import Method

TRAINING_STEPS = 2  #: the first makes the optimiser's state, the second has it
GROWTH_STEPS = 200


class Peak:
    """The most memory this process takes while the block runs, above what it takes at its start; in bytes."""

    def __enter__(self) -> Peak:
        gc.collect()
        self.most = 0
        self.start = now()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watcher.join()
        if torch.cuda.is_available():
            self.most = torch.cuda.max_memory_allocated()
        self.most -= self.start

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.most = max(self.most, now())


def now() -> int:
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return int(psutil.Process().memory_info().rss)


# ------------------------------------------------------------------------------------------------------- training

CHECKPOINTING = ", checkpointing"
CORE = "core Train LoRA at its best"


def train(preset: str, side: int, variant: str) -> Row:
    """A few steps at batch 1, in float32 or on a GPU in bfloat16, after a run that is not counted.

    What libraries take once is not ours. Nor is decomposing counted, which is done before the first step and takes
    less.
    """
    patcher = ready(preset)
    if variant == CORE:
        core_steps(patcher, preset, side, 1)
        with Peak() as peak:
            core_steps(patcher, preset, side, TRAINING_STEPS)
        return {"bytes": peak.most}
    with tempfile.TemporaryDirectory() as folder:
        keep_decompositions(Path(folder))
        one_run(patcher, preset, side, variant, 1).go()
        forget()
        run = one_run(patcher, preset, side, variant, TRAINING_STEPS)
        with Peak() as peak:
            run.go()
    row: Row = {"bytes": peak.most, "seconds_per_step": run.seconds / TRAINING_STEPS}
    if run.needs:
        row |= {"estimate": sum(run.needs.values()), **_named(run.needs)}
    return row


def core_steps(patcher: Any, preset: str, side: int, steps: int) -> None:
    count = 0

    def on_step() -> None:
        nonlocal count
        count += 1
        if count == steps:
            raise _Enough

    with suppress(_Enough):
        models.core_run(patcher, preset, side, **models.CORE_BEST)(on_step)


class _Enough(Exception):
    pass


def keep_decompositions(folder: Path) -> None:
    """On disk, so that the run that counts need not wait for them again; in memory it has them all the same."""
    from soda_core.host import spectra

    spectra.store().folder, spectra.store().disk_limit = folder, 2**40


def forget() -> None:
    """Decompositions that an earlier run left in memory."""
    from soda_core.host import spectra

    spectra.store().clear_memory()


def one_run(
    patcher: Any, preset: str, side: int, variant: str, steps: int, on_step: Callable[[], None] = lambda: None
) -> models.OneRun:
    method, checkpointing = of_variant(variant)
    return models.OneRun(patcher, preset, side, method, steps, checkpointing, on_step=on_step)


def of_variant(variant: str) -> tuple[Method, bool]:
    """The method, and whether with gradient checkpointing."""
    return models.RUNS[variant.removesuffix(CHECKPOINTING)], variant.endswith(CHECKPOINTING)


def grow(preset: str, side: int, variant: str) -> Row:
    """Memory after a tenth of many steps, and at their end."""
    patcher = ready(preset)
    seen: list[int] = []
    one_run(patcher, preset, side, variant, GROWTH_STEPS, lambda: seen.append(now())).go()
    tenth = len(seen) // 10
    return {"steps": len(seen), "bytes": seen[-1] - seen[tenth], "spread": max(seen[tenth:]) - min(seen[tenth:])}


# -------------------------------------------------------------------------------------------------------- loading


def load(preset: str, side: int, variant: str) -> Row:
    """From a file to a model that is ready to sample. ``held``: what is still taken then."""
    patcher = ready(preset)
    import comfy.model_management as mm

    shapes = attention(preset)
    with tempfile.TemporaryDirectory() as folder:
        if variant.startswith("LoRA"):
            path = models.lora_file(Path(folder) / "lora.safetensors", shapes, rank=8)
            patched_by: Callable[[Any, Path], Any] = models.with_lora
        else:
            path = Path(folder) / "soda.safetensors"
            models.random_adapter(patcher, shapes, models.ADAPTERS[variant], seed=0).save(path)
            forget()
            patched_by = with_adapter
        with Peak() as peak:
            patched = patched_by(patcher, path)
            mm.load_models_gpu([patched])
        gc.collect()
        return {"bytes": peak.most, "held": now() - peak.start}


def with_adapter(patcher: Any, path: Path) -> Any:
    """What Load SODA Adapter does."""
    from soda_core.adapter import SodaAdapter
    from soda_core.host.apply import apply_adapter

    return apply_adapter(patcher, None, SodaAdapter.load(path), 1.0)[0]


# ------------------------------------------------------------------------------------------- what fits which GPU

OURS = [name for name, method in models.RUNS.items() if method.peft is None]


def fit(preset: str, side: int, variant: str) -> Row:
    """What training takes with its model in bfloat16, as a run says it before its first step; nothing is computed."""
    patcher = ready(preset)
    from soda_core.host.training import TrainingData
    from soda_core.host.training.dataset import Examples
    from soda_core.host.training.objective import Objective
    from soda_core.host.training.session import TrainingSession
    from soda_core.training.memory import needs

    method, checkpointing = of_variant(variant)
    settings = TrainSettings(steps=1, loss="mse", **(method.settings or {}))
    data = TrainingData([models.latents(side)], [models.conditioning(preset)])
    with TrainingSession.open(patcher, settings, "bf16", checkpointing) as session:
        examples = Examples.of(data, session.model, session.device)
        spectra = {name: _undecomposed(shape, settings.decomposition) for name, shape in session.shapes.items()}
        trainable = TrainableAdapter(session.shapes, settings, spectra, session.device)
        session.load(examples.batch_shape(settings.batch_size))
        session.attach(trainable)
        objective = Objective(session, trainable, examples)
        largest = objective.largest()
        parts = needs(trainable, lambda: objective.losses(*largest))
    weights = 2 * sum(p.numel() for p in patcher.model.diffusion_model.parameters())
    return {"bytes": weights + sum(parts.values()), "weights": weights, **_named(parts)}


def _undecomposed(shape: tuple[int, ...], kind: Decomposition) -> Spectrum:
    """A decomposition's tensors, as large as in a run in bfloat16, with nothing in them."""
    out, in_features = shape[0], math.prod(shape[1:])
    rank = min(out, in_features)
    shapes = {"U": (out, rank), "S": (rank,), "Vh": (rank, in_features), "Qh": (rank, in_features)}
    dtypes = {name: torch.bfloat16 if len(size) == 2 else torch.float32 for name, size in shapes.items()}
    tensors = {name: torch.empty(size, dtype=dtypes[name]) for name, size in shapes.items()}
    return from_tensors(kind, tensors | {"out": torch.tensor(out), "norm": torch.tensor(1.0)})


def _named(parts: dict[str, int]) -> Row:
    return {name.replace(" ", "_"): size for name, size in parts.items()}


# ----------------------------------------------------------------------------------------------------- processes


def ready(preset: str) -> Any:
    """The model, loaded to where it is used."""
    patcher = models.load(preset)
    import comfy.model_management as mm

    mm.load_models_gpu([patcher])
    gc.collect()
    return patcher


WHAT: dict[str, Callable[[str, int, str], Row]] = {"train": train, "load": load, "grow": grow, "fit": fit}


def plan(quick: bool) -> list[tuple[str, str, int, str]]:
    """What is run: kind, model, side in pixels, variant."""
    preset, side = ("sd15-12", 128) if quick else ("sd15-full", 256)
    training = [*models.RUNS, f"rotation + SVD shift{CHECKPOINTING}", CORE]
    jobs = [("train", preset, side, variant) for variant in training]
    jobs += [("load", preset, side, variant) for variant in ("LoRA rank 8", *models.ADAPTERS)]
    if quick:
        return jobs
    jobs.append(("grow", "sd15-11", 128, "rotation + SVD shift"))
    ways = [f"{way}{more}" for way in OURS for more in ("", CHECKPOINTING)]
    return [*jobs, *(("fit", preset, side, way) for _, preset, side in UNETS for way in ways)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, a few minutes")
    parser.add_argument("--part", choices=WHAT, action="append", help="only this; the others keep their results")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        what, preset, side, variant = args.one
        print(json.dumps(WHAT[what](preset, int(side), variant)))
        return
    rows: list[Row] = []
    for what, preset, side, variant in plan(args.quick):
        if what in (args.part or WHAT):
            rows.append(one(what, preset, side, variant))
    if not rows:
        parser.error("--quick measures training and loading only")
    for row in rows:
        against = {"train": "LoRA rank 4, our loop", "load": "LoRA rank 8"}.get(row["bench"])
        if against:
            (other,) = [r["bytes"] for r in rows if r["bench"] == row["bench"] and r["variant"] == against]
            row |= {"against": against, "against_bytes": other, "ratio": row["bytes"] / other}
    if not args.quick:
        write_run("memory", rows, tables, part=bool(args.part))
    print("\n" + tables(rows))


def one(what: str, preset: str, side: int, variant: str) -> Row:
    """A row, from a process of its own: what an earlier run left behind would count for nothing or twice."""
    started = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.memory", "--one", what, preset, str(side), variant]
    # large blocks go back to the system at once, so that resident memory is what is in use
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{what} {variant}: {done.stderr[-2000:]}")
    row: Row = {"bench": what, "variant": variant, "model": preset, "side": side}
    row |= json.loads(done.stdout.splitlines()[-1])
    print(f"{what:6} {variant:36} {row['bytes'] / 2**20:8,.0f} MiB"
          + (f", said {row['estimate'] / 2**20:,.0f}" if "estimate" in row else "")
          + f"  ({time.monotonic() - started:.0f} s)", flush=True)  # fmt: skip
    return row


def tables(rows: list[Row]) -> str:
    lines = ["| what | way | above the model | ratio | said beforehand |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        if row["bench"] == "fit":
            continue
        said = f"{row['estimate'] / 2**20:,.0f} MiB ({row['estimate'] / row['bytes']:.2f})" if "estimate" in row else ""
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        lines.append(f"| {row['bench']} | {row['variant']} | {row['bytes'] / 2**20:,.0f} MiB | {ratio} | {said} |")
    fits = [{**row, "at": f"{name}, {side} px"} for row in rows for name, preset, side in UNETS
            if row["bench"] == "fit" and row["model"] == preset]  # fmt: skip
    fitting = pivot(fits, "model and training, bfloat16", "variant", "at", lambda row: f"{row['bytes'] / 1e9:.1f} GB")
    return "\n".join(lines) + (f"\n\n{fitting}" if fits else "")


if __name__ == "__main__":
    main()

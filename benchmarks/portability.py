# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left of a spectral shift on another copy of its base: half precisions, 8 bits, a base tuned further.

    python dev.py bench portability

Trains adapters of the same subject and style with the shift in several forms, and computes each one's change of every
weight again on the other copies: how far off is it, did the file's base check say so, and what becomes of the pictures?
Writes ``benchmarks/results/portability.json`` and a table.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from benchmarks.lib.results import Row, write_rows
from soda_core.base_check import BaseReport
from soda_core.base_weight import BaseWeight
from soda_core.spectral import decompose
from testbed import evaluate
from testbed.bed import TestBed
from testbed.captions import captions_of
from testbed.demo_base import checkpoint
from testbed.machine import core_count
from testbed.methods import SODA_LARGE, Method
from testbed.paths import cache_root
from testbed.pretrain import flow
from testbed.recipes import RECIPES
from testbed.world.render import images
from testbed.world.scene import draw_scene
from testbed.world.tasks import STYLE, SUBJECT, Task

FORMS = {
    "SVD, independent": {"decomposition": "svd", "shift_knots": 0},
    "SVD, 64 knots": {"decomposition": "svd", "shift_knots": 64},
    "SVD, 16 knots": {"decomposition": "svd", "shift_knots": 16},
    "SVD, 8 knots": {"decomposition": "svd", "shift_knots": 8},
    "QR": {"decomposition": "qr"},
}
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8 e4m3": torch.float8_e4m3fn}
FURTHER_PICTURES, FURTHER_STEPS, FURTHER_RATE = 256, 100, 1e-5  #: of the copy that is tuned further
PROMPT_COUNT, SAMPLING_STEPS = 6, 8

Weights = dict[str, Tensor]


def copies(bed: TestBed) -> dict[str, Weights]:
    """All weights of the model, by copy."""
    original = {name: p.detach().clone() for name, p in bed.model.named_parameters()}
    made = {name: {n: w.to(dtype).float() for n, w in original.items()} for name, dtype in PRECISIONS.items()}
    return {"fp32": original, **made, "tuned further": further(bed)}


def further(bed: TestBed) -> Weights:
    """The base after more of its own training."""
    random, module = np.random.default_rng(17), copy.deepcopy(bed.model).requires_grad_(True)
    scenes = [draw_scene(random) for _ in range(FURTHER_PICTURES)]
    latents = bed.latent_format.process_in(bed.vae.encode(images(scenes)))
    optimizer = torch.optim.AdamW(module.parameters(), lr=FURTHER_RATE)
    for step in range(FURTHER_STEPS):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(scenes), (8,), generator=generator)
        context = bed.context(captions_of(scenes, rows, generator))
        levels, noise = flow.noise_levels(len(rows), generator), torch.randn(latents[rows].shape, generator=generator)
        optimizer.zero_grad()
        flow.loss_of(module, latents[rows], context, levels, noise).backward()
        optimizer.step()
    return {name: p.detach() for name, p in module.named_parameters()}


def load(bed: TestBed, weights: Weights) -> None:
    with torch.no_grad():
        for name, parameter in bed.model.named_parameters():
            parameter.copy_(weights[name])


def measure(bed: TestBed, bases: Mapping[str, Weights], task: Task, form: str, steps: int) -> list[Row]:
    """Train on the float32 copy, then compute the change of every weight again on each copy. Rows: layers, then all."""
    from testbed.training import train_method

    method = Method(form, "large", {"factor_sizes": SODA_LARGE, **FORMS[form]})
    recipe = RECIPES[task.kind]
    rates = {"rotation_lr": recipe.rotation_lr, "shift_lr": recipe.shift_lr}
    load(bed, bases["fp32"])
    trained = train_method(
        bed.patcher, bed.training_data(task), method, *rates.values(), steps=steps, batch_size=1, seed=0, loss="mse"
    )
    assert trained.adapter is not None
    prompts = evaluate.prompts_of([task], PROMPT_COUNT)
    common = {"task": task.kind, task.kind: task.name, "shift": form, **rates, "steps": steps}
    rows: list[Row] = []
    keys = {name: f"{name.removeprefix('diffusion_model.')}.weight" for name in trained.adapter.layers}
    trained_on = {
        name: decompose(bases["fp32"][keys[name]], layer.decomposition)
        for name, layer in trained.adapter.layers.items()
    }
    for base, weights in bases.items():
        load(bed, weights)
        again: dict[str, Tensor] = {}
        checks, errors, sizes = {}, [], []
        for name, layer in trained.adapter.layers.items():
            weight, there = weights[keys[name]], trained_on[name]
            here = there if base == "fp32" else decompose(weight, layer.decomposition)
            found = BaseWeight(weight, spectra=[here])
            expected = there.delta(layer.shift)
            errors.append(float((here.delta(layer.shift) - expected).norm()))
            sizes.append(float(expected.norm()))
            checks[name] = layer.check_base(found)
            again[name] = layer.delta(found)
            if base != "fp32" and sizes[-1]:  # some of the last block's layers change nothing, so nothing trains them
                rows.append({**common, "base": base, "layer": name, "error": errors[-1] / sizes[-1],
                             "predicted": checks[name].spectral_error})  # fmt: skip
        shown = {which: evaluate.classified(bed, deltas, prompts, 0, SAMPLING_STEPS) for which, deltas in
                 (("again", again), ("as trained", trained.deltas))}  # fmt: skip
        row = {**common, "base": base, "layer": "all", "error": math.hypot(*errors) / math.hypot(*sizes),
               "predicted": BaseReport(checks).spectral_error,
               "pixel_change": float((shown["again"][1] - shown["as trained"][1]).square().mean().sqrt())}  # fmt: skip
        for which, (predictions, _) in shown.items():
            row[which] = evaluate.odds(predictions, prompts)["both"]
        rows.append(row)
        print(
            f"{form:18} {task.name:10} {base:14} off by {row['error']:.2%}, check says {row['predicted']:.2%}, "
            f"pixels {row['pixel_change']:.3f}, {row['as trained']:.2f} -> {row['again']:.2f}",
            flush=True,
        )
    load(bed, bases["fp32"])
    return rows


def rank_correlation(rows: list[Row]) -> float:
    """Spearman's, of what the check says and what is so, over all layers and copies."""
    from scipy.stats import spearmanr

    return float(spearmanr([row["predicted"] for row in rows], [row["error"] for row in rows]).statistic)


def table(rows: list[Row]) -> str:
    """Error of the spectral part over all layers: a line for each form, a column for each copy."""
    bases = [*dict.fromkeys(row["base"] for row in rows if row["base"] != "fp32")]
    lines = [f"| shift | {' | '.join(bases)} | score on fp32 |", "| --- " * (len(bases) + 2) + "|"]
    for form in FORMS:
        of = [row for row in rows if row["shift"] == form and row["layer"] == "all"]
        cells = [" / ".join(f"{r['error']:.1%}" for r in of if r["base"] == base) for base in bases]
        cells.append(" / ".join(f"{r['as trained']:.2f}" for r in of if r["base"] == "fp32"))
        lines.append(f"| {form} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(core_count())
    bed = TestBed(checkpoint(cache_root()))
    bases, rows = copies(bed), []
    for task in (SUBJECT, STYLE):
        for form in FORMS:
            rows += measure(bed, bases, task, form, args.steps)
    layers = [row for row in rows if row["layer"] != "all"]
    for base in ("all copies", *bases):
        of = [row for row in layers if base in ("all copies", row["base"])]
        if of:
            print(f"rank correlation of the base check with the error, {base}: {rank_correlation(of):.3f}")
    print(table(rows))
    write_rows("portability", rows, table(rows))


if __name__ == "__main__":
    main()

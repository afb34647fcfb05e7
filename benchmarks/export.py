# SPDX-License-Identifier: GPL-3.0-or-later
"""What a LoRA keeps of an adapter, in numbers and in pictures.

    python dev.py bench export [--quick] [--steps 100] [--count 24]

Trains a subject and a style as the demo does, exports both at several ranks, to a
given error and exactly, and paints with each from the same noise. Writes ``benchmarks/results/export.json``,
``export.md`` and, of the pictures, ``export.png``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.lib.results import RESULTS, Row, write_run
from testbed import evaluate
from testbed.bed import TestBed
from testbed.demo_base import checkpoint
from testbed.machine import core_count
from testbed.methods import Method
from testbed.paths import cache_root
from testbed.pretrain.loop import sheet
from testbed.recipes import RECIPES
from testbed.world.tasks import STYLE, SUBJECT, Task

VARIANTS: dict[str, dict[str, Any]] = {
    "exact": {"by": "exact"},
    "error 0.1": {"by": "error", "error": 0.1},
    "rank 128": {"rank": 128},
    "rank 32": {"rank": 32},
    "rank 8": {"rank": 8},
}
#: columns of the picture
SHOWN = ("base", "SODA", "error 0.1", "rank 128", "rank 32", "rank 8")


def stored_deltas(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The change of every layer's weight as a loader of the file makes it."""
    deltas = {}
    for name, shape in shapes.items():
        if f"{name}.diff" in tensors:
            deltas[name] = tensors[f"{name}.diff"].float()
        elif f"{name}.alpha" in tensors:
            up, down = (tensors[f"{name}.lora_{part}.weight"].float().flatten(1) for part in ("up", "down"))
            deltas[name] = float(tensors[f"{name}.alpha"]) / down.shape[0] * (up @ down).reshape(shape)
    return deltas


def rows_of(bed: TestBed, task: Task, steps: int | None, count: int, painted: dict[str, Tensor]) -> list[Row]:
    """One row for each way out; ``painted`` takes the first pictures of each."""
    from soda_core.fileformat import to_bytes
    from soda_core.host.export import ModelWeights
    from soda_core.interop.lora import export
    from soda_core.interop.lora_settings import LoraSettings
    from testbed.training import train_method

    recipe = RECIPES[task.kind]
    settings = recipe.settings | {"seed": 0} | ({} if steps is None else {"steps": steps})
    data, method = bed.training_data(task), Method("SODA-SVD curve", "large")
    trained = train_method(bed.patcher, data, method, recipe.rotation_lr, recipe.shift_lr, **settings)
    assert trained.adapter is not None
    weights = ModelWeights(bed.patcher)
    adapter = trained.adapter
    deltas, megabytes = {"base": {}, "SODA": trained.deltas}, {"SODA": len(to_bytes(adapter.layers, {})) / 1e6}
    rows: dict[str, Row] = {name: {} for name in deltas}
    for name, chosen in VARIANTS.items():
        started = time.monotonic()
        made = export(trained.adapter, weights, LoraSettings(**chosen))
        rows[name] = {"left_out": made.report.error, "export_seconds": time.monotonic() - started}
        deltas[name] = stored_deltas(made.tensors, {n: d.shape for n, d in trained.deltas.items()})
        megabytes[name] = made.report.num_bytes / 1e6
    prompts = evaluate.prompts_of([task], count)
    soda = None
    for name in ("SODA", *(n for n in deltas if n != "SODA")):
        predictions, pictures = evaluate.classified(bed, deltas[name], prompts, seed=3)
        soda = pictures if soda is None else soda
        painted[f"{task.kind} {name}"] = pictures[:4]
        rows[name] |= evaluate.odds(predictions, prompts) | {
            "pixel_change": float((pictures - soda).square().mean().sqrt())
        }
    common = {"bench": task.kind, "steps": settings["steps"], "count": count}
    return [{**common, "variant": name, "megabytes": megabytes.get(name), **row} for name, row in rows.items()]


def tables(rows: list[Row]) -> str:
    """A table for each of the two."""
    text = []
    for kind in ("subject", "style"):
        head = f"| {kind} | MB | leaves out | thing x style | pixels changed |"
        text.append(head + "\n" + "| --- " * 5 + "|")
        for row in (row for row in rows if row["bench"] == kind):
            size = "" if row["megabytes"] is None else f"{row['megabytes']:.1f}"
            left_out = "" if "left_out" not in row else f"{row['left_out']:.1%}"
            text[-1] += f"\n| {row['variant']} | {size} | {left_out} | {row['both']:.3f} | {row['pixel_change']:.3f} |"
    return "\n\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps and pictures; nothing is written")
    parser.add_argument("--steps", type=int, help="of each training, instead of the demo's own")
    parser.add_argument("--count", type=int, default=24, help="pictures for each way out")
    args = parser.parse_args()
    steps, count = (6, 4) if args.quick else (args.steps, args.count)
    torch.set_num_threads(core_count())
    bed, painted = TestBed(checkpoint(cache_root())), {}
    rows: list[Row] = []
    for task in (SUBJECT, STYLE):
        rows += rows_of(bed, task, steps, count, painted)
    print(tables(rows))
    if not args.quick:
        write_run("export", rows, tables)
        columns = [painted[f"{task.kind} {name}"][i] for task in (SUBJECT, STYLE) for i in range(4) for name in SHOWN]
        sheet(torch.stack(columns), len(SHOWN), RESULTS / "export.png")


if __name__ == "__main__":
    main()

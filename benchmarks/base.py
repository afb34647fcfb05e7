# SPDX-License-Identifier: GPL-3.0-or-later
"""How well the demo's base model paints, and how well its classifier sees.

    python dev.py bench base [--quick]

The classifier on fresh real pictures, held-out glyphs and styles included, as drawn and through the autoencoder; then
the classifier on what the model paints for prompts of its own world. Writes ``benchmarks/results/base.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.lib.results import Row, write_run
from testbed import evaluate
from testbed.bed import TestBed
from testbed.classifier import STYLE_NAMES, Predictions
from testbed.demo_base import checkpoint
from testbed.evaluate import accuracy
from testbed.machine import core_count
from testbed.paths import cache_root
from testbed.pretrain.classifier import ONE_COLOUR
from testbed.pretrain.data import EVERYTHING
from testbed.pretrain.loop import sheet
from testbed.world.render import images
from testbed.world.scene import Scene, draw_scene

BATCH = 25


def classifier_rows(bed: TestBed, count: int) -> list[Row]:
    random = np.random.default_rng(5)  # no stream of the pretraining begins so
    scenes = [draw_scene(random, EVERYTHING, list(STYLE_NAMES)) for _ in range(count)]
    rows: list[Row] = []
    for through in (False, True):
        parts, errors = [], []
        for part in _parts(scenes):
            drawn = images(part)
            seen = bed.vae.decode(bed.vae.encode(drawn)) if through else drawn
            errors.append((seen - drawn).square().mean((1, 2, 3)))
            parts.append(bed.classified(seen.movedim(-1, 1)))
        row = {
            "bench": "classifier",
            "pictures": "through the autoencoder" if through else "fresh renders",
            "count": count,
        }
        row |= _accuracies(Predictions.joined(parts), scenes)
        if through:
            row["psnr"] = float(-10 * torch.cat(errors).log10().mean())
        rows.append(row)
    return rows


def _accuracies(predictions: Predictions, scenes: Sequence[Scene]) -> Row:
    # some styles leave nothing of a background's colour
    telling = [i for i, s in enumerate(scenes) if s.style not in ONE_COLOUR]
    backgrounds = predictions.backgrounds()
    return {
        "class_accuracy": accuracy(predictions.kinds(), [s.kind for s in scenes]),
        "glyph_accuracy": accuracy(predictions.glyphs(), [s.glyph for s in scenes]),
        "style_accuracy": accuracy(predictions.styles(), [s.style for s in scenes]),
        "background_accuracy": accuracy([backgrounds[i] for i in telling], [scenes[i].background for i in telling]),
    }


def model_row(bed: TestBed, count: int, steps: int) -> tuple[Row, Tensor]:
    """The base model on prompts of what it was trained on, a picture each."""
    prompts = evaluate.plain_prompts(count)
    parts = enumerate(_parts(prompts))
    parts, pictures = zip(*(evaluate.classified(bed, None, part, 100 + i, steps) for i, part in parts), strict=True)
    row = {"bench": "model", "pictures": f"{count} prompts, {steps} steps, guidance 3", "count": count}
    return row | evaluate.accuracies(Predictions.joined(parts), prompts), torch.cat(pictures)


def _parts(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[i : i + BATCH] for i in range(0, len(items), BATCH)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer pictures, half the sampling steps")
    parser.add_argument("--sheet", type=Path, help="also write the painted pictures as one PNG")
    args = parser.parse_args()
    torch.set_num_threads(core_count())
    bed = TestBed(checkpoint(cache_root()))
    rows = classifier_rows(bed, 200 if args.quick else 1000)
    row, pictures = model_row(bed, 48 if args.quick else 200, 12 if args.quick else 25)
    rows.append(row)
    for row in rows:
        print(row["pictures"] + ": " + ", ".join(f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float)))
    if args.sheet:
        sheet(pictures, 20, args.sheet)
    if not args.quick:
        write_run("base", rows)


if __name__ == "__main__":
    main()

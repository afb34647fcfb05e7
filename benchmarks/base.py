# SPDX-License-Identifier: GPL-3.0-or-later
"""How well the demo's base model paints, how much its autoencoder loses, and how well its classifier sees.

    python dev.py bench base [--quick] [--sheet demo/model/samples.jpg]

The classifier on fresh real pictures as drawn and through the autoencoder, held-out glyphs and styles apart; then the
classifier on what the model paints for prompts of its own world, style by style. Writes
``benchmarks/results/base.json`` and two tables.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
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
from testbed.machine import core_count
from testbed.paths import cache_root
from testbed.pretrain.autoencoder import peak_ratio
from testbed.pretrain.classifier import labels_of, right_answers
from testbed.pretrain.data import EVERYTHING
from testbed.pretrain.loop import sheet
from testbed.pretrain.samples import COLUMNS, COUNT, measured
from testbed.world.render import images
from testbed.world.scene import Scene, draw_scene
from testbed.world.vocabulary import HELD_OUT_STYLES, STYLES, SUBJECTS

BATCH = 25
GROUPS: dict[str, Callable[[Scene], bool]] = {
    "all": lambda scene: True,
    "known": lambda scene: scene.glyph not in SUBJECTS and scene.style not in HELD_OUT_STYLES,
    "held-out glyphs": lambda scene: scene.glyph in SUBJECTS,
    "held-out styles": lambda scene: scene.style in HELD_OUT_STYLES,
}


def classifier_rows(bed: TestBed, count: int) -> list[Row]:
    """Of fresh real pictures: shares of right answers, and through the autoencoder also how near they stay in dB."""
    random = np.random.default_rng(5)  # no stream of the pretraining begins so
    scenes = [draw_scene(random, EVERYTHING, list(STYLE_NAMES)) for _ in range(count)]
    groups = {name: torch.tensor([belongs(scene) for scene in scenes]) for name, belongs in GROUPS.items()}
    rows: list[Row] = []
    for pictures in ("fresh renders", "through the autoencoder"):
        parts, ratios = [], []
        for part in _parts(scenes):
            drawn = images(part).movedim(-1, 1)
            seen = drawn if pictures == "fresh renders" else bed.real(part)
            ratios.append(peak_ratio(seen, drawn))
            parts.append(bed.classified(seen))
        values = right_answers(Predictions.joined(parts), labels_of(scenes))
        values["class"] = values.pop("kind")
        if pictures != "fresh renders":
            values["psnr"] = torch.cat(ratios)
        rows += [
            {"bench": "classifier", "pictures": pictures, "group": name, "count": int(some.sum())}
            | {what: float(value[some].nanmean()) for what, value in values.items()}
            for name, some in groups.items()
        ]
    return rows


def model_rows(bed: TestBed, count: int, steps: int) -> tuple[list[Row], list[str], Tensor]:
    """Of the base model on prompts of what it was trained on: rows of all and of each style, prompts and pictures."""
    prompts = evaluate.plain_prompts(count)
    scenes = evaluate.real_scenes(prompts)
    texts = [prompt.text for prompt in prompts]
    painted = torch.cat([bed.sample(None, part, 100 + i, steps) for i, part in enumerate(_parts(texts))])
    real = torch.cat([bed.real(part) for part in _parts(scenes)])
    rows: list[Row] = []
    for name in ("all", *(style for style in STYLES if any(scene.style == style for scene in scenes))):
        some = [i for i, scene in enumerate(scenes) if name in ("all", scene.style)]
        row = {"bench": "model", "pictures": f"samples, {steps} steps, guidance 3", "group": name, "count": len(some)}
        rows.append(row | measured(painted[some], real[some], [scenes[i] for i in some], bed.classifier))
    return rows, texts, painted


def _parts(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[i : i + BATCH] for i in range(0, len(items), BATCH)]


def tables(rows: Sequence[Row]) -> str:
    """One of the classifier and one of the model, whose ``glyph`` is the likeliest one's mean probability."""
    return "\n\n".join(_table([row for row in rows if row["bench"] == bench]) for bench in ("classifier", "model"))


def _table(rows: Sequence[Row]) -> str:
    """An empty cell was not measured, or cannot be told."""
    columns = [*dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, float))]
    lines = [f"| pictures | of | count | {' | '.join(columns)} |", "| --- " * (3 + len(columns)) + "|"]
    for row in rows:
        values = [row.get(column, math.nan) for column in columns]
        cells = ["" if math.isnan(value) else f"{value:.3g}" for value in values]
        lines.append(f"| {row['pictures']} | {row['group']} | {row['count']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer pictures, half the sampling steps")
    parser.add_argument("--sheet", type=Path, help=f"also write the first {COUNT} samples as one picture")
    args = parser.parse_args()
    torch.set_num_threads(core_count())
    bed = TestBed(checkpoint(cache_root()))
    rows = classifier_rows(bed, 200 if args.quick else 1000)
    samples, texts, pictures = model_rows(bed, COUNT if args.quick else 200, 12 if args.quick else 25)
    rows += samples
    print(tables(rows))
    if args.sheet:
        sheet(pictures[:COUNT], COLUMNS, args.sheet)
        print("\n".join(texts[:COUNT]))
    if not args.quick:
        write_run("base", rows, tables)


if __name__ == "__main__":
    main()

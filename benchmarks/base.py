# SPDX-License-Identifier: GPL-3.0-or-later
"""How well the demo's base model paints, and how well its judge sees.

    python dev.py bench base [--quick]

The judge on fresh real pictures, held-out glyphs and styles included, as drawn and through the autoencoder; then the
judge on what the model paints for prompts of its own world. Writes ``benchmarks/results/base.json``: flat rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.lib import evaluate  # noqa: E402
from benchmarks.lib.bed import Bed  # noqa: E402
from benchmarks.lib.evaluate import accuracy  # noqa: E402
from benchmarks.lib.machine import whole, write_rows  # noqa: E402
from demo.judge import STYLES as ALL_STYLES  # noqa: E402
from demo.judge import Verdict  # noqa: E402
from demo.machine import core_count  # noqa: E402
from demo.pretrain.judge import EVERYTHING, ONE_COLOUR  # noqa: E402
from demo.pretrain.loop import sheet  # noqa: E402
from demo.world.render import images  # noqa: E402
from demo.world.scene import Scene, draw_scene  # noqa: E402
from demo.world_model import checkpoint  # noqa: E402
from dev import cache_root  # noqa: E402

Row = dict[str, Any]
BATCH = 25


def judge_rows(bed: Bed, count: int) -> list[Row]:
    random = np.random.default_rng(5)  # no stream of the pretraining begins so
    scenes = [draw_scene(random, EVERYTHING, list(ALL_STYLES)) for _ in range(count)]
    rows: list[Row] = []
    for through in (False, True):
        verdicts, errors = [], []
        for part in _parts(scenes):
            drawn = images(part)
            seen = bed.vae.decode(bed.vae.encode(drawn)) if through else drawn
            errors.append((seen - drawn).square().mean((1, 2, 3)))
            verdicts.append(bed.judged(seen.movedim(-1, 1)))
        row = {"bench": "judge", "pictures": "through the autoencoder" if through else "fresh renders", "count": count}
        row |= _accuracies(Verdict.joined(verdicts), scenes)
        if through:
            row["psnr"] = float(-10 * torch.cat(errors).log10().mean())
        rows.append(row)
    return rows


def _accuracies(verdict: Verdict, scenes: Sequence[Scene]) -> Row:
    # some styles leave nothing of a background's colour
    telling = [i for i, s in enumerate(scenes) if s.style not in ONE_COLOUR]
    backgrounds = verdict.backgrounds()
    return {
        "class_accuracy": accuracy(verdict.kinds(), [s.kind for s in scenes]),
        "glyph_accuracy": accuracy(verdict.glyphs(), [s.glyph for s in scenes]),
        "style_accuracy": accuracy(verdict.styles(), [s.style for s in scenes]),
        "background_accuracy": accuracy([backgrounds[i] for i in telling], [scenes[i].background for i in telling]),
    }


def model_row(bed: Bed, count: int, steps: int) -> tuple[Row, Tensor]:
    """The base model on prompts of what it was trained on, a picture each."""
    prompts = evaluate.plain_prompts(count)
    parts = enumerate(_parts(prompts))
    verdicts, pictures = zip(*(evaluate.judged(bed, None, part, 100 + i, steps) for i, part in parts), strict=True)
    row = {"bench": "model", "pictures": f"{count} prompts, {steps} steps, guidance 3", "count": count}
    return row | evaluate.accuracies(Verdict.joined(verdicts), prompts), torch.cat(pictures)


def _parts(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[i : i + BATCH] for i in range(0, len(items), BATCH)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer pictures, half the sampling steps")
    parser.add_argument("--sheet", type=Path, help="also write the painted pictures as one PNG")
    args = parser.parse_args()
    torch.set_num_threads(core_count())
    bed = Bed(checkpoint(cache_root()))
    rows = judge_rows(bed, 200 if args.quick else 1000)
    row, pictures = model_row(bed, 48 if args.quick else 200, 12 if args.quick else 25)
    rows.append(row)
    for row in rows:
        print(row["pictures"] + ": " + ", ".join(f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float)))
    if args.sheet:
        sheet(pictures, 20, args.sheet)
    if not args.quick:
        write_rows("base", [*rows, whole()])


if __name__ == "__main__":
    main()

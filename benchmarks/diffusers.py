# SPDX-License-Identifier: GPL-3.0-or-later
"""How near diffusers comes to ComfyUI: one prediction of every family, and pictures of the demo's base model.

    python dev.py bench diffusers

An adapter is applied in ComfyUI and loaded with ``soda_core.interop.diffusers``; latents, text and time are the same,
everything is float32. Writes ``benchmarks/results/diffusers.json`` and a table.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lib.models import random_adapter
from benchmarks.lib.results import Row, write_rows
from soda_core import SodaAdapter
from soda_core.interop.diffusers import load, unload
from soda_core.targets import select
from soda_core.training.settings import TrainSettings
from testbed import checkpoints, demo_base, diffusers_models
from testbed.bed import POOLED, TestBed
from testbed.evaluate import subject_prompts
from testbed.host import import_host
from testbed.machine import core_count
from testbed.methods import METHODS
from testbed.paths import cache_root
from testbed.predictions import PREDICTIONS
from testbed.recipes import RECIPES
from testbed.world.tasks import SUBJECT

PICTURES, SAMPLING_STEPS = 6, 16


@torch.no_grad()
def predictions(preset: str, folder: Path) -> list[Row]:
    """The largest difference between both predictions, of the base model and with an adapter."""
    import comfy.sd

    from soda_core.host import apply, base, spectra

    spectra.store().disk_limit = 0  # nothing of a benchmark in the user's folders
    parts = checkpoints.build(preset, clip="none")
    path = checkpoints.write(folder / f"{preset}.safetensors", parts, "f32")
    with torch.inference_mode():
        model = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False, output_clip=False)[0]
    theirs = diffusers_models.build(preset, parts["unet"])
    shapes = base.layer_shapes(model)
    wanted = {name: shapes[name] for name in select(shapes, "attention + feed-forward")}
    adapter = random_adapter(model, wanted, TrainSettings(shift_knots=0), seed=0)
    in_comfy, in_diffusers, inputs = PREDICTIONS[preset]
    rows, before = [], torch.zeros(())
    for what in ("base", "adapted"):
        with torch.inference_mode():
            patched = model if what == "base" else apply.apply_adapter(model, None, adapter)[0]
            comfy.model_management.load_models_gpu([patched])
            expected = in_comfy(patched.model.diffusion_model, inputs).clone()
        if what == "adapted":
            load(theirs, adapter)
        difference = float((in_diffusers(theirs, inputs) - expected).abs().max())
        change = float((expected - before).abs().max()) if what == "adapted" else None
        rows.append({"model": preset, "what": what, "difference": difference, "largest": float(expected.abs().max()),
                     "change": change, "layers": len(wanted)})  # fmt: skip
        before = expected
    return rows


class AsHost(nn.Module):
    """A diffusers transformer of SD3's kind called as ComfyUI's is."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.transformer(x, context, x.new_zeros(len(x), POOLED), t).sample


@torch.no_grad()
def pictures(steps: int) -> list[Row]:
    """The demo's base model after training a subject: the same pictures from both, compared in 8 bits."""
    from testbed.training import train_method

    bed = TestBed(demo_base.checkpoint(cache_root()))
    method, recipe = METHODS["SODA-SVD curve-large"], RECIPES["subject"]
    rates = recipe.rotation_lr, recipe.shift_lr
    with torch.enable_grad():
        trained = train_method(bed.patcher, bed.training_data(SUBJECT), method, *rates, steps=steps, seed=0, loss="mse")
    if trained.adapter is None:
        raise RuntimeError(f"{method.key} leaves no adapter")
    theirs = diffusers_models.build(demo_base.PRESET, demo_base.parts()["unet"])
    texts = [prompt.text for prompt in subject_prompts(SUBJECT, PICTURES)]
    return [
        _compared("base", None, bed.sample(None, texts, 0, SAMPLING_STEPS), bed, theirs, texts),
        _compared("adapted", trained.adapter, bed.sample(trained.deltas, texts, 0, SAMPLING_STEPS), bed, theirs, texts),
    ]


def _compared(
    what: str, adapter: SodaAdapter | None, expected: Tensor, bed: TestBed, theirs: Any, texts: list[str]
) -> Row:
    if adapter is not None:
        load(theirs, adapter)
    found = _drawn(bed, theirs, texts)
    unload(theirs)
    steps = (255 * expected).round() - (255 * found).round()  # of 256
    return {
        "model": "demo", "what": what, "pictures": len(texts), "difference": float(steps.abs().max()),
        "differing": float((steps != 0).float().mean()),
    }  # fmt: skip


def _drawn(bed: TestBed, transformer: Any, texts: list[str]) -> Tensor:
    """By the test bed, with another model in the place of its own."""
    own, bed.model = bed.model, AsHost(transformer)
    try:
        return bed.sample(None, texts, 0, SAMPLING_STEPS)
    finally:
        bed.model = own


def table(rows: list[Row]) -> str:
    lines = [
        "| model | largest value | base: largest difference | the adapter changes by | adapted: largest difference |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["model"] for row in rows if "largest" in row):
        base, adapted = (row for row in rows if row["model"] == name and "largest" in row)
        lines.append(
            f"| {name} | {base['largest']:.1f} | {base['difference']:.1e} | {adapted['change']:.2g} | "
            f"{adapted['difference']:.1e} |"
        )
    lines += [
        f"\n{row['pictures']} pictures, {row['what']}: values differ by at most {row['difference']:.0f} of 255, "
        f"{row['differing']:.2%} of them at all."
        for row in rows
        if "pictures" in row
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="of the subject's training")
    args = parser.parse_args()
    torch.set_num_threads(core_count())
    import_host()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for preset in PREDICTIONS:
            if preset != demo_base.PRESET:
                rows += predictions(preset, Path(folder))
    rows += pictures(args.steps)
    print(table(rows))
    write_rows("diffusers", rows, table(rows))


if __name__ == "__main__":
    main()

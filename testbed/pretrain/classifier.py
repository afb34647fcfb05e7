# SPDX-License-Identifier: GPL-3.0-or-later
"""The classifier: learns class, glyph, style and background of the whole world, held-out parts included."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from testbed.classifier import CLASS_NAMES, GLYPH_NAMES, STYLE_NAMES, Classifier, Predictions
from testbed.paths import cache_root
from testbed.pretrain.data import Stream, floats, pictures
from testbed.pretrain.loop import Plan, batch_of, fit, kept
from testbed.pretrain.unet import load_codec
from testbed.world.render import SIDE
from testbed.world.scene import Scene
from testbed.world.vocabulary import BACKGROUNDS, CLASSES, SUBJECTS

EVERYTHING = {
    kind: [*glyphs, *(name for name, (of, _) in SUBJECTS.items() if of == kind)] for kind, glyphs in CLASSES.items()
}
STREAM = Stream("classifier", seed=3, styles=STYLE_NAMES, classes=EVERYTHING)
TEST_STREAM = Stream("classifier-test", seed=4, styles=STYLE_NAMES, classes=EVERYTHING)
#: styles that leave nothing of a background's colour
ONE_COLOUR = ("sepia print", "blueprint", "thermal camera")
TEST = 2000


def labels_of(scenes: list[Scene]) -> dict[str, Tensor]:
    """Right answers as indices; -100 for backgrounds that cannot be told."""
    backgrounds = [-100 if s.style in ONE_COLOUR else BACKGROUNDS.index(s.background) for s in scenes]
    return {
        "glyph": torch.tensor([GLYPH_NAMES.index(s.glyph) for s in scenes]),
        "kind": torch.tensor([CLASS_NAMES.index(s.kind) for s in scenes]),
        "style": torch.tensor([STYLE_NAMES.index(s.style) for s in scenes]),
        "background": torch.tensor(backgrounds),
    }


def loss_of(predictions: Predictions, labels: dict[str, Tensor]) -> Tensor:
    losses = {what: F.cross_entropy(getattr(predictions, what), label) for what, label in labels.items()}
    return losses["glyph"] + losses["kind"] + 0.5 * (losses["style"] + losses["background"])


def disturbed(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted by up to four pixels, a little noise and other brightness: samples are not exact renders."""
    dy, dx = torch.randint(-4, 5, (2,), generator=generator).tolist()
    batch = F.pad(batch, (4, 4, 4, 4), mode="replicate")[..., 4 + dy : 4 + dy + SIDE, 4 + dx : 4 + dx + SIDE]
    batch = batch * (1 + 0.1 * torch.randn(len(batch), 1, 1, 1, generator=generator))
    return (batch + 0.02 * torch.randn(batch.shape, generator=generator)).clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=7e-4)
    parser.add_argument("--pictures", type=int, default=16_000)
    parser.add_argument("--decoded", type=int, default=3_000, help="how many of them also pass the autoencoder")
    parser.add_argument("--work", type=Path, default=cache_root() / "pretrain")
    args = parser.parse_args()
    codec = load_codec(args.work)

    def through_codec(data: Tensor) -> Tensor:
        parts = [codec.taesd_decoder(codec.taesd_encoder(floats(part))) for part in data.split(50)]
        return torch.cat(parts).clamp(0, 1).mul(255).to(torch.uint8).permute(0, 2, 3, 1)

    data, scenes = pictures(STREAM, args.pictures, args.work)
    test, test_scenes = pictures(TEST_STREAM, TEST, args.work)
    decoded = kept(
        args.work / f"classifier-decoded-{args.decoded}.safetensors",
        lambda: {"test": through_codec(test[: TEST // 4]), "pictures": through_codec(data[: args.decoded])},
    )
    test_decoded, data = decoded["test"], torch.cat([data, decoded["pictures"]])
    labels, test_labels = labels_of(scenes + scenes[: args.decoded]), labels_of(test_scenes)
    torch.manual_seed(0)
    module = Classifier().to(memory_format=torch.channels_last)

    def step(_: int, generator: torch.Generator) -> Tensor:
        from_codec = args.pictures + batch_of(args.decoded, args.batch // 2, generator)
        rows = torch.cat([batch_of(args.pictures, args.batch - args.batch // 2, generator), from_codec])
        batch = disturbed(floats(data[rows]), generator)
        return loss_of(module(batch), {what: label[rows] for what, label in labels.items()})

    def look(_: int) -> None:
        for name, of in (("fresh renders", test), ("through the autoencoder", test_decoded)):
            parts = [module(floats(part)) for part in of.split(250)]
            said = {what: torch.cat([getattr(v, what) for v in parts]).argmax(1) for what in test_labels}
            right = {what: said[what] == label[: len(of)] for what, label in test_labels.items()}
            known = test_labels["background"][: len(of)] >= 0
            right["background"] = right["background"][known]
            print(f"  {name}: " + ", ".join(f"{what} {r.float().mean():.3f}" for what, r in right.items()), flush=True)
            worst = {
                s: float(right["kind"][test_labels["style"][: len(of)] == i].float().mean())
                for i, s in enumerate(STYLE_NAMES)
            }
            print("    class by style: " + ", ".join(f"{s} {v:.2f}" for s, v in worst.items()), flush=True)

    fit(module, step, Plan(args.steps, args.lr, ema=0.995, look_every=1000), args.work / "classifier", look)


if __name__ == "__main__":
    main()

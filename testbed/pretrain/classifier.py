# SPDX-License-Identifier: GPL-3.0-or-later
"""The classifier: learns class, glyph, style and background of the whole world, held-out parts included."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testbed.classifier import CLASS_NAMES, GLYPH_NAMES, STYLE_NAMES, Predictions, load_classifier
from testbed.pretrain import autoencoder
from testbed.pretrain.compute import Compute, use_threads
from testbed.pretrain.data import EVERYTHING, Stream, floats, pictures
from testbed.pretrain.loop import PretrainSettings, batch_of, fit, kept, latest
from testbed.world.render import SIDE
from testbed.world.scene import Scene
from testbed.world.vocabulary import BACKGROUNDS, HELD_OUT_STYLES, SUBJECTS

SETTINGS = PretrainSettings(steps=1000, lr=7e-4, batch=24, decay=600, ema=0.995, look_every=250, threads=1)
STREAM = Stream("classifier", seed=3, styles=STYLE_NAMES, classes=EVERYTHING)
TEST_STREAM = Stream("classifier-test", seed=4, styles=STYLE_NAMES, classes=EVERYTHING)
PICTURES, DECODED = 3000, 600  #: pictures, and how many of them also pass the autoencoder
TEST, TEST_DECODED = 500, 200
#: styles that leave nothing of a background's colour
ONE_COLOUR = ("sepia print", "blueprint", "thermal camera")
MOVED = 8  #: pixels that a picture is moved at most


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
    losses = {what: F.cross_entropy(getattr(predictions, what).float(), label) for what, label in labels.items()}
    return losses["glyph"] + losses["kind"] + 0.5 * (losses["style"] + losses["background"])


def disturbed(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Moved, with a little noise and other brightness: samples are not exact renders."""
    dy, dx = torch.randint(2 * MOVED + 1, (2,), generator=generator).tolist()
    batch = F.pad(batch, (MOVED,) * 4, mode="replicate")[..., dy : dy + SIDE, dx : dx + SIDE]
    batch = batch * (1 + 0.1 * torch.randn(len(batch), 1, 1, 1, generator=generator))
    return (batch + 0.02 * torch.randn(batch.shape, generator=generator)).clamp(0, 1)


def through_codec(codec: nn.Module, data: Tensor, compute: Compute) -> Tensor:
    """Stored pictures after the autoencoder, as they are stored."""
    parts = []
    for part in data.split(16):
        with torch.no_grad(), compute.autocast():
            again = codec.taesd_decoder(codec.taesd_encoder(floats(part).to(compute.device)))
        parts.append(again.float().clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
    return torch.cat(parts)


def right_answers(predictions: Predictions, labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """Which answers are right, 1 or 0 and nan where there is none to give; (n,) each."""
    right = {what: (getattr(predictions, what).argmax(1) == label).float() for what, label in labels.items()}
    return {what: torch.where(labels[what] < 0, torch.nan, hits) for what, hits in right.items()}


def accuracies(
    predictions: Predictions, labels: dict[str, Tensor], scenes: list[Scene], prefix: str
) -> dict[str, float]:
    """Shares of right answers, over all and over held-out glyphs (class) and styles (style)."""
    right = right_answers(predictions, labels)
    new_glyph = torch.tensor([s.glyph in SUBJECTS for s in scenes])
    new_style = torch.tensor([s.style in HELD_OUT_STYLES for s in scenes])
    shares = {what: float(hits.nanmean()) for what, hits in right.items()}
    shares |= {"new_kind": float(right["kind"][new_glyph].mean()), "new_style": float(right["style"][new_style].mean())}
    return {f"{prefix}_{what}": share for what, share in shares.items()}


def train(work: Path, settings: PretrainSettings = SETTINGS) -> None:
    """Begins with the shipped classifier."""
    use_threads(settings.threads)
    found = Compute.find()
    device = found.device
    codec = autoencoder.load(work).to(device)
    found = found.faster(lambda: codec.taesd_encoder(torch.rand(4, 3, SIDE, SIDE, device=device)))
    data, scenes = pictures(STREAM, PICTURES, work)
    test, test_scenes = pictures(TEST_STREAM, TEST, work)
    decoded = kept(
        work / f"classifier-decoded-{DECODED}-{autoencoder.fingerprint(latest(work, 'autoencoder'))}.safetensors",
        lambda: {
            "test": through_codec(codec, test[:TEST_DECODED], found),
            "pictures": through_codec(codec, data[:DECODED], found),
        },
    )
    labels, test_labels = labels_of(scenes), labels_of(test_scenes)
    module = load_classifier().requires_grad_(True).to(device, memory_format=torch.channels_last)

    def step(_: int, generator: torch.Generator) -> Tensor:
        half = settings.batch // 2
        fresh = batch_of(PICTURES, settings.batch - half, generator)
        again = batch_of(DECODED, half, generator)
        batch = disturbed(floats(torch.cat([data[fresh], decoded["pictures"][again]])), generator)
        batch = batch.contiguous(memory_format=torch.channels_last).to(device)
        rows = torch.cat([fresh, again])
        return loss_of(module(batch), {what: label[rows].to(device) for what, label in labels.items()})

    def look(_: int) -> dict[str, float]:
        shares: dict[str, float] = {}
        for prefix, of in (("fresh", test), ("decoded", decoded["test"])):
            predictions = Predictions.joined([module(floats(part).to(device)).to("cpu") for part in of.split(100)])
            known = {what: label[: len(of)] for what, label in test_labels.items()}
            shares |= accuracies(predictions, known, test_scenes[: len(of)], prefix)
        return shares

    fit(module, step, settings, work / "classifier", look)

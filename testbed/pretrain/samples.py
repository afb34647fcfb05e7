# SPDX-License-Identifier: GPL-3.0-or-later
"""What the model paints while it is trained: a sheet to look at, and what the classifier says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from testbed.captions import Captions, captions_of
from testbed.classifier import GLYPH_NAMES, Classifier
from testbed.pretrain import autoencoder
from testbed.pretrain.flow import sampled
from testbed.pretrain.latents import Latents
from testbed.pretrain.loop import latest, sheet
from testbed.world.scene import Scene
from testbed.world.vocabulary import CLASSES

COUNT, COLUMNS = 48, 8
BATCH = 8


@dataclass(frozen=True)
class Samples:
    """The first scenes of a stream, which are never trained on, painted again from their captions."""

    data: Latents
    captions: Captions
    codec: nn.Module
    classifier: Classifier

    @classmethod
    def load(cls, work: Path, data: Latents, captions: Captions) -> Samples:
        network = Classifier()
        network.load_state_dict(latest(work, "classifier"))
        return cls(data, captions, autoencoder.load(work), network.eval().requires_grad_(False))

    @torch.no_grad()
    def draw(self, module: nn.Module, device: torch.device, path: Path) -> dict[str, float]:
        """Write a sheet, and its captions beside it; see :func:`measured`."""
        rows = torch.arange(COUNT)
        texts = captions_of(self.data.scenes, rows, torch.Generator().manual_seed(5), unconditional=0)
        noise = torch.randn(COUNT, *self.data.values.shape[1:], generator=torch.Generator().manual_seed(1))
        found = [
            sampled(module, *(value.to(device) for value in (part, self.captions(list(some)), self.captions([""]))))
            for part, some in zip(noise.split(BATCH), _parts(texts), strict=True)
        ]
        painted = self._decoded(torch.cat(found).cpu())
        sheet(painted, COLUMNS, path)
        path.with_suffix(".txt").write_text("\n".join(texts), encoding="utf-8")
        return measured(painted, self._decoded(self.data.normal(rows)), self.data.scenes[:COUNT], self.classifier)

    def _decoded(self, normal: Tensor) -> Tensor:
        parts = self.data.raw(normal).split(BATCH)
        return torch.cat([self.codec.taesd_decoder(part).float().clamp(0, 1) for part in parts])


def measured(painted: Tensor, real: Tensor, scenes: list[Scene], classifier: Classifier) -> dict[str, float]:
    """Shares of pictures with the right class, style and background, and how clear they are.

    Args:
        painted, real: pictures (n, 3, side, side) in 0..1, those real having passed the autoencoder.

    Returns:
        also ``glyph``, the mean probability of the likeliest glyph of the right class, and ``sharpness``, the mean
        gradient against that of real pictures.
    """
    predictions = classifier(painted)
    odds = predictions.glyph.float().softmax(1)
    ours = [[GLYPH_NAMES.index(name) for name in CLASSES[scene.kind]] for scene in scenes]
    right = {
        "class": [said == scene.kind for said, scene in zip(predictions.kinds(), scenes, strict=True)],
        "style": [said == scene.style for said, scene in zip(predictions.styles(), scenes, strict=True)],
        "background": [said == scene.background for said, scene in zip(predictions.backgrounds(), scenes, strict=True)],
    }
    return {what: sum(hits) / len(hits) for what, hits in right.items()} | {
        "glyph": float(torch.stack([row[some].max() for row, some in zip(odds, ours, strict=True)]).mean()),
        "sharpness": float(autoencoder.sharpness(painted).mean() / autoencoder.sharpness(real).mean()),
    }


def _parts(texts: list[str]) -> list[list[str]]:
    return [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]

# SPDX-License-Identifier: GPL-3.0-or-later
"""The model's pictures as latents, and what the classifier sees in them.

Kept on disk in parts: drawing and encoding them takes longer than a safe point.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from testbed.checkpoints.presets import FAMILIES
from testbed.classifier import load_classifier
from testbed.pretrain import autoencoder
from testbed.pretrain.compute import Compute, Ranks, use_threads
from testbed.pretrain.data import Stream, drawn, floats, scenes_of
from testbed.pretrain.loop import kept, latest
from testbed.world.render import SIDE
from testbed.world.scene import Scene

STREAM = Stream("model", seed=2)
PICTURES = 5120
PART = 512  #: pictures in a file
BATCH = 16


@dataclass(frozen=True)
class Latents:
    """Pictures' latents as the encoder gives them, their scenes, and what makes them of unit deviation.

    Attributes:
        values: float16 of shape (n, 16, 24, 24).
        parts: float16 features of the pictures' parts, (n, 128, 12, 12).
        shapes: float16 features of larger parts, (n, 256, 6, 6).
    """

    values: Tensor
    parts: Tensor
    shapes: Tensor
    scenes: list[Scene]
    middle: float
    deviation: float

    def normal(self, rows: Tensor) -> Tensor:
        """Some latents as the model sees them, float32."""
        return (self.values[rows].float() - self.middle) / self.deviation

    def seen(self, rows: Tensor) -> Tensor:
        """What the classifier sees at each token's place, of unit deviation: (len(rows), 144, 384)."""
        parts, shapes = (
            (values[rows].float() - middle) / deviation
            for values, (middle, deviation) in zip((self.parts, self.shapes), self._feature_statistics, strict=True)
        )
        return torch.cat([parts, F.interpolate(shapes, scale_factor=2.0)], 1).flatten(2).mT

    @cached_property
    def _feature_statistics(self) -> list[tuple[Tensor, Tensor]]:
        some = (values[:PART].float() for values in (self.parts, self.shapes))
        return [(s.mean((0, 2, 3), keepdim=True), s.std((0, 2, 3), keepdim=True) + 1e-3) for s in some]

    def raw(self, normal: Tensor) -> Tensor:
        """The model's latents as the decoder takes them."""
        return normal * self.deviation + self.middle


def known(work: Path, count: int | None = None) -> Latents:
    """The first ``count`` pictures of the stream as latents; those that are not there yet are made."""
    count = count or PICTURES
    use_threads(1)
    compute = Compute.find()
    codec = autoencoder.load(work).to(compute.device)
    compute = compute.faster(lambda: codec.taesd_encoder(torch.rand(BATCH, 3, SIDE, SIDE, device=compute.device)))
    classifier = load_classifier().to(compute.device)

    def encoded(start: int) -> dict[str, Tensor]:
        found: list[tuple[Tensor, ...]] = []
        with torch.no_grad(), compute.autocast():
            for some in drawn(STREAM, start, PART).split(BATCH):
                pictures = floats(some).to(compute.device)
                found.append((codec.taesd_encoder(pictures), *classifier.features(pictures)[1:]))
        values = (torch.cat(some).half().cpu() for some in zip(*found, strict=True))
        return dict(zip(("values", "parts", "shapes"), values, strict=True))

    folder = work / f"latents-{autoencoder.fingerprint(latest(work, 'autoencoder'), autoencoder.ENCODER)}"
    paths = {start: folder / f"{start:06}.safetensors" for start in range(0, count, PART)}
    ranks = Ranks.find()
    for start in list(paths)[ranks.number :: ranks.count]:
        kept(paths[start], lambda at=start: encoded(at))
        print(f"latents: {start + PART} of {count}", flush=True)
    ranks.wait()
    made = [load_file(path) for path in paths.values()]
    tensors = {name: torch.cat([part[name] for part in made]) for name in made[0]}
    # of the first part alone, which every later run has too
    first = made[0]["values"].float()
    scenes = list(itertools.islice(scenes_of(STREAM), len(tensors["values"])))
    return Latents(**tensors, scenes=scenes, middle=float(first.mean()), deviation=float(first.std()))


def host_scalars(latents: Latents) -> dict[str, Tensor]:
    """The host's ``vae_scale`` and ``vae_shift``, with which its SD3 latents are the model's."""
    sd3 = FAMILIES["sd3"]  # there, scale and shift are those of the latent format
    scale = latents.deviation * sd3.scale
    return {"vae_scale": torch.tensor(scale), "vae_shift": torch.tensor(sd3.shift - latents.middle / scale)}

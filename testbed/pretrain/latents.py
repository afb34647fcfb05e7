# SPDX-License-Identifier: GPL-3.0-or-later
"""The model's pictures as latents, kept on disk in parts: drawing and encoding them takes longer than a safe point."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from testbed.checkpoints.presets import FAMILIES
from testbed.pretrain import autoencoder
from testbed.pretrain.compute import Compute, use_threads
from testbed.pretrain.data import SIDE, Stream, drawn, floats, scenes_of
from testbed.pretrain.loop import kept
from testbed.world.scene import Scene

STREAM = Stream("model", seed=2)
PICTURES = 8192
PART = 512  #: pictures in a file
BATCH = 16


@dataclass(frozen=True)
class Latents:
    """Pictures' latents as the encoder gives them, their scenes, and what makes them of unit deviation.

    Attributes:
        values: float16 of shape (n, 16, 24, 24).
    """

    values: Tensor
    scenes: list[Scene]
    middle: float
    deviation: float

    def normal(self, rows: Tensor) -> Tensor:
        """Some latents as the model sees them, float32."""
        return (self.values[rows].float() - self.middle) / self.deviation

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
    parts: list[Tensor] = []

    def encoded(start: int) -> Tensor:
        pictures = drawn(STREAM, start, PART)
        with torch.no_grad(), compute.autocast():
            values = [codec.taesd_encoder(floats(some).to(compute.device)) for some in pictures.split(BATCH)]
        return torch.cat(values).half().cpu()

    folder = work / f"latents-{autoencoder.fingerprint(work, autoencoder.ENCODER)}"
    for start in range(0, count, PART):
        parts.append(kept(folder / f"{start:06}.safetensors", lambda at=start: {"latents": encoded(at)})["latents"])
        print(f"latents: {start + PART} of {count}", flush=True)
    values = torch.cat(parts)
    # of the first part alone, which every later run has too
    middle, deviation = float(parts[0].float().mean()), float(parts[0].float().std())
    return Latents(values, list(itertools.islice(scenes_of(STREAM), len(values))), middle, deviation)


def host_scalars(latents: Latents) -> dict[str, Tensor]:
    """The host's ``vae_scale`` and ``vae_shift``, with which its SD3 latents are the model's."""
    sd3 = FAMILIES["sd3"]  # there, scale and shift are those of the latent format
    scale = latents.deviation * sd3.scale
    return {"vae_scale": torch.tensor(scale), "vae_shift": torch.tensor(sd3.shift - latents.middle / scale)}

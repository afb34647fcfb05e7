# SPDX-License-Identifier: GPL-3.0-or-later
"""The test bed: the demo's base model in the host, its world as data, its classifier as measure."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from testbed.captions import Captions
from testbed.checkpoints.presets import FAMILIES
from testbed.classifier import Predictions, load_classifier
from testbed.host import import_host
from testbed.pretrain.flow import sampled
from testbed.text_encoder import filled
from testbed.world.render import SIDE, images
from testbed.world.scene import Scene
from testbed.world.tasks import Task

CHANNELS = FAMILIES["sd3"].latent
POOLED = 2048  #: numbers that the host has of a whole text, CLIP-L's and CLIP-G's


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what a right picture shows."""

    text: str
    kind: str
    background: str
    style: str
    glyph: str | None = None  #: where not any of its class will do


class TestBed:
    """The base model, loaded once; samples with any change of its weights.

    Args:
        fast: sample with products in bfloat16, which many processors do faster.
    """

    __test__ = False  # pytest: no tests in here

    def __init__(self, checkpoint: Path, fast: bool = False) -> None:
        import_host()
        import comfy.sd

        from soda_core.host import spectra

        logging.getLogger().setLevel(logging.WARNING)  # the host speaks of every run
        spectra.store().disk_limit = 0  # nothing of a benchmark in the user's folders
        with torch.inference_mode(False):
            self.patcher, _, self.vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_clip=False)
            comfy.model_management.load_models_gpu([self.patcher])
        self.vae.first_stage_model.requires_grad_(False)
        self.model = self.patcher.model.diffusion_model.float()
        self.latent_format = self.patcher.model.latent_format
        self.fast = fast
        self.device = next(self.model.parameters()).device
        self.captions, self.classifier = Captions(), load_classifier()

    # ------------------------------------------------------------------------------------------------------- data

    def training_data(self, task: Task, prior: int = 0) -> Any:
        """The pack's training data for a task's five pictures.

        Args:
            prior: so many of the base model's own pictures of the class go along, for prior preservation.
        """
        from soda_core.host.training import TrainingData

        scenes = task.scenes()
        latents = self.vae.encode(images(scenes))
        captions, plain = task.captions(scenes)
        own = {}
        if prior:
            texts = [plain[i % len(plain)] for i in range(prior)]
            sampled = self.sample(None, texts, seed=1).movedim(1, -1)
            own = {
                "class_latents": [{"samples": self.vae.encode(sampled)}],
                "class_positive": [self.conditioning(texts)],
            }
        return TrainingData(
            **own,
            latents=[{"samples": latents}],
            positive=[self.conditioning(captions)],
            base_positive=[self.conditioning(plain)],
        )

    def context(self, texts: Sequence[str]) -> Tensor:
        """What the model is told of texts: (len(texts), 77, 4096)."""
        return filled(self.captions(list(texts)))

    def conditioning(self, texts: Sequence[str]) -> list[Any]:
        """Of texts as the host has it. SD3's family asks for a pooled vector, which is zero here."""
        return [[context[None], {"pooled_output": torch.zeros(1, POOLED)}] for context in self.context(texts)]

    def real(self, scenes: Sequence[Scene]) -> Tensor:
        """Real pictures (n, 3, SIDE, SIDE) in 0..1, through the autoencoder as samples are."""
        return self.vae.decode(self.vae.encode(images(scenes))).movedim(-1, 1).clamp(0, 1)

    def deltas_of(self, adapter: Any) -> dict[str, Tensor]:
        """The change an adapter makes of every layer's weight, at strength 1."""
        from soda_core.base_weight import BaseWeight
        from soda_core.host.spectra import store

        weights = {name: self._layer(name).weight.data for name in adapter.layers}
        return {
            name: layer.delta(BaseWeight(weights[name], self.device, store().get))
            for name, layer in adapter.layers.items()
        }

    def _layer(self, name: str) -> torch.nn.Module:
        return self.model.get_submodule(name.removeprefix("diffusion_model."))

    # --------------------------------------------------------------------------------------------------- sampling

    @torch.no_grad()
    def sample(
        self,
        deltas: Mapping[str, Tensor] | None,
        texts: Sequence[str],
        seed: int,
        steps: int = 16,
        guidance: float = 3.0,
    ) -> Tensor:
        """Pictures (n, 3, SIDE, SIDE) in 0..1 by Euler's steps.

        Picture i of a seed starts from the same noise for every method.
        """
        noise = torch.stack([
            torch.randn(
                CHANNELS, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(seed * 10007 + i)
            )
            for i in range(len(texts))
        ])  # fmt: skip
        with self._changed(deltas or {}), torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast):
            inputs = (noise, self.context(texts), self.context([""]))
            x = sampled(self.model, *(part.to(self.device) for part in inputs), steps, guidance)
        return self.vae.decode(self.latent_format.process_out(x.float())).movedim(-1, 1).clamp(0, 1)

    @contextmanager
    def _changed(self, deltas: Mapping[str, Tensor]) -> Iterator[None]:
        """The model with changes added to its weights."""
        weights = {name: self._layer(name).weight for name in deltas}
        originals = {name: weight.data for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.data = weight.data + deltas[name].to(self.device)
        try:
            yield
        finally:
            for name, weight in weights.items():
                weight.data = originals[name]

    def classified(self, pictures: Tensor) -> Predictions:
        return self.classifier(pictures.detach().float().cpu())

# SPDX-License-Identifier: GPL-3.0-or-later
"""Training data as the host's nodes hand them over: latents and conditioning, single or as lists."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...errors import SettingsError, TrainingError
from ..versions import join_conds
from .training_copy import ordinary

#: Told to guidance-distilled models whose captions say nothing else: at 1 they predict what pictures look like, not
#: what pictures with guidance look like. Common trainers do so.
TRAINING_GUIDANCE = 1.0


@dataclass(frozen=True)
class TrainingData:
    """What the graph hands over; every sequence holds the host's own types."""

    latents: Sequence[dict[str, Any]]
    positive: Sequence[Any]
    base_positive: Sequence[Any] | None = None  #: captions without the placeholder word, for DCO
    class_latents: Sequence[dict[str, Any]] | None = None  #: prior preservation
    class_positive: Sequence[Any] | None = None
    negative: Sequence[Any] | None = None  #: previews only
    vae: Any | None = None  #: previews only
    preview_positive: Sequence[Any] | None = None  #: prompts of previews; without them the first caption


@dataclass(frozen=True)
class Example:
    """One picture: its latent in the model's own scale, and what the model is conditioned on."""

    latent: Tensor  #: ``(1, C, …)``
    conds: dict[str, Any]  #: the host's COND objects by name, batch 1
    base_conds: dict[str, Any] | None = None  #: the same for the caption without the placeholder word


@dataclass(frozen=True)
class Buckets:
    """Examples by latent shape: only like shapes share a batch."""

    groups: list[list[Example]]

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)

    def draw(self, count: int, generator: torch.Generator) -> list[Example]:
        """A batch from one bucket, drawn in proportion to size; repeats only when there are fewer pictures."""
        weights = torch.tensor([float(len(group)) for group in self.groups])
        group = self.groups[int(torch.multinomial(weights, 1, generator=generator))]
        order = torch.randperm(len(group), generator=generator).tolist()
        return [group[order[i % len(group)]] for i in range(count)]

    def largest(self, count: int) -> list[Example]:
        """A batch of the largest pictures: what needs most memory."""
        group = max(self.groups, key=lambda group: group[0].latent.numel())
        return [group[i % len(group)] for i in range(count)]


@dataclass(frozen=True)
class Examples:
    """The data of a training, as its model takes them."""

    pictures: Buckets
    class_pictures: Buckets | None = None

    @classmethod
    def of(cls, data: TrainingData, model: Any, device: torch.device) -> Examples:
        """Check and convert what the graph handed over.

        Args:
            model: the host's BaseModel, for latent scaling and conditioning.

        Raises:
            SettingsError, TrainingError: which input is wrong, and what to connect.
        """
        if (data.class_latents is None) != (data.class_positive is None):
            raise SettingsError(
                "prior preservation needs both class_latents and class_positive; connect both or neither"
            )
        pictures = _buckets(model, device, data.latents, data.positive, data.base_positive)
        logging.info("SODA: training on %d pictures in %d sizes", len(pictures), len(pictures.groups))
        if data.class_latents is None or data.class_positive is None:
            return cls(pictures)
        return cls(pictures, _buckets(model, device, data.class_latents, data.class_positive, None, "class_"))

    def fingerprints(self) -> dict[str, str]:
        """Of the data, by the inputs they came through: equal where they give the same training."""

        def of(pictures: Buckets, part: Callable[[Example], Any]) -> str:
            return fingerprint([part(example) for group in pictures.groups for example in group])

        found = {
            "latents": of(self.pictures, lambda example: example.latent),
            "positive": of(self.pictures, lambda example: example.conds),
            "base_positive": of(self.pictures, lambda example: example.base_conds),
        }
        if self.class_pictures is not None:
            found["class_latents"] = of(self.class_pictures, lambda example: example.latent)
            found["class_positive"] = of(self.class_pictures, lambda example: example.conds)
        return found

    def batch_shape(self, batch_size: int) -> tuple[int, ...]:
        """Of the latents in a batch of the largest pictures."""
        (largest,) = self.pictures.largest(1)
        return (batch_size, *largest.latent.shape[1:])


def fingerprint(value: Any) -> str:
    """Of tensors and plain values in lists, dictionaries and the host's COND objects."""
    digest = hashlib.blake2b(digest_size=8)

    def add(value: Any) -> None:
        digest.update(type(value).__name__.encode())
        if isinstance(value, Tensor):
            digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            for key in sorted(value):
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        elif hasattr(value, "cond"):
            add(value.cond)
        elif isinstance(value, (str, int, float, bool)):
            digest.update(repr(value).encode())

    add(value)
    return digest.hexdigest()


def _buckets(
    model: Any,
    device: torch.device,
    latents: Sequence[dict[str, Any]],
    conditioning: Sequence[Any],
    base_conditioning: Sequence[Any] | None,
    inputs: str = "",
) -> Buckets:
    """One set of pictures with their captions, one for all or one each.

    Args:
        inputs: what the inputs' names begin with, for errors: "" of latents and positive, "class_".
    """
    pictures = _pictures(latents, model, f"{inputs}latents")
    captions = _captions(conditioning, len(pictures), f"{inputs}positive")
    base_captions = _captions(base_conditioning, len(pictures), "base_positive") if base_conditioning else None
    groups: dict[tuple[int, ...], list[Example]] = {}
    for i, picture in enumerate(pictures):
        latent = model.process_latent_in(picture).to(device)
        example = Example(
            latent,
            _encode(model, captions[i % len(captions)], latent, device),
            _encode(model, base_captions[i % len(base_captions)], latent, device) if base_captions else None,
        )
        groups.setdefault(tuple(latent.shape), []).append(example)
    return Buckets(list(groups.values()))


def _pictures(latents: Sequence[dict[str, Any]], model: Any, what: str) -> list[Tensor]:
    pictures: list[Tensor] = []
    channels = model.latent_format.latent_channels
    for i, latent in enumerate(latents):
        samples = latent.get("samples") if isinstance(latent, dict) else None
        if samples is None or getattr(samples, "is_nested", False):
            raise TrainingError(f"{what}: entry {i + 1} is not a picture latent; connect VAE Encode")
        samples = ordinary(samples).clone().float()
        if not bool(torch.isfinite(samples).all()):
            raise TrainingError(f"{what}: entry {i + 1} holds NaN or infinite values; check the picture and the VAE")
        if model.latent_format.latent_dimensions == 3 and samples.ndim == 4:
            samples = samples.unsqueeze(2)
        if samples.shape[1] != channels:
            raise TrainingError(
                f"{what}: entry {i + 1} has {samples.shape[1]} latent channels, this model has {channels}; encode "
                "with the VAE that belongs to it"
            )
        pictures += [samples[n : n + 1] for n in range(samples.shape[0])]
    if not pictures:
        raise TrainingError(f"{what}: no pictures; connect at least one encoded picture")
    return pictures


def _captions(conditioning: Sequence[Any], pictures: int, what: str) -> list[Any]:
    """One CONDITIONING entry ``[tensor, dict]`` per caption; either one for all or one per picture."""
    captions = [entry for cond in conditioning for entry in cond]
    if len(captions) in (1, pictures):
        return captions
    raise TrainingError(
        f"{what}: {len(captions)} captions for {pictures} pictures; give one caption for all pictures or one for each"
    )


def _encode(model: Any, caption: Any, latent: Tensor, device: torch.device) -> dict[str, Any]:
    """The host's own conversion of a conditioning entry for this model, on ordinary tensors."""
    tensor, options = caption
    plain = {k: ordinary(v).clone() if isinstance(v, Tensor) else v for k, v in options.items()}
    if "hooks" in plain or "control" in plain:
        raise TrainingError(
            "a caption (positive, base_positive or class_positive) carries hooks or a ControlNet; training takes plain "
            "CLIP Text Encode output"
        )
    if has_guidance(model):
        plain.setdefault("guidance", TRAINING_GUIDANCE)
    conds = comfy.sampler_helpers.convert_cond([[ordinary(tensor).clone(), plain]])
    encoded = comfy.samplers.encode_model_conds(
        model.extra_conds, conds, latent, device, "positive", latent_image=latent, denoise_mask=None, seed=0
    )
    return {name: cond.process_cond(batch_size=1, area=None) for name, cond in encoded[0]["model_conds"].items()}


def has_guidance(model: Any) -> bool:
    """Whether the model is told a strength of guidance, as Flux dev is."""
    parameters = getattr(model.diffusion_model, "params", None)
    return bool(getattr(parameters, "guidance_embed", False))


def batch_conds(conds: Sequence[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """Keyword arguments of ``apply_model`` for a batch, joined by the host's own rules."""
    if len(conds) > 1 and not all(comfy.samplers.cond_equal_size(conds[0], c) for c in conds[1:]):
        raise TrainingError(
            "captions of very different lengths cannot share a batch with this model; set batch_size to 1 and raise "
            "accumulation instead"
        )
    return join_conds(conds, device)

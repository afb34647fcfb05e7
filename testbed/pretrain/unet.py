# SPDX-License-Identifier: GPL-3.0-or-later
"""The UNet: predicts the noise on latents of captioned pictures, on Stable Diffusion 1's noise schedule."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from testbed.captions import Captions
from testbed.checkpoints import PRESETS
from testbed.host import import_host
from testbed.paths import cache_root
from testbed.pretrain import autoencoder
from testbed.pretrain.data import Stream, floats, pictures
from testbed.pretrain.loop import Plan, batch_of, finished, fit, kept, sheet
from testbed.world.scene import Scene, caption

STREAM = Stream("unet", seed=2)
PRESET = "sd15-11"
STEPS = 1000  #: of the noise schedule
SD_SCALE = 0.18215  #: what the host multiplies SD 1.5's latents with before the UNet sees them
MIN_SNR = 5.0
UNCONDITIONAL = 0.1  #: share of captions left empty, for guidance


def build(weights: dict[str, Tensor] | None = None) -> nn.Module:
    """The host's UNet for ``PRESET``, with fresh weights, or those given (names without prefix)."""
    import_host()
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.model_detection import detect_unet_config, model_config_from_unet_config

    shapes = PRESETS[PRESET][1].shapes()
    detected = detect_unet_config({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, "")
    config = model_config_from_unet_config(detected).unet_config | {"dtype": torch.float32}
    module = UNetModel(**config, operations=comfy.ops.disable_weight_init)
    if weights is None:
        _initialise(module)
    else:
        module.load_state_dict(weights)
    return module


def _initialise(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.kaiming_uniform_(part.weight, a=math.sqrt(5))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
            # branches begin as nothing, so that the way through is clear
            if name.endswith(("out_layers.3", "proj_out")) or name == "out.2":
                nn.init.zeros_(part.weight)
        elif isinstance(part, nn.GroupNorm | nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def signal_levels() -> Tensor:
    """The cumulative product of alphas, float64 of shape (1000,)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


@dataclass(frozen=True)
class Noise:
    """Which noise levels are trained, and how much each counts.

    The weight of a level is min-SNR's, for a loss on the noise. Levels are drawn in proportion to it (plus a little, so
    that none is left out), and what is left of the weight multiplies the loss: the same gradient with less variance.
    """

    levels: Tensor
    odds: Tensor
    weight: Tensor

    @classmethod
    def schedule(cls) -> Noise:
        levels = signal_levels()
        ratio = levels / (1 - levels)
        weight = ratio.clamp(max=MIN_SNR) / ratio
        odds = weight + 0.2
        return cls(levels.float(), odds.float(), (weight / odds).float())


def loss_of(module: nn.Module, noise: Noise, latents: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
    times = torch.multinomial(noise.odds, len(latents), replacement=True, generator=generator)
    level = noise.levels[times][:, None, None, None]
    added = torch.randn(latents.shape, generator=generator)
    predicted = module(level.sqrt() * latents + (1 - level).sqrt() * added, times, context)
    return ((predicted - added).square().mean((1, 2, 3)) * noise.weight[times]).mean()


@torch.no_grad()
def sampled(
    module: nn.Module, noise: Tensor, context: Tensor, empty: Tensor, steps: int = 25, guidance: float = 3.0
) -> Tensor:
    """Latents drawn with DDIM.

    Args:
        noise: to begin with, (n, 4, height, width).
        context: of the captions, (n, 77, 768).
        empty: of no caption, (1, 77, 768).
    """
    levels = signal_levels().float().to(noise.device)
    times = torch.linspace(STEPS - 1, 0, steps).round().long().to(noise.device)
    x, both = noise, torch.cat([context, empty.expand_as(context)])
    for i, t in enumerate(times):
        level = levels[t]
        following = levels[times[i + 1]] if i + 1 < steps else torch.tensor(1.0)
        with_text, without = module(torch.cat([x, x]), t.expand(2 * len(x)), both).chunk(2)
        predicted = without + guidance * (with_text - without)
        clean = (x - (1 - level).sqrt() * predicted) / level.sqrt()
        x = following.sqrt() * clean + (1 - following).sqrt() * predicted
    return x


def load_codec(work: Path) -> nn.Module:
    """The trained autoencoder."""
    codec = autoencoder.build()
    codec.load_state_dict(finished(work / "autoencoder" / "state.safetensors"), strict=False)
    return codec.requires_grad_(False)


def known_latents(work: Path) -> Tensor:
    """The latents that the UNet was trained on, as the encoder gave them."""
    (path,) = work.glob(f"{STREAM.name}-*-latents.safetensors")
    return load_file(path)["latents"]


def encoded(codec: nn.Module, data: Tensor, work: Path, name: str) -> Tensor:
    """The encoder's latents (n, 4, 12, 12) of a stream's pictures, kept on disk."""
    path = work / f"{name}-{len(data)}-latents.safetensors"
    make = lambda: {"latents": torch.cat([codec.taesd_encoder(floats(part)) for part in data.split(64)])}  # noqa: E731
    return kept(path, make)["latents"]


def captions_of(scenes: list[Scene], rows: Tensor, generator: torch.Generator) -> list[str]:
    random = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    texts = []
    for row in rows.tolist():
        scene = scenes[row]
        empty = random.random() < UNCONDITIONAL
        texts.append("" if empty else caption(random, scene.kind, scene.style, scene.background))
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--decay", type=float, default=0.3)
    parser.add_argument("--pictures", type=int, default=6_000)
    parser.add_argument("--work", type=Path, default=cache_root() / "pretrain")
    args = parser.parse_args()
    data, scenes = pictures(STREAM, args.pictures, args.work)
    started = time.monotonic()
    codec = load_codec(args.work)
    latents = encoded(codec, data, args.work, STREAM.name)
    middle, deviation = latents.mean(), latents.std()
    print(f"latents: mean {middle:.3f}, deviation {deviation:.3f}, {time.monotonic() - started:.0f} s", flush=True)
    latents = (latents - middle) / deviation
    torch.manual_seed(0)
    module = build().to(memory_format=torch.channels_last)
    captions, noise, folder = Captions(), Noise.schedule(), args.work / "unet"

    def step(_: int, generator: torch.Generator) -> Tensor:
        rows = batch_of(len(latents), args.batch, generator)
        return loss_of(module, noise, latents[rows], captions(captions_of(scenes, rows, generator)), generator)

    def look(number: int) -> None:
        texts = captions_of(scenes, torch.arange(24), torch.Generator().manual_seed(5))
        noise = torch.randn(len(texts), *latents.shape[1:], generator=torch.Generator().manual_seed(1))
        drawn = sampled(module, noise, captions(texts), captions([""]))
        sheet(codec.taesd_decoder(drawn * deviation + middle), 8, folder / f"look-{number:06}.png")
        (folder / "look.txt").write_text("\n".join(texts), encoding="utf-8")

    plan = Plan(args.steps, args.lr, warmup=200, decay=args.decay, ema=0.9995)
    fit(module, step, plan, folder, look)


if __name__ == "__main__":
    main()

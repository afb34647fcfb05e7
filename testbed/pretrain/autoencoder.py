# SPDX-License-Identifier: GPL-3.0-or-later
"""The autoencoder: 8 x 8 pixels to one latent of 4 channels, in the TAESD layout that the host reads.

Held-out glyphs and styles are not in its pictures either; emoji from outside the world and recoloured pictures are,
so that it can draw what the UNet has never seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testbed.checkpoints.autoencoder import hand_set_autoencoder
from testbed.host import import_host
from testbed.paths import cache_root
from testbed.pretrain.data import Stream, floats, pictures
from testbed.pretrain.loop import Plan, batch_of, finished, fit, sheet
from testbed.world.render import SIDE
from testbed.world.vocabulary import STYLES

STREAM = Stream("autoencoder", seed=1, others=0.45)
HELD_BACK = 96  #: of the stream's pictures, to look at
CROP = 48
#: share of the steps on crops; early on more steps serve better than more pixels, borders are learnt at the end
WITH_CROPS = 0.9
LATENT_NOISE = 0.05  #: on latents of about unit deviation: the UNet's will not be exact either


def build() -> nn.Module:
    """The host's TAESD with fresh weights that already carry colours through; the rest of the channels is random."""
    import_host()
    from comfy.taesd.taesd import TAESD

    module = TAESD()
    colours = hand_set_autoencoder()
    for name, conv in module.named_modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        if ".conv." in name:  # residual branches start small, and leave the colours alone
            if name.endswith(".4"):
                conv.weight.data.mul_(0.2)[:3] = 0
        elif name.endswith("decoder.19"):
            conv.weight.data.mul_(0.1).add_(colours[f"{name}.weight"])
        else:
            conv.weight.data[:3] = colours[f"{name}.weight"][:3]
            if conv.bias is not None:
                conv.bias.data[:3] = colours[f"{name}.bias"][:3]
    for scalar in (module.vae_scale, module.vae_shift):
        scalar.requires_grad_(False)
    return module.to(memory_format=torch.channels_last)


class StyleHead(nn.Sequential):
    """Tells a picture's style from its latents. Trained along, so that latents carry textures early, and not kept."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(4, 48, 3), nn.ReLU(), nn.Conv2d(48, 48, 1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, len(STYLES))),
        )


def recoloured(batch: Tensor, generator: torch.Generator) -> Tensor:
    """A fifth of the batch with other colours: channels mixed, some inverted. Shape (n, 3, h, w) in 0..1."""
    count = len(batch)
    mix = torch.eye(3) + 0.5 * torch.randn(count, 3, 3, generator=generator)
    mix = mix / mix.abs().sum(2, keepdim=True)
    mixed = torch.einsum("nij,njhw->nihw", mix, batch - 0.5) + 0.5
    contrast = 1 + torch.rand(count, 1, 1, 1, generator=generator)
    mixed = ((mixed - 0.5) * contrast + 0.5).clamp(0, 1)
    chosen = torch.rand(count, 1, 1, 1, generator=generator) < 0.2
    return torch.where(chosen, mixed, batch)


def cropped(batch: Tensor, generator: torch.Generator) -> Tensor:
    """A random part of each picture, on the latents' grid: textures keep their phase."""
    places = 8 * torch.randint((SIDE - CROP) // 8 + 1, (len(batch), 2), generator=generator)
    parts = [picture[:, y : y + CROP, x : x + CROP] for picture, (y, x) in zip(batch, places.tolist(), strict=True)]
    return torch.stack(parts).contiguous(memory_format=torch.channels_last)


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def loss_of(module: nn.Module, batch: Tensor, styles: Tensor, generator: torch.Generator) -> Tensor:
    latents = module.taesd_encoder(batch)
    noise = LATENT_NOISE * torch.randn(latents.shape, generator=generator)
    again = module.taesd_decoder(latents + noise)
    style = F.cross_entropy(module.style(latents + 2 * noise), styles)
    error = again - batch
    edges = sum(sum(d.abs().mean() for d in _slopes(e)) for e in (error, F.avg_pool2d(error, 2)))
    # how busy each place is, whatever the phase: textures would otherwise be averaged away
    texture = sum(
        (F.avg_pool2d(ours.abs(), 4) - F.avg_pool2d(theirs.abs(), 4)).abs().mean()
        for ours, theirs in zip(_slopes(again), _slopes(batch), strict=True)
    )
    # keeps latents near unit deviation, well inside the decoder's tanh
    size = (latents.square().mean((0, 2, 3)) - 1).square().mean() + 0.1 * latents.mean((0, 2, 3)).square().mean()
    return error.abs().mean() + 0.5 * edges + 0.5 * texture + 0.05 * size + 0.05 * style


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--pictures", type=int, default=12_000)
    parser.add_argument("--start", type=Path, help="the state file of an earlier run, to begin with its weights")
    parser.add_argument("--work", type=Path, default=cache_root() / "pretrain")
    args = parser.parse_args()
    data, scenes = pictures(STREAM, args.pictures, args.work)
    styles = torch.tensor([STYLES.index(scene.style) for scene in scenes])
    torch.manual_seed(0)
    module, folder = build(), args.work / "autoencoder"
    module.style = StyleHead()
    if args.start:
        module.load_state_dict(finished(args.start), strict=False)

    def step(number: int, generator: torch.Generator) -> Tensor:
        rows = HELD_BACK + batch_of(len(data) - HELD_BACK, args.batch, generator)
        batch, style = floats(data[rows]), styles[rows]
        if number < WITH_CROPS * args.steps:
            batch = cropped(batch, generator)
        else:
            batch, style = (part[: max(1, args.batch // 2)] for part in (batch, style))
        return loss_of(module, recoloured(batch, generator), style, generator)

    def look(number: int) -> None:
        held = floats(data[:HELD_BACK])
        latents = module.taesd_encoder(held)
        again = module.taesd_decoder(latents).clamp(0, 1)
        right = (module.style(latents).argmax(1) == styles[:HELD_BACK]).float().mean()
        peak = -10 * (again - held).square().mean((1, 2, 3)).log10().mean()
        print(f"  {number}: PSNR {peak:.2f} dB, style {right:.2f}", flush=True)
        rows = [row for i in range(0, 24, 8) for row in (held[i : i + 8], again[i : i + 8])]
        sheet([picture for row in rows for picture in row], 8, folder / f"look-{number:06}.png")

    fit(module, step, Plan(args.steps, args.lr, look_every=500, weight_decay=1e-4), folder, look)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""The autoencoder: 8 x 8 pixels to one latent of 16 channels, in the TAESD layout that the host reads.

Held-out glyphs and styles are not in its pictures either; emoji from outside the world and recoloured pictures are,
so that it can draw what the model has never seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testbed import model_files
from testbed.checkpoints.presets import FAMILIES
from testbed.host import import_host
from testbed.pretrain.compute import Compute
from testbed.pretrain.data import EVERYTHING, Stream, floats, pictures
from testbed.pretrain.loop import PretrainSettings, batch_of, fit, latest, sheet
from testbed.world.render import SIDE
from testbed.world.styles import PAINTERS
from testbed.world.vocabulary import STYLES

CHANNELS = FAMILIES["sd3"].latent
ENCODER = "taesd_encoder."
#: latents are settled long before the decoder is: pictures can be encoded, and the model begun, while it goes on
SETTINGS = PretrainSettings(
    steps=6000, lr=5e-4, batch=8, decay=4000, weight_decay=1e-4, ema=0.995, threads=1, settled=ENCODER
)
STREAM = Stream("autoencoder", seed=1, others=0.45)
#: fresh scenes of the whole world, held-out glyphs and styles included: only ever looked at
TEST_STREAM = Stream("autoencoder-test", seed=6, styles=tuple(PAINTERS), classes=EVERYTHING)
PICTURES, HELD_BACK, TEST = 6000, 32, 64
#: sides of the random parts that are trained on; more steps serve better than more pixels, until the end
CROP, LATE_CROP = 64, 96
#: latents of about unit deviation get noise of up to this deviation before decoding: the model's are not exact either
LATENT_NOISE = 0.2


def build(weights: Mapping[str, Tensor]) -> nn.Module:
    """The host's TAESD of 16 channels with these weights. Its scalars are not trained; without, they are the host's."""
    import_host()
    from comfy.taesd.taesd import TAESD

    module = TAESD(latent_channels=CHANNELS)
    known = {"vae_scale": module.vae_scale, "vae_shift": module.vae_shift, **weights}
    module.load_state_dict({name: known[name] for name in module.state_dict()})
    for scalar in (module.vae_scale, module.vae_shift):
        scalar.requires_grad_(False)
    return module.to(memory_format=torch.channels_last)


def load(work: Path) -> nn.Module:
    """The trained autoencoder, frozen."""
    return build(latest(work, "autoencoder")).requires_grad_(False).eval()


def fingerprint(weights: Mapping[str, Tensor], part: str = "") -> str:
    """Of an autoencoder's weights, or of a part of them: what is made with them is kept under it."""
    content = b"".join(weights[name].numpy().tobytes() for name in sorted(weights) if name.startswith(part))
    return hashlib.sha256(content).hexdigest()[:8]


class StyleHead(nn.Sequential):
    """Tells a picture's style from its latents. Trained along, so that latents carry textures early, and not kept."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(CHANNELS, 48, 3), nn.ReLU(), nn.Conv2d(48, 48, 1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, len(STYLES))),
        )


def recoloured(batch: Tensor, generator: torch.Generator, share: float = 0.45) -> Tensor:
    """A part of the batch with other colours: channels mixed, some inverted, tinted. Shape (n, 3, h, w) in 0..1."""
    count = len(batch)
    mix = torch.eye(3) + 0.7 * torch.randn(count, 3, 3, generator=generator)
    mix = mix / mix.abs().sum(2, keepdim=True)
    mixed = torch.einsum("nij,njhw->nihw", mix, batch - 0.5)
    contrast = 0.7 + 1.3 * torch.rand(count, 1, 1, 1, generator=generator)
    contrast = torch.where(torch.rand(contrast.shape, generator=generator) < 0.4, -contrast, contrast)
    tint = 0.5 + 0.25 * torch.randn(count, 3, 1, 1, generator=generator)
    chosen = torch.rand(count, 1, 1, 1, generator=generator) < share
    mixed = (mixed * contrast + tint).clamp(0, 1)
    return torch.where(chosen, mixed, batch).contiguous(memory_format=torch.channels_last)


def cropped(batch: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A random part of each picture, on the latents' grid: textures keep their phase."""
    places = 8 * torch.randint((SIDE - side) // 8 + 1, (len(batch), 2), generator=generator)
    parts = [picture[:, y : y + side, x : x + side] for picture, (y, x) in zip(batch, places.tolist(), strict=True)]
    return torch.stack(parts).contiguous(memory_format=torch.channels_last)


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def _difference(again: Tensor, batch: Tensor) -> Tensor:
    """How unlike two batches of pictures are: colours, edges, and how busy each place is."""
    error = again - batch
    edges = sum(sum(d.abs().mean() for d in _slopes(e)) for e in (error, F.avg_pool2d(error, 2)))
    # whatever the phase: textures would otherwise be averaged away
    texture = sum(
        (F.avg_pool2d(ours.abs(), 4) - F.avg_pool2d(theirs.abs(), 4)).abs().mean()
        for ours, theirs in zip(_slopes(again), _slopes(batch), strict=True)
    )
    return error.abs().mean() + 0.5 * edges + 0.5 * texture


def loss_of(module: nn.Module, batch: Tensor, styles: Tensor, generator: torch.Generator) -> Tensor:
    """
    Args:
        batch: pictures (n, 3, h, w) in 0..1.
        styles: the number of each picture's style, (n,).
    """
    latents = module.taesd_encoder(batch).float()
    draw = torch.randn(latents.shape, generator=generator)
    noise = LATENT_NOISE * torch.rand(len(batch), 1, 1, 1, generator=generator) * draw
    noise = noise.to(latents.device)
    loss = _difference(module.taesd_decoder(latents + noise).float(), batch)
    # half as large latents are a picture half as large: coarse latents mean coarse shapes, which the model learns first
    some = -(-len(batch) // 2)
    small = module.taesd_decoder(F.avg_pool2d(latents[:some], 2)).float()
    loss = loss + 0.1 * (small - F.avg_pool2d(batch[:some], 2)).abs().mean()
    # keeps latents near unit deviation, well inside the decoder's tanh, and channels from saying the same
    rows = latents.movedim(1, 0).flatten(1)
    size = (torch.cov(rows) - torch.eye(CHANNELS, device=rows.device)).square().sum() / CHANNELS + 0.1 * rows.mean(
        1
    ).square().mean()
    style = F.cross_entropy(module.style(latents + 2 * noise).float(), styles)
    return loss + 0.05 * size + 0.05 * style


def peak_ratio(again: Tensor, batch: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, (n,)."""
    return -10 * (again.clamp(0, 1) - batch).square().mean((1, 2, 3)).log10()


def sharpness(batch: Tensor) -> Tensor:
    """Mean gradient of each picture, (n,)."""
    return sum(d.abs().mean((1, 2, 3)) for d in _slopes(batch))  # type: ignore[return-value]


def train(work: Path, settings: PretrainSettings = SETTINGS) -> None:
    data, scenes = pictures(STREAM, PICTURES, work)
    test, test_scenes = pictures(TEST_STREAM, TEST, work)
    styles = torch.tensor([STYLES.index(scene.style) for scene in scenes])
    device, folder = Compute.find().device, work / "autoencoder"
    torch.manual_seed(0)
    module = build(model_files.load(model_files.AUTOENCODER))
    module.style = StyleHead()
    module.to(device)

    def step(number: int, generator: torch.Generator) -> Tensor:
        late = number >= settings.plateau_end
        rows = HELD_BACK + batch_of(len(data) - HELD_BACK, settings.batch // 2 if late else settings.batch, generator)
        batch = recoloured(cropped(floats(data[rows]), LATE_CROP if late else CROP, generator), generator)
        return loss_of(module, batch.to(device), styles[rows].to(device), generator)

    def through(of: Tensor) -> Tensor:
        return torch.cat([module.taesd_decoder(module.taesd_encoder(p.to(device))).float().cpu() for p in of.split(16)])

    def look(number: int) -> dict[str, float]:
        held, fresh = floats(data[:HELD_BACK]), floats(test)
        held_again, again = through(held), through(fresh)
        ratio = peak_ratio(again, fresh)
        new = torch.tensor([scene.style not in STYLES for scene in test_scenes])
        rows = [row for i in range(0, 24, 6) for row in (fresh[i : i + 6], again[i : i + 6])]
        sheet([picture for row in rows for picture in row], 6, folder / f"look-{number:06}.png")
        return {
            "held_back_db": float(peak_ratio(held_again, held).mean()),
            "test_db": float(ratio.mean()),
            "test_new_styles_db": float(ratio[new].mean()),
            "sharpness": float((sharpness(again) / sharpness(fresh)).mean()),
        }

    fit(module, step, settings, folder, look)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The model: an MMDiT in SD3's layout that learns rectified flow on latents of captioned pictures.

Along the way its first blocks are asked what the classifier sees in the clean picture (REPA; Yu et al., ICLR 2025),
which teaches shapes sooner. Only known pictures are looked at, and what asks is not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testbed import model_files
from testbed.captions import Captions, captions_of
from testbed.checkpoints import PRESETS
from testbed.demo_base import PRESET
from testbed.host import import_host
from testbed.pretrain import latents
from testbed.pretrain.autoencoder import ENCODER, fingerprint
from testbed.pretrain.compute import Compute, Ranks
from testbed.pretrain.flow import TRAIN_SHIFT, loss_of, noise_levels, shifted
from testbed.pretrain.loop import PretrainSettings, batch_of, fit, latest
from testbed.pretrain.samples import Samples
from testbed.text_encoder import WIDTH

#: The host fills CLIP-L's 768 numbers a token up with zeros to 4,096; what would read those is added on export.
LAYOUT = replace(PRESETS[PRESET][1], context=WIDTH)
SETTINGS = PretrainSettings(steps=16_000, lr=1.5e-3, batch=24, decay=4_000, warmup=300, ema=0.9993)
TOKENS = 24  #: of captions, which are shorter
FILLED = 600  #: so many steps, the last, see the host's 77, so that what fills them says nothing
ASKED, ASKED_WEIGHT = 2, 0.5  #: after so many blocks what the picture shows is asked, and how much that counts
VALIDATION = 128  #: pictures that are never trained on
SAMPLES_EVERY = 6  #: looks


def build() -> nn.Module:
    """The host's module for ``LAYOUT`` with fresh weights."""
    import_host()
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
    from comfy.model_detection import detect_unet_config, model_config_from_unet_config

    shapes = LAYOUT.shapes()
    detected = detect_unet_config({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, "")
    config = model_config_from_unet_config(detected).unet_config | {"dtype": torch.float32}
    module = OpenAISignatureMMDITWrapper(**config, operations=comfy.ops.disable_weight_init)
    _initialise(module)
    return module


def _initialise(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight.flatten(1))
            nn.init.zeros_(part.bias)
            if "t_embedder" in name:
                nn.init.normal_(part.weight, std=0.02)
            # every block begins as nothing, and the first guess is no change
            if "adaLN_modulation" in name or name == "final_layer.linear":
                nn.init.zeros_(part.weight)
        elif name.endswith((".ln_q", ".ln_k")):
            nn.init.ones_(part.weight)


class Asked(nn.Sequential):
    """Reads the classifier's features off the tokens of a block; trained along and not kept."""

    def __init__(self, module: nn.Module, features: int) -> None:
        width = 64 * LAYOUT.depth
        super().__init__(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, features))
        self.tokens: Tensor | None = None
        module.joint_blocks[ASKED - 1].register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, inputs: object, outputs: tuple[Tensor, Tensor]) -> None:
        self.tokens = outputs[1]

    def loss(self, seen: Tensor) -> Tensor:
        """How unlike the two are: 1 - cosine, over all tokens. ``seen`` is (n, tokens, features)."""
        return 1 - F.cosine_similarity(self(self.tokens).float(), seen, dim=-1).mean()


def use_plain_attention() -> None:
    """On the CPU a step takes a tenth less time so than with the fused attention, because of its way back."""
    import comfy.ldm.modules.diffusionmodules.mmdit as host

    host.optimized_attention = plain_attention


def plain_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, **_: object) -> Tensor:
    """The host's attention as products: (n, tokens, heads * width) each, or with heads and width apart."""
    q, k, v = (t.reshape(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))
    odds = ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1).to(v.dtype)
    return (odds @ v).transpose(1, 2).flatten(2)


def train(work: Path, settings: PretrainSettings = SETTINGS) -> None:
    data = latents.known(work)
    device, folder = Compute.find().device, work / "model"
    settings = replace(settings, batch=settings.batch // Ranks.find().count)
    torch.manual_seed(0)
    module, captions = build().to(device), Captions()
    encoders = (latest(work, "autoencoder"), model_files.load(model_files.AUTOENCODER))
    if len({fingerprint(weights, ENCODER) for weights in encoders}) == 1:  # another one's latents mean something else
        module.load_state_dict(model_files.load(model_files.MODEL))
    if device.type == "cpu":
        use_plain_attention()
    validation = validation_of(data, captions, device)
    asked = Asked(module, data.seen(torch.arange(1)).shape[-1]).to(device)
    module.asked = asked

    def step(number: int, generator: torch.Generator) -> Tensor:
        rows = VALIDATION + batch_of(len(data.values) - VALIDATION, settings.batch, generator)
        clean, levels = data.normal(rows), noise_levels(settings.batch, generator)
        noise = torch.randn(clean.shape, generator=generator)
        context = captions(captions_of(data.scenes, rows, generator))
        if number < settings.steps - FILLED:
            context = context[:, :TOKENS]
        loss = loss_of(module, *(part.to(device) for part in (clean, context, levels, noise)))
        return loss + ASKED_WEIGHT * asked.loss(data.seen(rows).to(device))

    def look(number: int) -> dict[str, float]:
        said = {"validation": validation(module)}
        due = number % (SAMPLES_EVERY * settings.look_every) == 0 or number == settings.steps
        if due:
            samples = Samples.load(work, data, captions)
            said |= samples.draw(module, device, folder / f"look-{number:06}.png")
        return said

    fit(module, step, settings, folder, look)


def validation_of(data: latents.Latents, captions: Captions, device: torch.device) -> Callable[[nn.Module], float]:
    """The loss on pictures held back, each at noise and a level of its own, always the same."""
    generator, rows = torch.Generator().manual_seed(9), torch.arange(VALIDATION)
    texts = captions_of(data.scenes, rows, generator)
    noise = torch.randn(data.values[rows].shape, generator=generator)
    levels = shifted((torch.randperm(VALIDATION, generator=generator) + 0.5) / VALIDATION, TRAIN_SHIFT)

    def loss(module: nn.Module) -> float:
        parts = rows.split(16)
        losses = []
        for part in parts:
            inputs = (data.normal(part), captions([texts[i] for i in part]), levels[part], noise[part])
            losses.append(float(loss_of(module, *(value.to(device) for value in inputs))))
        return sum(losses) / len(losses)

    return loss

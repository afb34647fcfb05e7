# SPDX-License-Identifier: GPL-3.0-or-later
"""The checkpoints there are, by name, and their weights from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from testbed.checkpoints import autoencoder
from testbed.checkpoints.diffusion import Flux, Flux2, MMDiT, UNet, Wan
from testbed.checkpoints.shapes import Shapes
from testbed.checkpoints.text_encoders import clip_g, clip_l

Clip = Literal["full", "sparse", "none"]
Parts = dict[str, dict[str, Tensor]]

SPARSE_TOKENS = 2048  #: rows of the token table that the sparse text encoder keeps, beside the two special tokens


@dataclass(frozen=True)
class Family:
    """What a family's checkpoints share: latents, their scaling, and where text encoders go."""

    latent: int
    scale: float
    shift: float
    text_encoders: dict[str, Callable[[], Shapes]]
    marks: tuple[str, ...] = ()  #: keys whose being there tells the host of the parametrisation
    autoencoder: bool = True  #: whether there is one small enough to write


FAMILIES = {
    "sd15": Family(4, 0.18215, 0.0, {"cond_stage_model.transformer.": clip_l}),
    "sdxl": Family(
        4, 0.13025, 0.0, {"conditioner.embedders.0.transformer.": clip_l, "conditioner.embedders.1.model.": clip_g}
    ),
    "sd3": Family(16, 1.5305, 0.0609, {"text_encoders.clip_l.transformer.": lambda: clip_l(projection=True)}),
    "flux": Family(16, 0.3611, 0.1159, {}),
    # v-prediction down to noise alone, without text encoders
    "sdxl-v": Family(4, 0.13025, 0.0, {}, marks=("v_pred", "ztsnr")),
    "flux2": Family(128, 1.0, 0.0, {}, autoencoder=False),
    "wan": Family(16, 1.0, 0.0, {}, autoencoder=False),
}


def _sd15(
    widths: Sequence[int], blocks: Sequence[int], way_in: Sequence[int], middle: int, way_out: Sequence[int]
) -> tuple[str, UNet]:
    return "sd15", UNet(768, widths, blocks, way_in, middle, way_out)


def _sdxl(
    widths: Sequence[int], blocks: Sequence[int], way_in: Sequence[int], middle: int, way_out: Sequence[int]
) -> tuple[str, UNet]:
    return "sdxl", UNet(2048, widths, blocks, way_in, middle, way_out, vector=2816)


PRESETS: dict[str, tuple[str, UNet | MMDiT | Flux | Flux2 | Wan]] = {
    # one width and one transformer block, on the way in
    "sd15-min": _sd15([1], [1], [1], -2, [0, 0]),
    # one width, a transformer everywhere: four blocks
    "sd15-1": _sd15([1], [1], [1], 1, [1, 1]),
    # two levels of width 320; six transformer blocks, the first and the last at the upper one
    "sd15-11": _sd15([1, 1], [1, 1], [1, 1], 1, [1, 0, 1, 1]),
    # widths 320 and 640, transformers on the way in only
    "sd15-12-min": _sd15([1, 2], [1, 1], [1, 1], -2, [0] * 4),
    # widths 320 and 640, a transformer everywhere: seven blocks
    "sd15-12": _sd15([1, 2], [1, 1], [1, 1], 1, [1] * 4),
    # all three widths, transformers on the way in only
    "sd15-124-min": _sd15([1, 2, 4], [1, 1, 1], [1, 1, 1], -2, [0] * 6),
    # the real thing
    "sd15-full": _sd15([1, 2, 4, 4], [2, 2, 2, 2], [1] * 6 + [0] * 2, 1, [1] * 9 + [0] * 3),
    # the real thing
    "sdxl-full": _sdxl([1, 2, 4], [2, 2, 2], [0, 0, 2, 2, 10, 10], 10, [0] * 3 + [2] * 3 + [10] * 3),
    # the host knows sdxl by the transformer depths on the way in alone; these are its smallest two lists
    "sdxl-vega-min": _sdxl([1], [6], [0, 0, 1, 1, 2, 2], -2, [0] * 7),
    "sdxl-koala-min": _sdxl([1], [3], [0, 2, 5], -2, [0] * 4),
    "sdxl-koala-min-v": ("sdxl-v", _sdxl([1], [3], [0, 2, 5], -2, [0] * 4)[1]),
    "sd3-d1": ("sd3", MMDiT(1)),
    "sd3-d2": ("sd3", MMDiT(2)),
    "sd3-d4": ("sd3", MMDiT(4)),
    "sd35-d4": ("sd3", MMDiT(4, query_key_norm=True)),
    # the demo's base model, see demo/model
    "demo": ("sd3", MMDiT(4, vector=False, query_key_norm=True)),
    # with what the real ones have too: a table of positions, and medium's second attention
    "sd3-d2-positions": ("sd3", MMDiT(2, positions=16)),
    "sd35-d2-dual": ("sd3", MMDiT(2, query_key_norm=True, positions=16, dual=1)),
    "flux-d1": ("flux", Flux(double=1, single=1)),
    "flux2-d1": ("flux2", Flux2(double=1, single=1)),
    "wan-d2": ("wan", Wan(blocks=2)),
}


def build(preset: str, clip: Clip = "full", vae: autoencoder.Vae = "hand", seed: int = 0) -> Parts:
    """The tensors of a checkpoint in three parts, ``unet``, ``clip`` and ``vae``, all float32.

    Args:
        clip: ``full``; ``sparse`` = one real layer and the 2,048 commonest tokens, much smaller on disk; ``none`` =
            the host then loads no text encoder (sd3: one that says nothing).
    """
    if preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    family_name, model = PRESETS[preset]
    family = FAMILIES[family_name]
    generator = torch.Generator().manual_seed(seed)
    unet = {"model.diffusion_model." + name: _value(name, shape, generator) for name, shape in model.shapes().items()}
    unet |= {mark: torch.zeros(1) for mark in family.marks}
    text: dict[str, Tensor] = {}
    if clip != "none":
        for prefix, shapes in family.text_encoders.items():
            text |= _text_encoder(shapes(), prefix, clip, generator)
    elif family_name == "sd3":
        text["text_encoders.none"] = torch.zeros(1)  # any such key makes the host build a text encoder without parts
    if not family.autoencoder:
        return {"unet": unet, "clip": text, "vae": {}}
    taesd = autoencoder.weights(family.latent, vae, family.scale, family.shift, generator)
    return {"unet": unet, "clip": text, "vae": {"first_stage_model." + k: v for k, v in taesd.items()}}


# ------------------------------------------------------------------------------------------------------------- values

# outputs of residual branches are small, so that deep models do not blow up
_RESIDUAL = (
    ".out_layers.3.", ".to_out.0.", ".ff.net.2.", ".proj_out.", ".mlp.fc2.", ".attn.proj.", ".out_proj.",
    ".mlp.c_proj.",
)  # fmt: skip
_NORMS = (
    "in_layers.0.", "out_layers.0.", ".norm.", ".norm1.", ".norm2.", ".norm3.", "out.0.", "layer_norm", "ln_1", "ln_2",
    "ln_final", ".ln_q.", ".ln_k.", ".norm_q.", ".norm_k.",
)  # fmt: skip


def _value(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        if any(part in name for part in _NORMS):
            return torch.ones(shape) if name.endswith(("weight", "scale")) else torch.zeros(shape)
        return 0.01 * torch.randn(shape, generator=generator)
    if "embedding" in name or name == "pos_embed":
        return 0.02 * torch.randn(shape, generator=generator)
    deviation = 1 / math.sqrt(math.prod(shape[1:]))
    if any(part in name for part in _RESIDUAL):
        deviation *= 0.3
    if "adaLN_modulation" in name:
        deviation *= 0.5
    return deviation * torch.randn(shape, generator=generator)


def _zeros(shape: tuple[int, ...]) -> Tensor:
    """Zeros that take no memory; :func:`write` leaves a hole for them."""
    return torch.zeros(()).expand(shape)


def _passed_through(name: str) -> bool:
    """Matrices of text encoder layers after the first: zero in the sparse one, so the residual passes through."""
    for layers in ("layers.", "resblocks."):
        if layers in name and "norm" not in name and "ln_" not in name:
            return int(name.split(layers)[1].split(".")[0]) > 0
    return False


def _text_encoder(shapes: Shapes, prefix: str, clip: Clip, generator: torch.Generator) -> dict[str, Tensor]:
    tensors = {}
    for name, shape in shapes.items():
        if clip == "sparse" and _passed_through(name):
            value = _zeros(shape)
        else:
            value = _value(name, shape, generator)
            if clip == "sparse" and "token_embedding" in name:
                value[SPARSE_TOKENS:-2] = 0
        tensors[prefix + name] = value
    return tensors

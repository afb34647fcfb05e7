# SPDX-License-Identifier: GPL-3.0-or-later
"""The test bed's checkpoints as models of diffusers.

``from_single_file`` knows models of regular sizes by what is published of them; these are not, so each gets the
configuration that fits, and the tensors that diffusers' converter makes of the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from torch import Tensor, nn

from soda_core.interop.layer_map import converted
from testbed.checkpoints import PRESETS
from testbed.checkpoints.diffusion import Flux, MMDiT, UNet
from testbed.host import import_host
from testbed.world.render import SIDE

PREFIX = "model.diffusion_model."
LATENTS = SIDE // 8  #: latents a side of the demo's pictures


def build(preset: str, tensors: Mapping[str, Tensor]) -> Any:
    """The diffusion model of a preset in float32.

    Args:
        tensors: of the checkpoint, by their names in it. An sd3 model without a table of positions gets that of
            the demo's pictures, and takes no other size.
    """
    sizes = PRESETS[preset][1]
    tensors = {name: value.float() for name, value in tensors.items() if name.startswith(PREFIX)}
    builders = {UNet: _unet, MMDiT: _sd3, Flux: _flux}
    return builders[type(sizes)](sizes, tensors).eval().requires_grad_(False)


def _unet(sizes: UNet, tensors: dict[str, Tensor]) -> nn.Module:
    """Where only some residual blocks of a level attend, the others get an attention whose output is zero."""
    depths_in = _levels(sizes.depth_in, sizes.blocks)
    depths_out = _levels(sizes.depth_out[::-1], [n + 1 for n in reversed(sizes.blocks)])
    middle = {-2: None, -1: "UNetMidBlock2D"}.get(sizes.depth_middle, "UNetMidBlock2DCrossAttn")
    added: dict[str, Any] = {}
    if sizes.vector is not None:
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": sizes.vector,
            "use_linear_projection": True,
        }
    widths = [factor * sizes.base for factor in sizes.widths]
    model = UNet2DConditionModel(
        block_out_channels=tuple(widths),
        layers_per_block=sizes.blocks[0],
        down_block_types=["CrossAttnDownBlock2D" if any(depths) else "DownBlock2D" for depths in depths_in],
        mid_block_type=middle,
        up_block_types=["CrossAttnUpBlock2D" if any(depths) else "UpBlock2D" for depths in depths_out],
        transformer_layers_per_block=[[depth or 1 for depth in depths] for depths in depths_in],
        reverse_transformer_layers_per_block=[[depth or 1 for depth in depths] for depths in depths_out],
        cross_attention_dim=sizes.context,
        # diffusers calls the number of heads so: 8 in sd15, heads of width 64 in sdxl
        attention_head_dim=8 if sizes.vector is None else [width // 64 for width in widths],
        **added,
    )
    state = convert_ldm_unet_checkpoint(tensors, model.config)
    lacking, unknown = model.load_state_dict(state, strict=False)
    blocks = {name.split(".attentions.")[0] + ".attentions." + name.split(".")[3] for name in lacking}
    if unknown or any(name.startswith(f"{block}.") for name in state for block in blocks):
        raise ValueError(
            f"the configuration does not fit: {unknown} are too many, of {sorted(blocks)} some are missing"
        )
    for name in lacking:
        nn.init.zeros_(model.get_parameter(name))
    return model


def _levels(depths: Sequence[int], blocks: Sequence[int]) -> list[list[int]]:
    """Depths of residual blocks, level by level."""
    queue = iter(depths)
    return [[next(queue) for _ in range(count)] for count in blocks]


def _sd3(sizes: MMDiT, tensors: dict[str, Tensor]) -> nn.Module:
    """diffusers always has a table of positions and takes the pooled text vector: where there is no such layer, one of
    zeros."""
    tensors = dict(tensors)
    side = sizes.positions or LATENTS // 2
    if not sizes.positions:
        tensors[f"{PREFIX}pos_embed"] = _positions(64 * sizes.depth, side)
    if not sizes.vector:
        with_vector = replace(sizes, vector=True).shapes()
        tensors |= {PREFIX + n: torch.zeros(s) for n, s in with_vector.items() if n.startswith("y_embedder.")}
    model = SD3Transformer2DModel(
        sample_size=side * 2,
        pos_embed_max_size=side,
        num_layers=sizes.depth,
        num_attention_heads=sizes.depth,
        attention_head_dim=64,
        caption_projection_dim=64 * sizes.depth,
        joint_attention_dim=sizes.context,
        pooled_projection_dim=2048,
        in_channels=sizes.latent,
        out_channels=sizes.latent,
        qk_norm="rms_norm" if sizes.query_key_norm else None,
        dual_attention_layers=tuple(range(sizes.dual)),
    )
    model.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(tensors))
    return model


def _positions(width: int, side: int) -> Tensor:
    """What the host computes for so many tokens a side, (1, side * side, width)."""
    import_host()
    from comfy.ldm.modules.diffusionmodules.mmdit import get_2d_sincos_pos_embed_torch

    return get_2d_sincos_pos_embed_torch(width, side, side)[None]


def _flux(sizes: Flux, tensors: dict[str, Tensor]) -> nn.Module:
    """diffusers' converter cuts at the width of the published model; its cuts are carried over to this width."""
    model = FluxTransformer2DModel(
        num_layers=sizes.double,
        num_single_layers=sizes.single,
        num_attention_heads=sizes.heads,
        attention_head_dim=128,
        joint_attention_dim=sizes.context,
        pooled_projection_dim=sizes.vector,
        in_channels=4 * sizes.latent,
        guidance_embeds=True,
    )
    state = {}
    for name, rows in converted(model).items():
        whole = tensors[PREFIX + rows.name]
        state[name] = torch.cat([whole[int(a * len(whole)) : int(b * len(whole))] for a, b in rows.spans])
    model.load_state_dict(state)
    return model

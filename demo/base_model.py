# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes small base checkpoints with random weights that a stock ComfyUI loads with "Load Checkpoint".

Nothing is downloaded: a seed decides every weight. Each preset has the real key names, and the real widths where the
host checks them, of its family (sd15, sdxl, sd3), only fewer blocks. Sampled pictures are abstract; the VAE is
set by hand (mean colour of 8 x 8 pixel blocks), so a picture survives encoding and decoding.

    python -m demo.base_model sd15-1 base.safetensors [--clip full|sparse|none] [--dtype f16|bf16|f32] [--seed 0]
    python -m demo.base_model --list

Needs torch only. Tensors of zeros become holes in the file where the file system can, so that a checkpoint with the
"sparse" text encoder takes a fraction of its apparent size.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from demo.files import replacing

#: The checkpoint the shipped workflows name.
BASE_NAME = "soda-demo-base.safetensors"

Clip = Literal["full", "sparse", "none"]
Vae = Literal["hand", "random"]
Parts = dict[str, dict[str, Tensor]]

SPARSE_TOKENS = 2048  #: rows of the token table that the sparse text encoder keeps, beside the two special tokens


class Shapes(dict[str, tuple[int, ...]]):
    """Parameter name -> shape, filled module by module."""

    def linear(self, name: str, out: int, width: int, bias: bool = True) -> None:
        self[f"{name}.weight"] = (out, width)
        if bias:
            self[f"{name}.bias"] = (out,)

    def conv(self, name: str, out: int, channels: int, kernel: int = 3, bias: bool = True) -> None:
        self[f"{name}.weight"] = (out, channels, kernel, kernel)
        if bias:
            self[f"{name}.bias"] = (out,)

    def norm(self, name: str, width: int) -> None:
        self[f"{name}.weight"] = self[f"{name}.bias"] = (width,)


# ------------------------------------------------------------------------------------------------ diffusion models


@dataclass(frozen=True)
class UNet:
    """A UNet in the ldm layout (sd15, sdxl).

    Depths count transformer blocks: one number per residual block on the way in, and on the way out in the order in
    which the host detects them, that is taken from the end. ``depth_middle``: -1 = a residual block without
    transformer, -2 = no middle block.
    """

    context: int
    widths: Sequence[int]
    blocks: Sequence[int]
    depth_in: Sequence[int]
    depth_middle: int
    depth_out: Sequence[int]
    vector: int | None = None  #: width of the pooled vector; sdxl, which also has linear projections
    base: int = 320
    latent: int = 4

    def shapes(self) -> Shapes:
        s = Shapes()
        time_width = 4 * self.base
        s.linear("time_embed.0", time_width, self.base)
        s.linear("time_embed.2", time_width, time_width)
        if self.vector:
            s.linear("label_emb.0.0", time_width, self.vector)
            s.linear("label_emb.0.2", time_width, time_width)
        width, skips = self._way_in(s)
        if self.depth_middle >= -1:
            self._residual(s, "middle_block.0", width, width)
        if self.depth_middle >= 0:
            self._transformer(s, "middle_block.1", width, self.depth_middle)
            self._residual(s, "middle_block.2", width, width)
        width = self._way_out(s, width, skips)
        s.norm("out.0", width)
        s.conv("out.2", self.latent, self.base)
        return s

    def _way_in(self, s: Shapes) -> tuple[int, list[int]]:
        s.conv("input_blocks.0.0", self.base, self.latent)
        width, skips, depths = self.base, [self.base], list(self.depth_in)
        for level, factor in enumerate(self.widths):
            for _ in range(self.blocks[level]):
                name = f"input_blocks.{len(skips)}"
                self._residual(s, f"{name}.0", width, factor * self.base)
                width = factor * self.base
                if depth := depths.pop(0):
                    self._transformer(s, f"{name}.1", width, depth)
                skips.append(width)
            if level < len(self.widths) - 1:
                s.conv(f"input_blocks.{len(skips)}.0.op", width, width)
                skips.append(width)
        return width, skips

    def _way_out(self, s: Shapes, width: int, skips: list[int]) -> int:
        depths, number = list(self.depth_out), 0
        for level in reversed(range(len(self.widths))):
            for i in range(self.blocks[level] + 1):
                name, part = f"output_blocks.{number}", 1
                self._residual(s, f"{name}.0", width + skips.pop(), self.widths[level] * self.base)
                width = self.widths[level] * self.base
                if depth := depths.pop():
                    self._transformer(s, f"{name}.1", width, depth)
                    part = 2
                if level and i == self.blocks[level]:
                    s.conv(f"{name}.{part}.conv", width, width)
                number += 1
        return width

    def _residual(self, s: Shapes, name: str, width: int, out: int) -> None:
        s.norm(f"{name}.in_layers.0", width)
        s.conv(f"{name}.in_layers.2", out, width)
        s.linear(f"{name}.emb_layers.1", out, 4 * self.base)
        s.norm(f"{name}.out_layers.0", out)
        s.conv(f"{name}.out_layers.3", out, out)
        if width != out:
            s.conv(f"{name}.skip_connection", out, width, kernel=1)

    def _transformer(self, s: Shapes, name: str, width: int, depth: int) -> None:
        def projection(key: str) -> None:
            if self.vector:
                s.linear(key, width, width)
            else:
                s.conv(key, width, width, kernel=1)

        s.norm(f"{name}.norm", width)
        projection(f"{name}.proj_in")
        for i in range(depth):
            block = f"{name}.transformer_blocks.{i}"
            for attention, context in (("attn1", width), ("attn2", self.context)):
                s.linear(f"{block}.{attention}.to_q", width, width, bias=False)
                s.linear(f"{block}.{attention}.to_k", width, context, bias=False)
                s.linear(f"{block}.{attention}.to_v", width, context, bias=False)
                s.linear(f"{block}.{attention}.to_out.0", width, width)
            s.linear(f"{block}.ff.net.0.proj", 8 * width, width)
            s.linear(f"{block}.ff.net.2", width, 4 * width)
            for norm in ("norm1", "norm2", "norm3"):
                s.norm(f"{block}.{norm}", width)
        projection(f"{name}.proj_out")


@dataclass(frozen=True)
class MMDiT:
    """The sd3 transformer: ``depth`` joint blocks of width ``64 * depth``, with fused qkv."""

    depth: int
    vector: bool = True  #: takes the pooled text vector
    query_key_norm: bool = False  #: as sd3.5
    context: int = 4096
    latent: int = 16

    def shapes(self) -> Shapes:
        s, width = Shapes(), 64 * self.depth
        s.conv("x_embedder.proj", width, self.latent, kernel=2)
        s.linear("t_embedder.mlp.0", width, 256)
        s.linear("t_embedder.mlp.2", width, width)
        if self.vector:
            s.linear("y_embedder.mlp.0", width, 2048)
            s.linear("y_embedder.mlp.2", width, width)
        s.linear("context_embedder", width, self.context)
        for i in range(self.depth):
            for side in ("context_block", "x_block"):
                name = f"joint_blocks.{i}.{side}"
                keys_only = side == "context_block" and i == self.depth - 1
                s.linear(f"{name}.attn.qkv", 3 * width, width)
                if self.query_key_norm:
                    s[f"{name}.attn.ln_q.weight"] = s[f"{name}.attn.ln_k.weight"] = (64,)
                if not keys_only:
                    s.linear(f"{name}.attn.proj", width, width)
                    s.linear(f"{name}.mlp.fc1", 4 * width, width)
                    s.linear(f"{name}.mlp.fc2", width, 4 * width)
                s.linear(f"{name}.adaLN_modulation.1", (2 if keys_only else 6) * width, width)
        s.linear("final_layer.linear", 4 * self.latent, width)
        s.linear("final_layer.adaLN_modulation.1", 2 * width, width)
        return s


# -------------------------------------------------------------------------------------------------- text encoders


def clip_l(projection: bool = False, width: int = 768, layers: int = 12) -> Shapes:
    """CLIP-L as in transformers."""
    s = Shapes()
    s["text_model.embeddings.token_embedding.weight"] = (49408, width)
    s["text_model.embeddings.position_embedding.weight"] = (77, width)
    for i in range(layers):
        name = f"text_model.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            s.linear(f"{name}.self_attn.{part}", width, width)
        s.norm(f"{name}.layer_norm1", width)
        s.norm(f"{name}.layer_norm2", width)
        s.linear(f"{name}.mlp.fc1", 4 * width, width)
        s.linear(f"{name}.mlp.fc2", width, 4 * width)
    s.norm("text_model.final_layer_norm", width)
    if projection:
        s.linear("text_projection", width, width, bias=False)
    return s


def clip_g(width: int = 1280, layers: int = 32) -> Shapes:
    """CLIP-G in the open_clip layout of an sdxl checkpoint."""
    s = Shapes()
    s["token_embedding.weight"] = (49408, width)
    s["positional_embedding"] = (77, width)
    s["text_projection"] = (width, width)
    for i in range(layers):
        name = f"transformer.resblocks.{i}"
        s[f"{name}.attn.in_proj_weight"] = (3 * width, width)
        s[f"{name}.attn.in_proj_bias"] = (3 * width,)
        s.linear(f"{name}.attn.out_proj", width, width)
        s.norm(f"{name}.ln_1", width)
        s.norm(f"{name}.ln_2", width)
        s.linear(f"{name}.mlp.c_fc", 4 * width, width)
        s.linear(f"{name}.mlp.c_proj", width, 4 * width)
    s.norm("ln_final", width)
    return s


# --------------------------------------------------------------------------------------------------------- values

# outputs of residual branches are small, so that deep models do not blow up
_RESIDUAL = (
    ".out_layers.3.", ".to_out.0.", ".ff.net.2.", ".proj_out.", ".mlp.fc2.", ".attn.proj.", ".out_proj.",
    ".mlp.c_proj.",
)  # fmt: skip
_NORMS = (
    "in_layers.0.", "out_layers.0.", ".norm.", ".norm1.", ".norm2.", ".norm3.", "out.0.", "layer_norm", "ln_1", "ln_2",
    "ln_final", ".ln_q.", ".ln_k.",
)  # fmt: skip


def _value(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        if any(part in name for part in _NORMS):
            return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        return 0.01 * torch.randn(shape, generator=generator)
    if "embedding" in name:
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


# ------------------------------------------------------------------------------------------------------------ VAE


def _vae(latent: int, kind: Vae, scale: float, shift: float, generator: torch.Generator) -> dict[str, Tensor]:
    """A TAESD with a factor of 8 between pixels and latents."""
    shapes = _taesd(latent)
    if kind == "random":
        tensors = {
            name: 1.2 / math.sqrt(math.prod(shape[1:])) * torch.randn(shape, generator=generator)
            if len(shape) > 1
            else torch.zeros(shape)
            for name, shape in shapes.items()
        }
        tensors["taesd_decoder.19.bias"] = torch.full((3,), 0.5)
    else:
        tensors = hand_set_autoencoder(latent)
    tensors["vae_scale"], tensors["vae_shift"] = torch.tensor(scale), torch.tensor(shift)
    return tensors


def _taesd(latent: int) -> Shapes:
    s = Shapes()

    def blocks(part: str, numbers: Sequence[int]) -> None:
        for number in numbers:
            for i in (0, 2, 4):
                s.conv(f"{part}.{number}.conv.{i}", 64, 64)

    s.conv("taesd_encoder.0", 64, 3)
    blocks("taesd_encoder", (1, 3, 4, 5, 7, 8, 9, 11, 12, 13))
    for number in (2, 6, 10):
        s.conv(f"taesd_encoder.{number}", 64, 64, bias=False)
    s.conv("taesd_encoder.14", latent, 64)
    s.conv("taesd_decoder.1", 64, latent)
    blocks("taesd_decoder", (3, 4, 5, 8, 9, 10, 13, 14, 15, 18))
    for number in (7, 12, 17):
        s.conv(f"taesd_decoder.{number}", 64, 64, bias=False)
    s.conv("taesd_decoder.19", 3, 64)
    return s


def hand_set_autoencoder(latent: int = 4) -> dict[str, Tensor]:
    """Latent channels 0-2 = (mean colour of an 8 x 8 block - 0.5) * 4, channel 3 = a brightness gradient.

    The decoder inverts the first three with a smooth interpolation. Residual blocks are identities: what passes
    through them is never negative.
    """
    w = {name: torch.zeros(shape) for name, shape in _taesd(latent).items()}
    encoder, decoder = "taesd_encoder", "taesd_decoder"
    first = w[f"{encoder}.0.weight"]
    for colour in range(3):
        first[colour, colour, 1, 1] = 1
    first[3, :, 1, 1], first[3, :, 1, 2] = 1 / 6, -1 / 6
    w[f"{encoder}.0.bias"][3] = 0.5
    for number in (2, 6, 10):  # halving: the mean of 2 x 2
        for channel in range(4):
            w[f"{encoder}.{number}.weight"][channel, channel, 1:, 1:] = 0.25
    for channel in range(4):
        w[f"{encoder}.14.weight"][channel, channel, 1, 1] = 4
        w[f"{encoder}.14.bias"][channel] = -2
    tent = torch.tensor([0.25, 0.5, 0.25])
    for colour in range(3):
        # a little above 1/4: the decoder first clamps latents with a tanh
        w[f"{decoder}.1.weight"][colour, colour, 1, 1] = 0.27
        w[f"{decoder}.1.bias"][colour] = 0.5
        for number in (7, 12, 17):
            w[f"{decoder}.{number}.weight"][colour, colour] = torch.outer(tent, tent)
        w[f"{decoder}.19.weight"][colour, colour, 1, 1] = 1
    return w


# -------------------------------------------------------------------------------------------------------- presets


@dataclass(frozen=True)
class Family:
    """What a family's checkpoints share: latents, their scaling, and where text encoders go."""

    latent: int
    scale: float
    shift: float
    text_encoders: dict[str, Callable[[], Shapes]]


FAMILIES = {
    "sd15": Family(4, 0.18215, 0.0, {"cond_stage_model.transformer.": clip_l}),
    "sdxl": Family(
        4, 0.13025, 0.0, {"conditioner.embedders.0.transformer.": clip_l, "conditioner.embedders.1.model.": clip_g}
    ),
    "sd3": Family(16, 1.5305, 0.0609, {"text_encoders.clip_l.transformer.": lambda: clip_l(projection=True)}),
}


def _sd15(
    widths: Sequence[int], blocks: Sequence[int], way_in: Sequence[int], middle: int, way_out: Sequence[int]
) -> tuple[str, UNet]:
    return "sd15", UNet(768, widths, blocks, way_in, middle, way_out)


def _sdxl(
    widths: Sequence[int], blocks: Sequence[int], way_in: Sequence[int], middle: int, way_out: Sequence[int]
) -> tuple[str, UNet]:
    return "sdxl", UNet(2048, widths, blocks, way_in, middle, way_out, vector=2816)


PRESETS: dict[str, tuple[str, UNet | MMDiT]] = {
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
    "sd3-d1": ("sd3", MMDiT(1)),
    "sd3-d2": ("sd3", MMDiT(2)),
    "sd3-d4": ("sd3", MMDiT(4)),
    "sd35-d4": ("sd3", MMDiT(4, query_key_norm=True)),
}


def build(preset: str, clip: Clip = "full", vae: Vae = "hand", seed: int = 0) -> Parts:
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
    text: dict[str, Tensor] = {}
    if clip != "none":
        for prefix, shapes in family.text_encoders.items():
            text |= _text_encoder(shapes(), prefix, clip, generator)
    elif family_name == "sd3":
        text["text_encoders.none"] = torch.zeros(1)  # any such key makes the host build a text encoder without parts
    autoencoder = _vae(family.latent, vae, family.scale, family.shift, generator)
    return {"unet": unet, "clip": text, "vae": {"first_stage_model." + k: v for k, v in autoencoder.items()}}


# -------------------------------------------------------------------------------------------------------- writing

_DTYPES = {
    "f16": (torch.float16, "F16"),
    "bf16": (torch.bfloat16, "BF16"),
    "f32": (torch.float32, "F32"),
    "f8": (torch.float8_e4m3fn, "F8_E4M3"),
}
_CHUNK = 1 << 16


def write(
    path: str | os.PathLike[str],
    parts: Parts,
    dtype: str = "f16",
    te_dtype: str | None = None,
    note: str = "random weights, demo/base_model.py",
) -> Path:
    """Write parts as one safetensors checkpoint; the file appears whole or not at all.

    Args:
        dtype: one of f16, bf16, f32, f8; ``te_dtype`` likewise for the text encoders.
    """
    path = Path(path)
    entries = [
        (name, tensor, *_DTYPES[te_dtype or dtype if part == "clip" else dtype])
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    ]
    header: dict[str, object] = {"__metadata__": {"format": "pt", "note": note}}
    end = 0
    for name, tensor, kind, label in entries:
        start, end = end, end + tensor.numel() * kind.itemsize
        header[name] = {"dtype": label, "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)

    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, tensor, kind, _ in entries:
            if tensor.ndim and not any(tensor.stride()):
                file.seek(tensor.numel() * kind.itemsize, os.SEEK_CUR)
                continue
            data = tensor.to(kind).contiguous().reshape(-1).view(torch.uint8).numpy().data
            for at in range(0, len(data), _CHUNK):
                chunk = data[at : at + _CHUNK]
                if len(chunk) == _CHUNK and not any(chunk[:64]) and not any(chunk):
                    file.seek(_CHUNK, os.SEEK_CUR)
                else:
                    file.write(chunk)
        file.truncate(8 + len(encoded) + end)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a small base checkpoint with random weights.")
    parser.add_argument("preset", nargs="?", choices=PRESETS)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--list", action="store_true", help="show the presets")
    parser.add_argument("--clip", choices=("full", "sparse", "none"), default="full")
    parser.add_argument("--vae", choices=("hand", "random"), default="hand")
    parser.add_argument("--dtype", choices=_DTYPES, default="f16")
    parser.add_argument("--te-dtype", choices=_DTYPES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.list:
        for name, (family, model) in PRESETS.items():
            count = sum(math.prod(shape) for shape in model.shapes().values())
            print(f"{name:16} {family:5} {count / 1e6:8.2f} M parameters")
        return
    if args.preset is None or args.out is None:
        parser.error("PRESET and OUT are needed; --list shows the presets")
    started = time.monotonic()
    write(args.out, build(args.preset, args.clip, args.vae, args.seed), args.dtype, args.te_dtype)
    size, seconds = args.out.stat().st_size / 1e6, time.monotonic() - started
    print(f"{args.out}: {args.preset}, {size:.0f} MB, {seconds:.1f} s")


if __name__ == "__main__":
    main()

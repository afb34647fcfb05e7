# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and shapes of the parameters of diffusion models: UNets in the ldm layout, and transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from testbed.checkpoints.shapes import Shapes


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
    positions: int = 0  #: height and width of the table of positions; 0 = none, the host then computes them
    dual: int = 0  #: so many blocks, from the first, attend to the picture alone as well, as in sd3.5 medium
    context: int = 4096
    latent: int = 16

    def shapes(self) -> Shapes:
        s, width = Shapes(), 64 * self.depth
        s.conv("x_embedder.proj", width, self.latent, kernel=2)
        if self.positions:
            s["pos_embed"] = (1, self.positions**2, width)
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
                dual = side == "x_block" and i < self.dual
                for attention in ("attn", "attn2") if dual else ("attn",):
                    s.linear(f"{name}.{attention}.qkv", 3 * width, width)
                    if self.query_key_norm:
                        s[f"{name}.{attention}.ln_q.weight"] = s[f"{name}.{attention}.ln_k.weight"] = (64,)
                    if not keys_only:
                        s.linear(f"{name}.{attention}.proj", width, width)
                if not keys_only:
                    s.linear(f"{name}.mlp.fc1", 4 * width, width)
                    s.linear(f"{name}.mlp.fc2", width, 4 * width)
                s.linear(f"{name}.adaLN_modulation.1", (2 if keys_only else 9 if dual else 6) * width, width)
        s.linear("final_layer.linear", 4 * self.latent, width)
        s.linear("final_layer.adaLN_modulation.1", 2 * width, width)
        return s


@dataclass(frozen=True)
class Flux:
    """The flux transformer: blocks of two streams, then of one, with fused projections; heads of width 128."""

    double: int
    single: int
    heads: int = 2
    context: int = 4096
    vector: int = 768
    latent: int = 16

    def shapes(self) -> Shapes:
        s, width = Shapes(), 128 * self.heads
        s.linear("img_in", width, 4 * self.latent)
        s.linear("txt_in", width, self.context)
        for name, inputs in (("time_in", 256), ("vector_in", self.vector), ("guidance_in", 256)):
            s.linear(f"{name}.in_layer", width, inputs)
            s.linear(f"{name}.out_layer", width, width)
        for i in range(self.double):
            for stream in ("img", "txt"):
                name = f"double_blocks.{i}.{stream}"
                s.linear(f"{name}_mod.lin", 6 * width, width)
                s.linear(f"{name}_attn.qkv", 3 * width, width)
                s[f"{name}_attn.norm.query_norm.scale"] = s[f"{name}_attn.norm.key_norm.scale"] = (128,)
                s.linear(f"{name}_attn.proj", width, width)
                s.linear(f"{name}_mlp.0", 4 * width, width)
                s.linear(f"{name}_mlp.2", width, 4 * width)
        for i in range(self.single):
            name = f"single_blocks.{i}"
            s.linear(f"{name}.linear1", 7 * width, width)
            s.linear(f"{name}.linear2", width, 5 * width)
            s[f"{name}.norm.query_norm.scale"] = s[f"{name}.norm.key_norm.scale"] = (128,)
            s.linear(f"{name}.modulation.lin", 3 * width, width)
        s.linear("final_layer.linear", 4 * self.latent, width)
        s.linear("final_layer.adaLN_modulation.1", 2 * width, width)
        return s


@dataclass(frozen=True)
class Flux2:
    """The flux 2 transformer: modulation is shared by all blocks, nothing has a bias; heads of width 128."""

    double: int
    single: int
    heads: int = 2
    context: int = 64
    latent: int = 128

    def shapes(self) -> Shapes:
        s, width = Shapes(), 128 * self.heads

        def linear(name: str, out: int, inputs: int) -> None:
            s.linear(name, out, inputs, bias=False)

        linear("img_in", width, self.latent)
        linear("txt_in", width, self.context)
        for name in ("time_in", "guidance_in"):
            linear(f"{name}.in_layer", width, 256)
            linear(f"{name}.out_layer", width, width)
        for i in range(self.double):
            for stream in ("img", "txt"):
                name = f"double_blocks.{i}.{stream}"
                linear(f"{name}_attn.qkv", 3 * width, width)
                s[f"{name}_attn.norm.query_norm.scale"] = s[f"{name}_attn.norm.key_norm.scale"] = (128,)
                linear(f"{name}_attn.proj", width, width)
                linear(f"{name}_mlp.0", 6 * width, width)
                linear(f"{name}_mlp.2", width, 3 * width)
        for i in range(self.single):
            name = f"single_blocks.{i}"
            linear(f"{name}.linear1", 9 * width, width)
            linear(f"{name}.linear2", width, 4 * width)
            s[f"{name}.norm.query_norm.scale"] = s[f"{name}.norm.key_norm.scale"] = (128,)
        for name, parts in (
            ("double_stream_modulation_img", 6), ("double_stream_modulation_txt", 6), ("single_stream_modulation", 3),
        ):  # fmt: skip
            linear(f"{name}.lin", parts * width, width)
        linear("final_layer.linear", self.latent, width)
        linear("final_layer.adaLN_modulation.1", 2 * width, width)
        return s


@dataclass(frozen=True)
class Wan:
    """The wan 2.1 transformer of videos from text; heads of width 128."""

    blocks: int
    heads: int = 1
    context: int = 4096
    latent: int = 16

    def shapes(self) -> Shapes:
        s, width = Shapes(), 128 * self.heads
        s["patch_embedding.weight"], s["patch_embedding.bias"] = (width, self.latent, 1, 2, 2), (width,)
        for name, inputs in (("text_embedding", self.context), ("time_embedding", 256)):
            s.linear(f"{name}.0", width, inputs)
            s.linear(f"{name}.2", width, width)
        s.linear("time_projection.1", 6 * width, width)
        for i in range(self.blocks):
            name = f"blocks.{i}"
            s[f"{name}.modulation"] = (1, 6, width)
            s.norm(f"{name}.norm3", width)
            for attention in ("self_attn", "cross_attn"):
                for part in "qkvo":
                    s.linear(f"{name}.{attention}.{part}", width, width)
                s[f"{name}.{attention}.norm_q.weight"] = s[f"{name}.{attention}.norm_k.weight"] = (width,)
            s.linear(f"{name}.ffn.0", 2 * width, width)
            s.linear(f"{name}.ffn.2", width, 2 * width)
        s["head.modulation"] = (1, 2, width)
        s.linear("head.head", 4 * self.latent, width)
        return s

# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the layers of a checkpoint are in a diffusers model, as diffusers' own converters say.

A converter turns the tensors of a checkpoint into those of a diffusers model. Run on :class:`Rows` in place of tensors,
it tells which rows of which weight go where, for a model of any size: names are translated, and fused projections
split, by diffusers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from torch import Tensor, nn

from ..errors import BaseMismatchError, ShapeError, SodaError

#: What the names of a UNet's checkpoint begin with, and those of ComfyUI's layers of any diffusion model.
_CHECKPOINT, _COMFYUI = "model.diffusion_model.", "diffusion_model."

#: From where to where, in parts of all rows.
Span = tuple[Fraction, Fraction]
_ALL: tuple[Span, ...] = ((Fraction(0), Fraction(1)),)


@dataclass(frozen=True)
class Rows:
    """Rows of one tensor of a checkpoint, in the order in which a converter puts them together."""

    name: str
    spans: tuple[Span, ...] = _ALL

    @property
    def shape(self) -> tuple[int, ...]:
        """That of a tensor whose size does not matter."""
        return (0, 0)

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Rows, ...]:
        return self.split([1] * chunks, dim)

    def split(self, sizes: Iterable[int], dim: int = 0) -> tuple[Rows, ...]:
        if dim != 0 or len(self.spans) != 1:
            raise NotImplementedError(f"only whole rows of {self.name!r} can be followed")
        ((start, stop),) = self.spans
        ends = [0, *accumulate(sizes)]
        at = [start + (stop - start) * Fraction(end, ends[-1]) for end in ends]
        return tuple(Rows(self.name, (span,)) for span in pairwise(at))

    @staticmethod
    def cat(parts: Iterable[Rows], dim: int = 0) -> Rows:
        parts = list(parts)
        if dim != 0 or len({part.name for part in parts}) != 1:
            raise NotImplementedError(f"only rows of one tensor can be followed, not of {parts}")
        return Rows(parts[0].name, tuple(span for part in parts for span in part.spans))

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        followed: dict[Any, Callable[..., Any]] = {torch.chunk: cls.chunk, torch.split: cls.split, torch.cat: cls.cat}
        if function not in followed:
            raise NotImplementedError(f"{function} of a checkpoint's tensor cannot be followed")
        return followed[function](*args, **(kwargs or {}))


class _Checkpoint(dict[str, Rows]):
    """A checkpoint that holds whatever a converter asks it for."""

    def __missing__(self, name: str) -> Rows:
        return Rows(name)

    def pop(self, name: str, *default: Any) -> Any:
        return super().pop(name, Rows(name))


# ------------------------------------------------------------------------- what a checkpoint of such a model may hold


def _unet_names(model: nn.Module) -> Iterator[str]:
    """Names of weights; more than there are: the converter gives those that the model lacks a place outside of it."""
    known: Any = DIFFUSERS_TO_LDM_MAPPING
    yield from (name for names in known["unet"].values() for name in names.values())
    inside = (name.partition(".attentions.")[2] for name in _weights(model))
    attention = sorted({name.split(".", 1)[1] for name in inside if name})
    residual = [f"{part}.weight" for part in ("in_layers.2", "emb_layers.1", "out_layers.3", "skip_connection")]
    for block in range(_blocks(model) + 1):
        for way in ("input_blocks", "output_blocks"):
            yield from (f"{way}.{block}.0.{name}" for name in residual)
            yield from (f"{way}.{block}.1.{name}" for name in attention)
        yield f"input_blocks.{block}.0.op.weight"
    for part, names in enumerate((residual, attention, residual)):
        yield from (f"middle_block.{part}.{name}" for name in names)


def _unet_upsamplers(model: nn.Module, found: Mapping[str, Rows]) -> Iterator[str]:
    """A block's upsampler comes after its attention, where it has one."""
    weights = _weights(model)
    present = {rows.name for name, rows in found.items() if name in weights}
    for block in range(_blocks(model)):
        attends = any(name.startswith(f"output_blocks.{block}.1.") for name in present)
        yield from (f"output_blocks.{block}.{2 if attends else 1}.conv.{end}" for end in ("weight", "bias"))


def _blocks(model: Any) -> int:
    """Residual blocks of a UNet on one way, resampling on the way in included."""
    return len(model.config["block_out_channels"]) * (model.config["layers_per_block"] + 1)


def _sd3_names(model: Any) -> Iterator[str]:
    """Names from which the converter tells how many blocks there are and what is in them; it asks for the rest."""
    for block in range(model.config["num_layers"]):
        yield f"joint_blocks.{block}.x_block.attn.qkv.weight"
    for block in model.config["dual_attention_layers"]:
        yield f"joint_blocks.{block}.x_block.attn2.qkv.weight"
    if model.config["qk_norm"]:
        yield "joint_blocks.0.x_block.attn.ln_q.weight"


def _flux_names(model: Any) -> Iterator[str]:
    """As for SD3."""
    for block in range(model.config["num_layers"]):
        yield f"double_blocks.{block}.img_attn.qkv.weight"
    for block in range(model.config["num_single_layers"]):
        yield f"single_blocks.{block}.linear1.weight"
    if model.config["guidance_embeds"]:
        yield "guidance_in.in_layer.weight"


#: By diffusers' class: what its checkpoints hold.
_FAMILIES: dict[str, Callable[[Any], Iterator[str]]] = {
    "UNet2DConditionModel": _unet_names,
    "SD3Transformer2DModel": _sd3_names,
    "FluxTransformer2DModel": _flux_names,
}


def family(model: object) -> str | None:
    """diffusers' name for the class of a model whose layers can be found; None for any other object."""
    return next((kind.__name__ for kind in type(model).__mro__ if kind.__name__ in _FAMILIES), None)


def converted(model: nn.Module) -> dict[str, Rows]:
    """The model's parameters by name, as rows of a checkpoint's tensors.

    Raises:
        BaseMismatchError: a model of another family.
    """
    kind = family(model)
    if kind is None:
        raise BaseMismatchError(
            f"cannot find a checkpoint's layers in a {type(model).__name__}; expected one of {list(_FAMILIES)} or a "
            "pipeline with one of them"
        )
    names = list(_FAMILIES[kind](model))
    found = _convert(kind, model.config, names)
    if kind == "UNet2DConditionModel":
        found = _convert(kind, model.config, [*names, *_unet_upsamplers(model, found)])
    present = dict(_parameters(model))
    return {name: rows for name, rows in found.items() if name in present}


def _convert(kind: str, config: Any, names: Iterable[str]) -> dict[str, Rows]:
    converters: Any = SINGLE_FILE_LOADABLE_CLASSES
    convert = converters[kind]["checkpoint_mapping_fn"]
    checkpoint = _Checkpoint({_CHECKPOINT + name: Rows(name) for name in names})
    try:
        found = convert(checkpoint=checkpoint, config=config)
    except NotImplementedError as error:
        raise SodaError(
            f"diffusers {diffusers.__version__} converts {kind} in a way this pack does not know ({error}); update the "
            "pack, or install diffusers 0.42"
        ) from error
    return {name: rows for name, rows in found.items() if rows}


def _parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Named as they are without layers of PEFT around them."""
    for name, parameter in model.named_parameters():
        yield name.replace(".base_layer.", "."), parameter


def _weights(model: nn.Module) -> set[str]:
    return {name for name, parameter in _parameters(model) if name.endswith(".weight") and parameter.ndim >= 2}


# --------------------------------------------------------------------------------------------------------- the layers


@dataclass(frozen=True)
class Part:
    """A module of a diffusers model, and the rows of a checkpoint's weight that its own weight is made of."""

    module: str
    spans: tuple[Span, ...]


def parts_by_layer(kind: str, layers: Collection[str], config: Mapping[str, Any]) -> dict[str, list[Part]]:
    """Where the layers of a checkpoint are, told by the names of all of them: no model is made.

    Args:
        kind: diffusers' name for the class of the model.
        layers: by their names in ComfyUI, without text encoders.
        config: what the converter asks of the model's.
    """
    names = [f"{layer.removeprefix(_COMFYUI)}.{end}" for layer in layers for end in ("weight", "bias")]
    parts: dict[str, list[Part]] = {}
    for name, rows in _convert(kind, config, names).items():
        if name.endswith(".weight"):
            layer = _COMFYUI + rows.name.removesuffix(".weight")
            parts.setdefault(layer, []).append(Part(name.removesuffix(".weight"), rows.spans))
    return {layer: found for layer, found in parts.items() if layer in layers}


class LayerMap:
    """The layers of a diffusers model by their names in ComfyUI."""

    def __init__(self, model: nn.Module) -> None:
        self._weights = _weights(model)
        self.parts: dict[str, list[Part]] = {}
        for name, rows in converted(model).items():
            if name in self._weights:
                layer = _COMFYUI + rows.name.removesuffix(".weight")
                self.parts.setdefault(layer, []).append(Part(name.removesuffix(".weight"), rows.spans))

    def find(self, layer: str) -> list[Part]:
        """Where a layer is; none where the model lacks it. A layer may go by its name in the model, too."""
        return self.parts.get(layer) or ([Part(layer, _ALL)] if f"{layer}.weight" in self._weights else [])

    @property
    def whole(self) -> dict[str, str]:
        """Names in ComfyUI by module, of the modules that are a layer there, not a part of one."""
        return {parts[0].module: layer for layer, parts in self.parts.items() if parts[0].spans == _ALL}


def joined(parts: Iterable[Part], weights: Mapping[str, Tensor]) -> Tensor:
    """A checkpoint's weight ``(out, in, *kernel)`` from the weights of the modules it is spread over.

    Raises:
        ShapeError: some of its rows are in none of them.
    """
    rows: list[tuple[Span, Tensor]] = []
    for part in parts:
        weight = weights[part.module]
        rows += zip(part.spans, weight.split(_sizes(part, weight.shape[0])), strict=True)
    rows.sort(key=lambda row: row[0])
    ends = [Fraction(0), *(stop for (_, stop), _ in rows)]
    if ends != [*(start for (start, _), _ in rows), Fraction(1)]:
        spans = ", ".join(f"{start} to {stop}" for (start, stop), _ in rows)
        raise ShapeError(f"modules {[part.module for part in parts]} hold only some of a layer's rows: {spans} of 1")
    return rows[0][1] if len(rows) == 1 else torch.cat([weight for _, weight in rows])


def separated(parts: Iterable[Part], weight: Tensor) -> dict[str, Tensor]:
    """The inverse of :func:`joined`."""
    out = weight.shape[0]
    return {
        part.module: torch.cat([weight[int(start * out) : int(stop * out)] for start, stop in part.spans])
        for part in parts
    }


def _sizes(part: Part, rows: int) -> list[int]:
    """Rows of each span of a module's weight."""
    lengths = [stop - start for start, stop in part.spans]
    return [int(rows * length / sum(lengths)) for length in lengths]

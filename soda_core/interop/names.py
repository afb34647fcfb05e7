# SPDX-License-Identifier: GPL-3.0-or-later
"""What other programs call the layers of a base model in a LoRA file.

Layers are ours as ComfyUI names them: ``diffusion_model.<path>`` and ``text_encoders.<encoder>.transformer.<path>``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from ..errors import SettingsError

if TYPE_CHECKING:  # needs diffusers, which is asked only for the names that are its own
    from .layer_map import Part

Naming = Literal["comfy", "kohya", "diffusers"]

_MODEL = "diffusion_model."
_TEXT_ENCODER = re.compile(r"text_encoders\.(\w+)\.transformer\.(.+)")


#: From where to where, in parts of all rows.
Span = tuple[Fraction, Fraction]


@dataclass(frozen=True)
class LayerKeys:
    """The keys of one layer in a LoRA file, or of one of the modules that another program has in its place."""

    up: str
    down: str
    alpha: str | None  #: None where a file has none: the product of up and down counts as it is
    spans: tuple[Span, ...] | None = None  #: its rows of the layer's; None: all

    @property
    def difference(self) -> str:
        """The key of a full difference, as ComfyUI's own loader reads it."""
        return f"{self.up.removesuffix('.lora_up.weight')}.diff"

    def rows(self, up: Tensor) -> Tensor:
        """Its rows of ``up (out, rank)``."""
        if self.spans is None:
            return up
        out = up.shape[0]
        return torch.cat([up[int(start * out) : int(stop * out)] for start, stop in self.spans])


def family(layers: Collection[str]) -> str:
    """The kind of model, told by the names of all its layers: "SD 1", "SDXL", "SD 3", "Flux", or "" for others."""
    names = {name.removeprefix(_MODEL) for name in layers if name.startswith(_MODEL)}
    first = {name.partition(".")[0] for name in names}
    if "input_blocks" in first:
        return "SDXL" if any(name.startswith("label_emb.") for name in names) else "SD 1"
    if "joint_blocks" in first:
        return "SD 3"
    # relatives of Flux embed the text or the vector otherwise
    if {"double_blocks", "single_blocks", "vector_in"} <= first and "txt_in" in names:
        return "Flux"
    return ""


def layer_keys(layers: Iterable[str], naming: Naming, base: Collection[str]) -> dict[str, list[LayerKeys]]:
    """The keys of every layer; several where diffusers has several modules for it.

    - "comfy": ComfyUI's own names, for every model it knows.
    - "kohya": sd-scripts' names, which most programs read. SD 1 and 2, SDXL, SD 3 and Flux.
    - "diffusers": its module paths. For UNets in the layout in which diffusers saved attention processors, because it
      and ComfyUI's *Load LoRA* both read that (the loader knows no others of diffusers' UNet). The same models.

    Args:
        base: names of all layers of the base model.
    Raises:
        SettingsError: a naming that does not exist, or not for this model or layer.
    """
    if naming not in get_args(Naming):
        raise SettingsError(f"unknown naming {naming!r}; choose one of {list(get_args(Naming))}")
    kind = family(base)
    if naming == "diffusers":
        paths = _diffusers_parts(kind, base)
        return {name: _diffusers_text_encoder(name) or _diffusers(kind, paths, name) for name in layers}
    model_path = _kohya_paths(kind, base) if naming == "kohya" else str
    text_encoder_path = _kohya_text_encoder if naming == "kohya" else lambda name, kind: None
    return {name: [_kohya_like(text_encoder_path(name, kind) or model_path(name))] for name in layers}


def _kohya_like(path: str) -> LayerKeys:
    return LayerKeys(f"{path}.lora_up.weight", f"{path}.lora_down.weight", f"{path}.alpha")


# --------------------------------------------------------------------------------------------------------------- kohya


def _kohya_paths(kind: str, base: Collection[str]) -> Callable[[str], str]:
    """sd-scripts walks diffusers' UNet for SD 1 and 2, and the models as they were published for all others."""
    if kind == "SD 1":
        unet = unet_paths(base)
        return lambda name: f"lora_unet_{_known(unet, name).replace('.', '_')}"
    if kind in ("SDXL", "SD 3", "Flux"):
        return lambda name: f"lora_unet_{name.removeprefix(_MODEL).replace('.', '_')}"
    raise _unsupported("kohya", "SD 1 and 2, SDXL, SD 3 and Flux")


def _kohya_text_encoder(name: str, kind: str) -> str | None:
    match = _TEXT_ENCODER.fullmatch(name)
    if not match:
        return None
    single = "lora_te" if kind == "SD 1" else "lora_te1"
    prefixes = {"clip_l": single, "clip_h": single, "clip_g": "lora_te2", "t5xxl": "lora_te3"}
    if match[1] not in prefixes:
        raise _unsupported("kohya", "the text encoders clip_l, clip_h, clip_g and t5xxl", name)
    return f"{prefixes[match[1]]}_{match[2].replace('.', '_')}"


# ----------------------------------------------------------------------------------------------------------- diffusers

#: By family: diffusers' name for the class of the model.
_CLASSES = {
    "SD 1": "UNet2DConditionModel",
    "SDXL": "UNet2DConditionModel",
    "SD 3": "SD3Transformer2DModel",
    "Flux": "FluxTransformer2DModel",
}


def _diffusers_parts(kind: str, base: Collection[str]) -> dict[str, list[Part]]:
    """diffusers' modules of the model's layers by our names, by its own converters of checkpoints."""
    from .layer_map import parts_by_layer

    if kind not in _CLASSES:
        raise _unsupported("diffusers", "SD 1 and 2, SDXL, SD 3 and Flux")
    model = [name for name in base if name.startswith(_MODEL)]
    config: dict[str, object] = {}
    if _CLASSES[kind] == "UNet2DConditionModel":
        blocks = [match for name in model if (match := re.match(rf"{_MODEL}input_blocks\.(\d+)\.0(\.op)?", name))]
        first_level = min((int(block[1]) - 1 for block in blocks if block[2]), default=max(int(b[1]) for b in blocks))
        config["layers_per_block"] = first_level
        config["addition_embed_type"] = "text_time" if kind == "SDXL" else None
    return parts_by_layer(_CLASSES[kind], model, config)


def unet_paths(base: Collection[str]) -> dict[str, str]:
    """diffusers' module paths of a UNet's layers by our names."""
    return {name: parts[0].module for name, parts in _diffusers_parts(family(base), base).items()}


def _diffusers(kind: str, parts: Mapping[str, list[Part]], name: str) -> list[LayerKeys]:
    if name not in parts:
        raise _no_name(name)
    if _CLASSES[kind] == "UNet2DConditionModel":
        return [_unet_keys(part.module) for part in parts[name]]
    return [
        LayerKeys(
            f"transformer.{part.module}.lora_B.weight", f"transformer.{part.module}.lora_A.weight", None, part.spans
        )
        for part in parts[name]
    ]


def _unet_keys(module: str) -> LayerKeys:
    attention = re.fullmatch(r"(.+\.attn[12])\.(to_[qkv]|to_out)(?:\.0)?", module)
    path = f"unet.{attention[1]}.processor.{attention[2]}_lora" if attention else f"unet.{module}.lora"
    return LayerKeys(f"{path}.up.weight", f"{path}.down.weight", None)


def _diffusers_text_encoder(name: str) -> list[LayerKeys] | None:
    match = _TEXT_ENCODER.fullmatch(name)
    if not match:
        return None
    encoders = {"clip_l": "text_encoder", "clip_h": "text_encoder", "clip_g": "text_encoder_2"}
    if match[1] not in encoders:
        raise _unsupported("diffusers", "the text encoders clip_l, clip_h and clip_g", name)
    path = f"{encoders[match[1]]}.{match[2]}.lora_linear_layer"
    return [LayerKeys(f"{path}.up.weight", f"{path}.down.weight", None)]


def _known(paths: dict[str, str], name: str) -> str:
    if name not in paths:
        raise _no_name(name)
    return paths[name]


def _no_name(name: str) -> SettingsError:
    return SettingsError(f"diffusers has no name for layer {name!r}; export with the naming 'comfy'")


def _unsupported(naming: Naming, known: str, name: str = "") -> SettingsError:
    what = f"layer {name!r}" if name else "this model"
    return SettingsError(f"the naming {naming!r} is known for {known}, not for {what}; export with the naming 'comfy'")

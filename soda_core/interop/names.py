# SPDX-License-Identifier: GPL-3.0-or-later
"""What other programs call the layers of a base model in a LoRA file.

Layers are ours as ComfyUI names them: ``diffusion_model.<path>`` and ``text_encoders.<encoder>.transformer.<path>``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import SettingsError

Naming = Literal["comfy", "kohya", "diffusers"]

_MODEL = "diffusion_model."
_TEXT_ENCODER = re.compile(r"text_encoders\.(\w+)\.transformer\.(.+)")


@dataclass(frozen=True)
class LayerKeys:
    """The keys of one layer in a LoRA file."""

    up: str
    down: str
    alpha: str | None  #: None where a file has none: the product of up and down counts as it is

    @property
    def difference(self) -> str:
        """The key of a full difference, as ComfyUI's own loader reads it."""
        return f"{self.up.removesuffix('.lora_up.weight')}.diff"


def family(layers: Collection[str]) -> str:
    """The kind of model, told by the names of all its layers: "SD 1", "SDXL", "SD 3", "Flux", or "" for others."""
    names = {name.removeprefix(_MODEL) for name in layers if name.startswith(_MODEL)}
    first = {name.partition(".")[0] for name in names}
    if "input_blocks" in first:
        return "SDXL" if any(name.startswith("label_emb.") for name in names) else "SD 1"
    if "joint_blocks" in first:
        return "SD 3"
    if {"double_blocks", "single_blocks"} <= first and any(name.startswith("vector_in.") for name in names):
        return "Flux"
    return ""


def layer_keys(layers: Iterable[str], naming: Naming, base: Collection[str]) -> dict[str, LayerKeys]:
    """The keys of every layer.

    - "comfy": ComfyUI's own names, for every model it knows.
    - "kohya": sd-scripts' names, which most programs read. SD 1 and 2, SDXL, SD 3 and Flux.
    - "diffusers": the layout in which diffusers saved attention processors, because it and ComfyUI's *Load LoRA* both
      read it (that loader knows no others of diffusers' UNet). SD 1 and 2 and SDXL.

    Args:
        base: names of all layers of the base model.
    Raises:
        SettingsError: a naming that does not exist, or not for this model or layer.
    """
    if naming not in get_args(Naming):
        raise SettingsError(f"unknown naming {naming!r}; choose one of {list(get_args(Naming))}")
    kind = family(base)
    if naming == "comfy":
        return {name: _kohya_like(name) for name in layers}
    if naming == "kohya":
        model_path = _kohya_paths(kind, base)
        return {name: _kohya_like(_kohya_text_encoder(name, kind) or model_path(name)) for name in layers}
    paths = _diffusers_unet_paths(kind, base)
    return {name: _diffusers_text_encoder(name) or _diffusers(paths, name) for name in layers}


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


def _diffusers_unet_paths(kind: str, base: Collection[str]) -> dict[str, str]:
    if kind not in ("SD 1", "SDXL"):
        raise _unsupported("diffusers", "SD 1 and 2 and SDXL")
    return unet_paths(base)


def _diffusers(paths: dict[str, str], name: str) -> LayerKeys:
    path = f"unet.{_known(paths, name)}"
    attention = re.fullmatch(r"(.+\.attn[12])\.(to_[qkv]|to_out)(?:\.0)?", path)
    if attention:
        path = f"{attention[1]}.processor.{attention[2]}_lora"
    else:
        path = f"{path}.lora"
    return LayerKeys(f"{path}.up.weight", f"{path}.down.weight", None)


def _diffusers_text_encoder(name: str) -> LayerKeys | None:
    match = _TEXT_ENCODER.fullmatch(name)
    if not match:
        return None
    encoders = {"clip_l": "text_encoder", "clip_h": "text_encoder", "clip_g": "text_encoder_2"}
    if match[1] not in encoders:
        raise _unsupported("diffusers", "the text encoders clip_l, clip_h and clip_g", name)
    path = f"{encoders[match[1]]}.{match[2]}.lora_linear_layer"
    return LayerKeys(f"{path}.up.weight", f"{path}.down.weight", None)


def unet_paths(base: Collection[str]) -> dict[str, str]:
    """diffusers' module paths of the UNet's layers by our names, by diffusers' own converter of checkpoints."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    # The converter moves entries from name to name; what an entry is does not matter to it.
    model = [name for name in base if name.startswith(_MODEL)]
    entries = {f"model.{name}.{kind}": name for kind in ("bias", "weight") for name in model}
    blocks = [match for name in model if (match := re.match(rf"{_MODEL}input_blocks\.(\d+)\.0(\.op)?", name))]
    first_level = min((int(block[1]) - 1 for block in blocks if block[2]), default=max(int(b[1]) for b in blocks))
    config = {
        "layers_per_block": first_level,
        "addition_embed_type": "text_time" if family(base) == "SDXL" else None,
    }
    converted = convert_ldm_unet_checkpoint(entries, config)
    return {name: path.removesuffix(".weight") for path, name in converted.items() if path.endswith(".weight")}


def _known(paths: dict[str, str], name: str) -> str:
    if name not in paths:
        raise SettingsError(f"diffusers has no name for layer {name!r}; export with the naming 'comfy'")
    return paths[name]


def _unsupported(naming: Naming, known: str, name: str = "") -> SettingsError:
    what = f"layer {name!r}" if name else "this model"
    return SettingsError(f"the naming {naming!r} is known for {known}, not for {what}; export with the naming 'comfy'")

# SPDX-License-Identifier: GPL-3.0-or-later
"""The base model behind a ModelPatcher: its pristine weights, its adaptable layers, what it calls itself.

Layer names are the host's own: ``diffusion_model.<path>`` for a MODEL, ``text_encoders.<path>`` for a CLIP.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor

from ..base_weight import BaseWeight
from ..errors import BaseMismatchError
from . import gguf
from .spectra import store

TEXT_ENCODERS = "text_encoders."

#: Class names of the host's model configurations whose common name differs.
_FAMILIES = {"SD15": ("SD 1.5", "stable-diffusion-v1"), "SDXL": ("SDXL 1.0", "stable-diffusion-xl-v1-base")}


def weight_key(layer: str) -> str:
    """State-dict key of a layer in its own patcher."""
    return f"{layer.removeprefix(TEXT_ENCODERS)}.weight"


def stored_weight(patcher: Any, key: str, live: Tensor) -> Tensor:
    """The unpatched parameter as it is stored (not dequantised), given the one in use."""
    if key in patcher.backup:  # the original, also while a hook is active on top
        return patcher.backup[key].weight  # type: ignore[no-any-return]
    if key in patcher.hook_backup:
        return patcher.hook_backup[key][0]  # type: ignore[no-any-return]
    return live


def pristine_weight(patcher: Any, key: str) -> Tensor:
    """The weight as the base checkpoint has it, whatever is patched, hooked or offloaded; do not write to it.

    Raises:
        BaseMismatchError: it is quantised in a way that nobody here can undo.
    """
    live, _, convert = comfy.model_patcher.get_key_weight(patcher.model, key)
    weight = stored_weight(patcher, key, live)
    if convert is not None:
        weight = convert(weight)
    layer = comfy.utils.get_attr(patcher.model, key.rpartition(".")[0])
    if gguf.is_packed(weight) and gguf.unpacks(layer):
        weight = gguf.unpacked(layer, weight)
    elif type(weight) not in (Tensor, torch.nn.Parameter) and weight.is_floating_point():
        weight = weight.dequantize()
    if not weight.is_floating_point():
        raise BaseMismatchError(
            f"{key}: its loader keeps it as {str(weight.dtype).removeprefix('torch.')} in a way that this pack cannot "
            f"read ({type(weight).__name__} in {type(layer).__name__}); load this base in fp16, bf16, fp8, int8 or GGUF"
        )
    return weight.detach()  # type: ignore[no-any-return]


def weight_shape(patcher: Any, key: str) -> tuple[int, ...]:
    """Of :func:`pristine_weight`, without making it."""
    return tuple(comfy.model_patcher.get_key_weight(patcher.model, key)[0].shape)


class PristineWeights(Mapping[str, Tensor]):
    """:func:`pristine_weight` by layer name, made when asked for: of a quantised model each is a copy."""

    def __init__(self, patcher: Any, names: Sequence[str]) -> None:
        self.patcher, self.names = patcher, names

    def __getitem__(self, name: str) -> Tensor:
        return pristine_weight(self.patcher, weight_key(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def base_weight(patcher: Any, layer: str) -> BaseWeight:
    """:func:`pristine_weight` of a layer with the decompositions that the process keeps of it."""
    return BaseWeight(pristine_weight(patcher, weight_key(layer)), compute_device(patcher), store().get)


def layer_shapes(patcher: Any) -> dict[str, tuple[int, ...]]:
    """Weight shape of every linear and convolution layer of the diffusion model, in the model's order.

    Layers are told by the host's ``weight_function`` hook, not by class: quantised ones are not ``nn.Linear``.
    """
    shapes = {}
    for name, module in patcher.model.named_modules():
        if not name.startswith("diffusion_model.") or isinstance(module, torch.nn.Embedding):
            continue
        weight = getattr(module, "weight", None)
        if hasattr(module, "weight_function") and weight is not None and weight.ndim >= 2:
            if getattr(module, "transposed", False):  # (in, out, …): its input side is another axis
                continue
            shapes[name] = tuple(weight.shape)
    return shapes


def compute_device(patcher: Any) -> torch.device:
    """Where decompositions and deltas are computed: the patcher's own device."""
    return torch.device(patcher.load_device)


def describe(patcher: Any, with_hash: bool) -> dict[str, Any]:
    """What an adapter file says of its base: family, architecture, and the checkpoint's name and SHA-256."""
    config = type(patcher.model.model_config).__name__
    family, architecture = _FAMILIES.get(config, (config, config.lower()))
    info: dict[str, Any] = {
        "family": family,
        "architecture": architecture,
        "prediction_type": patcher.model.model_type.name.lower(),
        "dtype": str(patcher.model.get_dtype()).removeprefix("torch."),
    }
    path = _checkpoint_path(patcher)
    if path is not None:
        info["name"] = os.path.basename(path).encode(errors="replace").decode()  # a name on disk may be no text
        if with_hash:
            info["hash"] = _file_sha256(path)
    return info


def _checkpoint_path(patcher: Any) -> str | None:
    """The file the host would reload the model from, where its loader left that note."""
    init = getattr(patcher, "cached_patcher_init", None)
    candidate = init[1][0] if init and init[1] else None
    return candidate if isinstance(candidate, str) and os.path.isfile(candidate) else None


def _file_sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
            comfy.model_management.throw_exception_if_processing_interrupted()
    return digest.hexdigest()

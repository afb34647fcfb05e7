# SPDX-License-Identifier: GPL-3.0-or-later
"""A private copy of a model to train in, without a second copy of its weights.

The host runs nodes in inference mode, and autograd refuses tensors made there. Instead of loading the model a second
time, the module tree is copied and every parameter replaced by an ordinary tensor on the *same* storage. The original
modules, patches and flags are never touched; weights are only read.
"""

from __future__ import annotations

import copy
import uuid
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ...errors import TrainingError
from .. import base, gguf


def ordinary(tensor: Tensor) -> Tensor:
    """A tensor autograd accepts, on the same storage as a possibly inference-mode one."""
    with torch.inference_mode(False):
        if hasattr(tensor, "__tensor_flatten__"):  # a quantised weight: several tensors inside
            names, context = tensor.__tensor_flatten__()
            inside = {name: ordinary(getattr(tensor, name)) for name in names}
            return type(tensor).__tensor_unflatten__(inside, context, tensor.size(), tensor.stride())  # type: ignore
        if gguf.is_packed(tensor):
            return gguf.twin(tensor, ordinary(tensor.as_subclass(Tensor)))  # type: ignore[no-any-return]
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return tensor.detach().clone()
        twin = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return twin.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def training_copy(patcher: Any) -> Any:
    """A patcher over a private module tree that shares the weights of ``patcher``'s model.

    Patches (a LoRA in front, say) and options come along; loading, patching and replaced forwards stay private.

    Raises:
        TrainingError: the MODEL works by hooks in its modules, which a copy would not have, or cannot be loaded anew.
    """
    if patcher.injections:
        raise TrainingError(
            f"this MODEL carries injections ({', '.join(patcher.injections)}), a bypass LoRA for example; training "
            "would not see them: take that node out, or use the ordinary LoRA loader"
        )
    if patcher.is_dynamic():
        if patcher.cached_patcher_init is None:
            raise TrainingError(
                "with dynamic VRAM on, training loads the model anew, which the loader of this MODEL does not offer: "
                "use a core loader, or start ComfyUI with --disable-dynamic-vram"
            )
        source = patcher.clone(disable_dynamic=True)
    else:
        _unload(patcher)
        source = patcher
    with torch.inference_mode(False):
        model = _copy_modules(source)
        clone = source.clone(model_override=(model, ({}, {}, {}, set())))
    clone.parent = None
    clone.clone_base_uuid = uuid.uuid4()
    return clone


def _unload(patcher: Any) -> None:
    """Bring the modules back to the base model: a MODEL made from the same one may have left its own state in them."""
    for i, loaded in reversed(list(enumerate(mm.current_loaded_models))):
        if loaded.model is not None and patcher.is_clone(loaded.model):
            loaded.model_unload()
            mm.current_loaded_models.pop(i)


def _copy_modules(patcher: Any) -> torch.nn.Module:
    model = patcher.model
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        original = base.stored_weight(patcher, name, parameter)
        memo[id(parameter)] = torch.nn.Parameter(ordinary(original), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = ordinary(buffer)
    for module in model.modules():
        for functions in ("weight_function", "bias_function"):
            attached = module.__dict__.get(functions)
            if attached is not None:
                memo[id(attached)] = []  # patches of the original's current load; ours are attached when we load
    for attribute, value in vars(model).items():
        if not attribute.startswith("_"):  # configuration objects are read only, some refuse to be copied
            memo[id(value)] = value
    memo[id(getattr(model, "current_patcher", None))] = None
    copied: torch.nn.Module = copy.deepcopy(model, memo)
    for module in copied.modules():
        if hasattr(module, "prev_comfy_cast_weights"):
            module.comfy_cast_weights = module.prev_comfy_cast_weights
            del module.prev_comfy_cast_weights
        if hasattr(module, "comfy_patched_weights"):
            setattr(module, "comfy_patched_weights", False)  # noqa: B010  (a plain flag, not a submodule)
    copied.device = patcher.offload_device  # type: ignore[assignment]
    for attribute, value in (
        ("model_loaded_weight_memory", 0),
        ("lowvram_patch_counter", 0),
        ("model_lowvram", False),
        ("current_weight_patches_uuid", None),
        ("model_offload_buffer_memory", 0),
    ):
        setattr(copied, attribute, value)
    return copied

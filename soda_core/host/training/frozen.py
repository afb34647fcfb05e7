# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's layers as :class:`...training.forward.FrozenLayer`: weights by the host's own casting.

What the host does to a weight on its way (moving it, casting, dequantising, a LoRA's patch in low VRAM) is done here as
in its own forward pass, and before the adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management as mm
import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

from ...training.convolution import Convolution
from ...training.forward import AdaptedForward
from ...training.trainable_layer import TrainableLayer
from .. import gguf


class HostLayer:
    """A linear or convolution module of the host."""

    def __init__(self, module: Any) -> None:
        self.module = module
        convolves = isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d))
        self.convolution = Convolution.of(module) if convolves else None

    def weight_and_bias(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        comfy.ops.run_every_op()  # takes a cancel
        if gguf.unpacks(self.module):
            return self.module.cast_bias_weight(x)  # type: ignore[no-any-return]
        weight, bias = comfy.ops.cast_bias_weight(self.module, x)
        if isinstance(weight, QuantizedTensor):  # left so where nothing else changes it
            weight = weight.dequantize()
        return weight, bias

    def bias(self, x: Tensor) -> Tensor | None:
        comfy.ops.run_every_op()
        bias = self.module.bias
        if bias is None:
            return None
        if gguf.unpacks(self.module):
            bias = self.module.get_weight(bias.to(x.device), x.dtype)
        bias = mm.cast_to(bias, x.dtype, x.device, copy=bool(self.module.bias_function))
        for change in self.module.bias_function:
            bias = change(bias)
        return bias


def adapt(module: Any, layer: TrainableLayer, pristine: Tensor | None) -> None:
    """Replace a module's forward pass by the adapted one; the module must be ours alone.

    Args:
        pristine: see :class:`.AdaptedForward`.
    """
    module.forward = _with_scaled_input(module, AdaptedForward(HostLayer(module), layer, pristine))


def _with_scaled_input(module: Any, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Some quantised layers scale their input before it meets the weight that an adapter changes."""
    scale = getattr(module, "pre_quant_scale", None)
    if scale is None:
        return forward
    return lambda x: forward(x * mm.cast_to_device(scale, x.device, x.dtype))


def keep_exact(model: torch.nn.Module) -> None:
    """Keep the host from quantised products where no gradient follows them. (Where one does, training takes them too.)

    fp8 without scales: taken where nothing changes a weight and no gradient is asked for; but the base model must be
    computed as the adapted one is. Rotated int4: taken always, and then the backward pass fails. Call after loading,
    which decides what changes a weight.
    """
    module: Any
    for module in model.modules():
        quantised = isinstance(module, comfy.ops.fp8_ops.Linear) or getattr(module, "layout_type", "") in _NO_GRADIENT
        if quantised and not module.weight_function:
            module.weight_function = [_unchanged]


#: The host's layouts whose products autograd cannot follow.
_NO_GRADIENT = ("TensorCoreConvRotW4A4Layout",)


def _unchanged(weight: Tensor) -> Tensor:
    return weight

# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights as GGUF packs hold them: blocks of a few bits in a tensor that knows its real shape, unpacked by its layer.

They are told by what they offer, not by the class of one pack: a tensor its ``tensor_type``, ``tensor_shape`` and
``patches``; a layer ``get_weight`` and ``cast_bias_weight``. Patches are applied by the layer whenever it unpacks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_packed(weight: Any) -> bool:
    return all(hasattr(weight, name) for name in ("tensor_type", "tensor_shape", "patches"))


def unpacks(module: Any) -> bool:
    return all(callable(getattr(module, name, None)) for name in ("get_weight", "cast_bias_weight"))


def twin(weight: Any, data: Tensor) -> Any:
    """A packed tensor without patches, of the same kind and shape as another, on given data."""
    made = data.as_subclass(type(weight))
    made.__dict__.update(vars(weight))
    made.patches = []  # type: ignore[attr-defined]
    return made


def unpacked(module: Any, weight: Any) -> Tensor:
    """The weight without patches, as float16 where that holds it exactly (nearly all kinds do), else float32."""
    plain: Tensor = module.get_weight(twin(weight, weight.as_subclass(Tensor)), torch.float32)
    plain = plain.as_subclass(Tensor).reshape(tuple(weight.tensor_shape))
    half = plain.half()
    return half if torch.equal(half.float(), plain) else plain

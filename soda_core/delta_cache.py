# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes of weights that somebody holds already need not be computed again."""

from __future__ import annotations

import weakref
from collections import OrderedDict

import torch
from torch import Tensor

from .base_check import BaseCheck
from .base_weight import BaseWeight
from .errors import BaseMismatchError
from .fileformat import layer_hash
from .layer import AdaptedLayer, StrengthMode

#: Dtypes a delta is kept in as the base weight is; anything smaller (fp8) gets bfloat16.
_KEPT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class DeltaCache:
    """Get-or-compute for :meth:`.layer.AdaptedLayer.delta` and the base check that goes with it.

    Keyed by what decides the change: the content of the layer and of the weight. It keeps no delta alive, so it takes
    no memory of its own: one that no MODEL holds any more is computed anew.

    Args:
        size: how many layers are remembered; the one asked for longest ago is dropped.
    """

    def __init__(self, size: int = 10_000) -> None:
        self.size = size
        self.computed = 0  #: deltas computed so far, for tests
        self._known: OrderedDict[str, tuple[weakref.ref[Tensor], BaseCheck | None]] = OrderedDict()

    @torch.inference_mode(False)
    @torch.no_grad()
    def get(
        self, layer: AdaptedLayer, weight: BaseWeight, strength: float = 1.0, mode: StrengthMode = "linear"
    ) -> tuple[Tensor, BaseCheck | None]:
        """The change of a weight, on the CPU in the weight's dtype (bfloat16 for fp8), and the layer's base check.

        Raises:
            BaseMismatchError: the change does not fit into that dtype, or the weight is not finite.
        """
        key = f"{layer_hash(layer)} {mode} {strength} {weight.fingerprint}"
        if key in self._known:
            self._known.move_to_end(key)
            reference, check = self._known[key]
            if (delta := reference()) is not None:
                return delta, check
        self.computed += 1
        check = layer.check_base(weight)
        dtype = weight.stored.dtype if weight.stored.dtype in _KEPT_DTYPES else torch.bfloat16
        delta = layer.delta(weight, strength, mode).to("cpu", dtype)
        if not bool(torch.isfinite(delta).all()):
            raise BaseMismatchError(f"its change of the base model's weight is NaN or infinite in {dtype}")
        self._known[key] = weakref.ref(delta), check
        while len(self._known) > self.size:
            self._known.popitem(last=False)
        return delta, check

    def clear(self) -> None:
        self._known.clear()

    def __len__(self) -> int:
        return len(self._known)

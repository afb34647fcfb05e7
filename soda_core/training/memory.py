# SPDX-License-Identifier: GPL-3.0-or-later
"""How much memory a step will take, found out by running it without arithmetic and without memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .loop import Losses, Trainable


def peak_bytes(compute: Callable[[], object]) -> int:
    """The most that tensors made by ``compute`` take together at any moment.

    It runs on fake tensors, which know shapes and lifetimes but have no content: the real tensors it reads are left
    alone, and nothing may depend on a tensor's values.

    Raises:
        RuntimeError: something does depend on values, or has no fake form.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), TensorBytes() as made:
        compute()
    return made.peak


#: Of the parameters, while training: values, gradients, two moments, and the last good state; and what automatic rates
#: keep: where they started, and the sum of gradients.
_COPIES, _OF_AUTOMATIC = 5, 2


def needs(trainable: Trainable, losses: Callable[[], Losses], automatic: bool = False) -> dict[str, int]:
    """Bytes that a training takes above its model, by what they are for; arguments as for :func:`step_bytes`.

    Args:
        automatic: whether its rates are.
    """
    copies = _COPIES + _OF_AUTOMATIC * automatic
    return {
        "decompositions": trainable.frozen_bytes(),
        "adapter and optimiser": copies * sum(p.nbytes for p in trainable.parameters()),
        "a step": step_bytes(trainable, losses),
    }


def step_bytes(trainable: Trainable, losses: Callable[[], Losses]) -> int:
    """The most that a step's forward and backward pass take above model and parameters; raises as :func:`peak_bytes`.

    Args:
        losses: of the batch that takes most.
    """

    def step() -> None:
        trainable.begin_step()
        torch.autograd.grad(losses().objective, [p for p in trainable.parameters() if p.requires_grad])

    try:
        return peak_bytes(step)
    finally:
        trainable.begin_step()  # real tensors again


class TensorBytes(TorchDispatchMode):
    """Counts the bytes of tensors made within until they are gone: ``now``, and ``peak``, the most at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not any(value.alias_info for value in func._schema.returns):  # views and updates in place are not new
            for value in tree_leaves(result):
                if isinstance(value, Tensor):
                    self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = weakref.finalize(storage, self._free, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _free(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size

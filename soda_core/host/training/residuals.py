# SPDX-License-Identifier: GPL-3.0-or-later
"""Residual streams that a model changes in place after it normalised them, as Flux does.

A norm keeps its input for the backward pass, so autograd refuses to go on; and gradient checkpointing, which computes a
block again from its input, would take a changed one without a word. Norms and blocks of such a model get copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NORMS = ("layer_norm", "rms_norm", "group_norm")


class Residuals:
    """Whether one model does so, told from its first forward pass, and what follows from it."""

    def __init__(self) -> None:
        self._changed: bool | None = None
        self._active = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Around a forward pass, or a part of it that is computed again."""
        if self._active or self._changed is False:
            yield
            return
        mode, self._active = _Copies(watch=self._changed is None), True
        try:
            with mode:
                yield
        finally:
            self._active = False
        self._changed = self._changed or mode.changed

    def copied(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """What a block is given, in tensors that it may change; also those that need no gradient before it does."""
        if self._changed is False:
            return list(args), dict(kwargs)
        return [_copy(value) for value in args], {name: _copy(value) for name, value in kwargs.items()}


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


class _Copies(TorchFunctionMode):
    """Norms keep copies.

    Args:
        watch: tell in :attr:`changed` whether what they were given is changed later on.
    """

    def __init__(self, watch: bool) -> None:
        super().__init__()
        self._watch, self._given = watch, set[int]()
        self.changed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if args and isinstance(args[0], Tensor):
            in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
            if name in _NORMS:
                if self._watch:
                    self._given.add(args[0].data_ptr())
                if torch.is_grad_enabled() and args[0].requires_grad:
                    args = (_copy(args[0]), *args[1:])
            elif self._watch and in_place and args[0].data_ptr() in self._given:
                self.changed = True
        return func(*args, **(kwargs or {}))

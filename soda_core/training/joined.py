# SPDX-License-Identifier: GPL-3.0-or-later
"""Optimisers behind one that stands for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..stiefel import evaluated


class JoinedOptimizer(torch.optim.Optimizer):
    """Several optimisers behind one interface, for schedulers and trainers that take one; with one state for all."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = evaluated(closure)
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

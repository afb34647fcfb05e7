# SPDX-License-Identifier: GPL-3.0-or-later
"""AdamW for parameters that have units of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class ScaledAdamW(torch.optim.AdamW):
    """AdamW with a rate of ``scale * lr`` for each value, decay included.

    Args:
        scales: for each parameter, all numbers or all tensors that broadcast to it.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, scales: Sequence[float] | Sequence[Tensor], **adamw: Any
    ) -> None:
        super().__init__([{"params": list(params), "scales": list(scales)}], lr=lr, **adamw)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # a state of a plain AdamW
            group.setdefault("scales", [1.0] * len(group["params"]))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        before = [[p.clone() for p in group["params"]] for group in self.param_groups]
        loss = super().step(closure)
        for group, start in zip(self.param_groups, before, strict=True):
            for p, was, scale in zip(group["params"], start, group["scales"], strict=True):
                p.sub_(was).mul_(scale).add_(was)
        return loss

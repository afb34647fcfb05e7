# SPDX-License-Identifier: GPL-3.0-or-later
"""Gradient checkpointing: activations inside a block are computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint

from .residuals import Residuals


def checkpoint_blocks(model: Any, residuals: Residuals) -> None:
    """Replace the forward pass of every block of the diffusion model; the modules must be ours alone."""
    for block in checkpointed_blocks(model):
        block.forward = _Checkpointed(block.forward, residuals)  # type: ignore[method-assign]


def checkpointed_blocks(model: Any) -> list[torch.nn.Module]:
    """The blocks to recompute in the backward pass: the outermost composite modules inside containers."""
    containers = (torch.nn.ModuleList, torch.nn.Sequential, torch.nn.ModuleDict)
    blocks: list[torch.nn.Module] = []

    def walk(module: torch.nn.Module, inside: bool) -> None:
        for child in module.children():
            if isinstance(child, containers):
                walk(child, True)
            elif inside and any(True for _ in child.children()):
                blocks.append(child)
            else:
                walk(child, False)

    walk(model.diffusion_model, False)
    return blocks


class _Checkpointed:
    """A block's forward pass, and again in the backward pass."""

    def __init__(self, forward: Callable[..., Any], residuals: Residuals) -> None:
        self.forward, self.residuals = forward, residuals

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return torch.utils.checkpoint.checkpoint(
            self._computed, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )

    def _computed(self, *args: Any, **kwargs: Any) -> Any:
        with self.residuals.kept():
            own, named = self.residuals.copied(args, kwargs)
            return self.forward(*own, **named)

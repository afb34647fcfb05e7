# SPDX-License-Identifier: GPL-3.0-or-later
"""The training loop. It knows no host: data come in as a function, progress goes out as one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from .settings import TrainSettings

#: Growth of the smoothed denoising loss over the first steps' largest at which a run counts as diverged.
DIVERGED_AT = 5.0
_REFERENCE_STEPS = 10


@dataclass(frozen=True)
class Losses:
    """What a batch gives: the objective to minimise and the plain denoising loss to watch, both scalar tensors."""

    objective: Tensor
    denoising: Tensor


@dataclass
class Progress:
    """Where a run stands; the loop owns it and keeps it current."""

    step: int = 0  #: optimiser steps done
    losses: list[float] = field(default_factory=list)  #: denoising loss per step
    learning_rates: list[float] = field(default_factory=list)  #: multiplier of the learning rates per step


class Trainable(Protocol):
    """Parameters in training, whatever kind of layers they adapt a model with."""

    @property
    def layers(self) -> Mapping[str, object]:
        """What is adapted, by layer name."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """New ones, at the settings' learning rates; every trained parameter belongs to one."""

    def begin_step(self) -> None:
        """Make the layers follow the parameters; called before every forward pass that follows an update."""

    def snapshot(self) -> list[Tensor]:
        """Copies of all parameters."""

    def restore(self, snapshot: list[Tensor]) -> None: ...

    def frozen_bytes(self) -> int:
        """What it holds beside the parameters."""

    def without_gradient(self) -> list[str]:
        """Layers none of whose parameters moved the loss in the last backward pass."""

    def disabled(self) -> AbstractContextManager[None]:
        """Within, the model computes as if nothing were adapted."""


BatchLoss = Callable[[torch.Generator], Losses]
OnStep = Callable[[Progress], None]


def generator_for(seed: int, step: int, part: int = 0) -> torch.Generator:
    """The random numbers of one batch depend on seed and step alone, so that a run can go on from any step."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + part * 0x94D049BB133111EB + 1) % 2**63
    return torch.Generator().manual_seed(mixed)


def train(
    trainable: Trainable, settings: TrainSettings, batch_loss: BatchLoss, on_step: OnStep, progress: Progress
) -> None:
    """Run the settings' steps; parameters are always those of the last completed, finite step.

    Args:
        batch_loss: draws a micro-batch with the given generator and returns its losses, attached to the graph.
        on_step: called after every step; may raise (a cancel), which leaves the parameters usable.
        progress: filled in as the run goes on, so that a caller has it after an exception too.
    Raises:
        TrainingError: the loss became NaN or infinite, or grew out of all proportion; the parameters are put back to
            the last good step.
    """
    optimizers = trainable.optimizers()
    base_lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    parameters = [p for p in trainable.parameters() if p.requires_grad]
    good = trainable.snapshot()
    smoothed: float | None = None
    reference = 0.0
    while progress.step < settings.steps:
        step = progress.step
        factor = settings.lr_factor(step)
        for optimizer, lrs in zip(optimizers, base_lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
        total = 0.0
        for part in range(settings.accumulation):
            trainable.begin_step()
            losses = batch_loss(generator_for(settings.seed, step, part))
            if losses.objective.requires_grad:
                (losses.objective / settings.accumulation).backward()
            total += float(losses.denoising) / settings.accumulation
        if step == 0:
            _check_reached(trainable)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, settings.gradient_clip or math.inf))
        smoothed = total if smoothed is None else 0.9 * smoothed + 0.1 * total
        reason = _diverged(total, norm, smoothed, reference if step >= _REFERENCE_STEPS else math.inf)
        if reason:
            trainable.restore(good)
            progress.step = max(step - 1, 0)
            raise TrainingError(_advice(step, reason, settings))
        if step < _REFERENCE_STEPS:
            reference = max(reference, total)
        good = trainable.snapshot()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.losses.append(total)
        progress.learning_rates.append(factor)
        on_step(progress)
    if not all(bool(torch.isfinite(p).all()) for p in parameters):
        trainable.restore(good)
        progress.step -= 1
        raise TrainingError("training diverged in its last step; the step before is kept. Lower the learning rates")


def _check_reached(trainable: Trainable) -> None:
    """Say when something in the model keeps gradients from layers: they would be saved as if they were trained."""
    missed = trainable.without_gradient()
    total = len(trainable.layers)
    if missed and len(missed) == total:
        raise TrainingError(
            f"the loss depends on none of the {total} adapted layers: something on this MODEL hides them (it is "
            "compiled, or a patch computes without gradients); take it out for training"
        )
    if missed:
        logging.warning("SODA: the loss does not depend on %d of %d adapted layers, the first is %s; they stay as they "
                        "are", len(missed), total, missed[0])  # fmt: skip


def _diverged(loss: float, gradient_norm: float, smoothed: float, reference: float) -> str:
    """Why the run cannot go on, or ''."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(gradient_norm):
        return f"the gradient norm is {gradient_norm}"
    if smoothed > DIVERGED_AT * reference:
        return f"the loss rose to {smoothed:.3g}, {smoothed / reference:.0f} times that of the first steps"
    return ""


def _advice(step: int, reason: str, settings: TrainSettings) -> str:
    if step == 0:
        return (
            f"training cannot start: at step 1 {reason}, before anything was trained; check the base model, the VAE "
            "and the pictures, and try training_dtype fp32"
        )
    return (
        f"training diverged at step {step + 1}: {reason}. Lower the learning rates (rotation {settings.rotation_lr:g}, "
        f"shift {settings.shift_lr:g}) or add warm-up steps"
    )

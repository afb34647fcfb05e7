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
from .prodigy import Prodigy
from .ranks import ALONE, Ranks
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
    """Where a run stands; the loop owns it and keeps it current.

    ``learning_rates`` are what the schedule multiplies rates by; where they are automatic, the first part's own.
    """

    step: int = 0  #: optimiser steps done
    losses: list[float] = field(default_factory=list)  #: denoising loss per step
    learning_rates: list[float] = field(default_factory=list)  #: per step
    rates: dict[str, float] = field(default_factory=dict)  #: learning rates of the last step by part


class Trainable(Protocol):
    """Parameters in training, whatever kind of layers they adapt a model with."""

    @property
    def layers(self) -> Mapping[str, object]:
        """What is adapted, by layer name."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """New ones, at the settings' learning rates, by part; every trained parameter belongs to one."""

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
    """Run all of the settings' steps; see :class:`TrainingLoop`.

    Args:
        progress: filled in as the run goes on, so that a caller has it after an exception too.
    """
    TrainingLoop(trainable, settings, progress).run(batch_loss, on_step)


class TrainingLoop:
    """The steps of a training, which may stop after any of them and go on from there in another process.

    Parameters are always those of the last completed, finite step.

    Args:
        progress: of a run that starts; filled in as it goes on.
        ranks: the processes that share every batch; all take the same steps.
    """

    def __init__(self, trainable: Trainable, settings: TrainSettings, progress: Progress, ranks: Ranks = ALONE) -> None:
        ranks.check(settings.batch_size)
        self.trainable, self.settings, self.progress, self.ranks = trainable, settings, progress, ranks
        self._parts = trainable.optimizers()
        self._optimizers = [*self._parts.values()]
        self._base_lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]
        self._parameters = [p for p in trainable.parameters() if p.requires_grad]
        self._good = trainable.snapshot()  # before the last step, whose result is known to be good at the next
        self._watch = _Watch()
        self._whole = True  # parameters and optimisers are at one step
        self._set_rates()

    def run(self, batch_loss: BatchLoss, on_step: OnStep, finish: Callable[[], bool] = lambda: False) -> None:
        """Take the steps that are left.

        Args:
            batch_loss: draws a micro-batch with the given generator and returns its losses, attached to the graph;
                of several processes each returns its part, and the parts add up.
            on_step: called after every step; may raise (a cancel), which leaves the parameters usable.
            finish: asked after every step; True: it was the last one.
        Raises:
            TrainingError: the loss became NaN or infinite, or grew out of all proportion; the parameters are put back
                to the last good step.
        """
        while self.progress.step < self.settings.steps:
            self._step(batch_loss)
            on_step(self.progress)
            if finish():
                break
        if not all(bool(torch.isfinite(p).all()) for p in self._parameters):
            self._go_back(self.progress.step - 1)
            raise TrainingError("training diverged in its last step; the step before is kept. Lower the learning rates")

    def _step(self, batch_loss: BatchLoss) -> None:
        step, settings = self.progress.step, self.settings
        multiplier = self._set_rates()
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in range(settings.accumulation):
            self.trainable.begin_step()
            losses = batch_loss(generator_for(settings.seed, step, part))
            if losses.objective.requires_grad:
                (losses.objective / settings.accumulation).backward()
            total += float(losses.denoising) / settings.accumulation
        total = self._of_all(total)
        if step == 0:
            _check_reached(self.trainable)
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, settings.gradient_clip or math.inf))
        if reason := self._watch.diverged(total, norm):
            self._go_back(max(step - 1, 0))
            raise TrainingError(_advice(step, reason, self.progress.rates, settings.automatic))
        good = self.trainable.snapshot()
        self._whole = False
        try:
            for optimizer in self._optimizers:
                optimizer.step()
        except BaseException:
            self.trainable.restore(good)
            raise
        self._good = good
        self.progress.step += 1
        self.progress.losses.append(total)
        self.progress.learning_rates.append(multiplier)
        self._whole = True

    def estimates(self) -> dict[str, float]:
        """The learning rates that were found so far, by part, before the schedule; none where they are set by hand."""
        return {part: o.distance for part, o in self._parts.items() if isinstance(o, Prodigy)}

    def _set_rates(self) -> float:
        """For the step that comes next; the multiplier that :class:`Progress` tells of."""
        factor, estimates = self.settings.lr_factor(self.progress.step), self.estimates()
        for (part, optimizer), lrs in zip(self._parts.items(), self._base_lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
            self.progress.rates[part] = lrs[0] * factor * estimates.get(part, 1.0)
        return factor * next(iter(estimates.values()), 1.0)

    def _of_all(self, loss: float) -> float:
        """Add up gradients, and the loss, over all processes."""
        if self.ranks.count == 1:
            return loss
        for p in self._parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        total = torch.tensor([loss])
        self.ranks.add([*(p.grad for p in self._parameters if p.grad is not None), total])
        return float(total)

    def _go_back(self, step: int) -> None:
        self._whole = False
        self.trainable.restore(self._good)
        self.progress.step = step

    # ----------------------------------------------------------------------------------------------- stop and go on

    def state(self) -> dict[str, Tensor] | None:
        """Copies of all that the next step depends on, but for settings and data; None within a step's update, and
        once the run has diverged.

        ``parameter.<i>``, before the last step ``previous.<i>``, ``optimizer.<i>.<parameter>.<name>``, and per step
        ``losses`` and ``learning_rates``.
        """
        if not self._whole:
            return None
        series = {"losses": self.progress.losses, "learning_rates": self.progress.learning_rates}
        tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in series.items()}
        tensors |= {f"parameter.{i}": p for i, p in enumerate(self.trainable.snapshot())}
        tensors |= {f"previous.{i}": p for i, p in enumerate(self._good)}
        for i, optimizer in enumerate(self._optimizers):
            for parameter, values in optimizer.state_dict()["state"].items():
                for name, value in values.items():
                    tensors[f"optimizer.{i}.{parameter}.{name}"] = torch.as_tensor(value)
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state` as if the run had never stopped; before the first step.

        Raises:
            TrainingError: it is not that of a loop with these parameters.
        """
        now = self.trainable.snapshot()
        self._good = _like(now, tensors, "previous")
        self.trainable.restore(_like(now, tensors, "parameter"))
        for i, optimizer in enumerate(self._optimizers):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": _optimizer_state(tensors, f"optimizer.{i}.")})
        self.progress.losses[:] = _take(tensors, "losses").tolist()
        self.progress.learning_rates[:] = _take(tensors, "learning_rates").tolist()
        self.progress.step = len(self.progress.losses)
        for loss in self.progress.losses:
            self._watch.add(loss)
        self._set_rates()


def _take(tensors: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in tensors:
        raise TrainingError(f"the state of the run is not whole: {key!r} is missing")
    return tensors[key]


def _like(parameters: list[Tensor], tensors: Mapping[str, Tensor], part: str) -> list[Tensor]:
    """The parameters that a state holds as ``<part>.<i>``, on the device of those at hand."""
    found = [_take(tensors, f"{part}.{i}") for i in range(len(parameters))]
    for i, (p, saved) in enumerate(zip(parameters, found, strict=True)):
        if saved.shape != p.shape or not bool(torch.isfinite(saved).all()):
            raise TrainingError(
                f"the state of the run does not fit: {part}.{i} should hold finite values of shape {tuple(p.shape)}, "
                f"and is of shape {tuple(saved.shape)}"
            )
    return [saved.to(p) for p, saved in zip(parameters, found, strict=True)]


def _optimizer_state(tensors: Mapping[str, Tensor], prefix: str) -> dict[int, dict[str, Tensor | int]]:
    """As ``Optimizer.load_state_dict`` takes it; a whole number is one again."""
    state: dict[int, dict[str, Tensor | int]] = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            parameter, name = key.removeprefix(prefix).split(".", 1)
            value = int(tensor) if tensor.dtype == torch.int64 else tensor.clone()
            state.setdefault(int(parameter), {})[name] = value
    return state


class _Watch:
    """Tells when a run cannot go on. It depends on the losses so far alone."""

    def __init__(self) -> None:
        self._smoothed: float | None = None
        self._reference, self._seen = 0.0, 0

    def add(self, loss: float) -> None:
        """The loss of the next step."""
        self._smoothed = loss if self._smoothed is None else 0.9 * self._smoothed + 0.1 * loss
        if self._seen < _REFERENCE_STEPS:
            self._reference = max(self._reference, loss)
        self._seen += 1

    def diverged(self, loss: float, gradient_norm: float) -> str:
        """Take in a step's loss; why the run cannot go on, or ''."""
        self.add(loss)
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient norm is {gradient_norm}"
        smoothed = self._smoothed or 0.0
        if self._seen > _REFERENCE_STEPS and smoothed > DIVERGED_AT * self._reference:
            times = smoothed / self._reference if self._reference else math.inf
            return f"the loss rose to {smoothed:.3g}, {times:.0f} times that of the first steps"
        return ""


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


def _advice(step: int, reason: str, rates: Mapping[str, float], automatic: bool) -> str:
    if step == 0:
        return (
            f"training cannot start: at step 1 {reason}, before anything was trained; check the base model, the VAE "
            "and the pictures, and try training_dtype fp32"
        )
    said = ", ".join(f"{part} {rate:.3g}" for part, rate in rates.items())
    advice = f"Set rates by hand, lower than these ({said})" if automatic else f"Lower the learning rates ({said})"
    return f"training diverged at step {step + 1}: {reason}. {advice} or add warm-up steps"

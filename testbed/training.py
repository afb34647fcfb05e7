# SPDX-License-Identifier: GPL-3.0-or-later
"""Trains any method on one set of pictures, all through the same code: the pack's own session, objective and loop.

Only the adapted layers and their optimiser differ: ours, or peft's layers with AdamW. Data, noise, noise levels, loss,
clipping and the number of steps are the pack's for all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from soda_core.adapter import SodaAdapter
from soda_core.base_weight import BaseWeight
from soda_core.host.training import TrainingData
from soda_core.host.training.dataset import Examples
from soda_core.host.training.objective import Objective
from soda_core.host.training.session import TrainingSession
from soda_core.host.training.validation import Validation
from soda_core.training.loop import OnStep, Progress, Trainable, TrainingLoop
from soda_core.training.measures import Measures
from soda_core.training.memory import needs
from soda_core.training.settings import TrainSettings
from soda_core.training.trainable import TrainableAdapter
from testbed.methods import Method
from testbed.peft_layers import PeftLayers


@dataclass(frozen=True)
class Trained:
    """What a run leaves: the change of every layer's weight, and for our own methods the adapter."""

    deltas: dict[str, Tensor]
    adapter: SodaAdapter | None
    params: int  #: degrees of freedom
    stored: int  #: numbers in the trainable tensors
    seconds: float
    seconds_per_step: float
    losses: list[float]
    automatic_rates: dict[str, float]  #: by part; empty where they were set by hand


def train_method(
    patcher: Any, data: TrainingData, method: Method, lr: float, shift_lr: float | None = None, **settings: Any
) -> Trained:
    """Train, on a private copy of the model's modules; ``patcher`` is only read.

    Args:
        lr: for every trained part.
        shift_lr: for our shifts, where it is another one.
        settings: of :class:`TrainSettings`, alike for all methods.
    """
    rates = {"rotation_lr": lr, "shift_lr": lr if shift_lr is None else shift_lr}
    full = TrainSettings(**{**settings, **(method.settings or {}), **rates})
    started = time.monotonic()
    with TrainingSession.open(patcher, full, dtype="fp32") as session:
        training = MethodTraining(session, data, method)
        stepping = time.monotonic()
        progress = training.train()
        per_step = (time.monotonic() - stepping) / full.steps
        layers = training.layers
        return Trained(
            layers.deltas(), layers.adapter(), layers.degrees_of_freedom(),
            sum(p.numel() for p in layers.trainable.parameters()), time.monotonic() - started, per_step,
            progress.losses, training.automatic_rates,
        )  # fmt: skip


class MethodLayers(Protocol):
    """A method's layers in the model of a session."""

    @property
    def trainable(self) -> Trainable: ...

    def deltas(self) -> dict[str, Tensor]:
        """The change of every layer's weight; afterwards the session's model is no longer to be used."""

    def adapter(self) -> SodaAdapter | None:
        """For our own methods."""

    def degrees_of_freedom(self) -> int: ...


class MethodTraining:
    """Any method in a session, ready for its first step."""

    def __init__(self, session: TrainingSession, data: TrainingData, method: Method) -> None:
        self.session = session
        examples = Examples.of(data, session.model, session.device)
        session.load(examples.batch_shape(session.settings.batch_size))
        self.layers: MethodLayers = SodaLayers(session) if method.peft is None else PeftLayers(session, method.peft())
        self.objective = Objective(session, self.layers.trainable, examples)
        self.automatic_rates: dict[str, float] = {}  #: by part, once it is trained with them

    def needs(self) -> dict[str, int]:
        """Bytes that it takes above the loaded model, by what they are for."""
        largest = self.objective.largest()
        return needs(self.layers.trainable, lambda: self.objective.losses(*largest))

    def watching(self) -> tuple[Measures, Validation]:
        """What a live view of our own methods looks with."""
        return Measures(self.layers.trainable), Validation(self.objective)

    def train(self, on_step: OnStep = lambda progress: None) -> Progress:
        progress = Progress()
        loop = TrainingLoop(self.layers.trainable, self.session.settings, progress)
        loop.run(self.objective.batch_loss, on_step)
        self.automatic_rates = loop.estimates()
        return progress


class SodaLayers:
    """Our layers."""

    def __init__(self, session: TrainingSession) -> None:
        self.session = session
        self.trainable = TrainableAdapter(session.shapes, session.settings, session.spectra(), session.device)
        session.attach(self.trainable)

    def adapter(self) -> SodaAdapter:
        return self.trainable.to_adapter(self.session.weights, {})

    @torch.no_grad()
    def deltas(self) -> dict[str, Tensor]:
        adapter = self.adapter()
        deltas = {}
        for name, weight in self.session.weights.items():
            spectrum = self.trainable.layers[name].spectrum
            pristine = BaseWeight(weight, spectra=[] if spectrum is None else [spectrum])
            deltas[name] = adapter.layers[name].delta(pristine)
        return deltas

    def degrees_of_freedom(self) -> int:
        rotations = sum(n * k * (k - 1) // 2 for n, k, _ in (p.shape for p in self.trainable.rotations.values()))
        return rotations + (0 if self.trainable.shifts is None else self.trainable.shifts.numel())

# SPDX-License-Identifier: GPL-3.0-or-later
"""Trains any method on one set of pictures, all through the same code: the pack's own run.

Only the adapted layers and their optimiser differ: ours, or peft's layers with AdamW. Data, noise, noise levels, loss,
clipping and the number of steps are the pack's for all.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from soda_core.adapter import SodaAdapter
from soda_core.base_weight import BaseWeight
from soda_core.host import base
from soda_core.host.training.run import RunOptions, TrainingData, _host_state, _Run
from soda_core.stiefel import retract
from soda_core.training.settings import TrainSettings
from soda_core.training.trainable import TrainableAdapter
from testbed.methods import Method


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


def train_method(patcher: Any, data: TrainingData, method: Method, lr: float, **settings: Any) -> Trained:
    """Train, on a private copy of the model's modules; ``patcher`` is only read.

    Args:
        lr: for every trained part.
        settings: of :class:`TrainSettings`, alike for all methods.
    """
    full = TrainSettings(**{**settings, **(method.settings or {}), "rotation_lr": lr, "shift_lr": lr})
    started = time.monotonic()
    with _host_state(patcher):
        run = new_run(patcher, data, full, RunOptions(dtype="fp32"), method=method)
        try:
            run.prepare()
            stepping = time.monotonic()
            run.fit()
            per_step = (time.monotonic() - stepping) / full.steps
            return Trained(
                run.deltas(), run.result(), run.params(), run.stored(), time.monotonic() - started, per_step,
                run.progress.losses,
            )  # fmt: skip
        finally:
            run.close()


class CayleyAdapter(TrainableAdapter):
    """The usual alternative to an optimiser on the manifold: Adam on skew matrices that Cayley turns into rotations."""

    def begin_step(self) -> None:
        parameters = dict(self.rotations.items())
        for k, p in parameters.items():
            self.rotations._parameters[k] = retract((p - p.mT) / 2, "cayley")  # type: ignore[assignment]
        super().begin_step()
        self.rotations._parameters.update(parameters)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        rotations = torch.optim.AdamW(self.rotations.values(), lr=self.settings.rotation_lr, weight_decay=0.0)
        return [rotations, *super().optimizers()[1:]]


class MethodRun(_Run):
    """A run of the pack with any method, without saving."""

    def __init__(
        self, patcher: Any, data: TrainingData, settings: TrainSettings, options: RunOptions, method: Method
    ) -> None:
        super().__init__(patcher, data, settings, options)
        self.method = method

    def stored(self) -> int:
        assert self.trainable is not None
        return sum(p.numel() for p in self.trainable.parameters())


def new_run(*args: Any, method: Method, **kwargs: Any) -> OursRun | PeftRun:
    """The run for a method; arguments as for :class:`MethodRun`."""
    return (OursRun if method.peft is None else PeftRun)(*args, method=method, **kwargs)


class OursRun(MethodRun):
    """With our layers."""

    def _new_trainable(self, shapes: dict[str, tuple[int, ...]]) -> TrainableAdapter:
        kind = CayleyAdapter if self.method.cayley else TrainableAdapter
        return kind(shapes, self.settings, self._spectra(), self.device)

    def result(self) -> SodaAdapter:
        return self._adapter()

    @torch.no_grad()
    def deltas(self) -> dict[str, Tensor]:
        assert self.trainable is not None
        adapter = self._adapter()
        deltas = {}
        for name, weight in self.weights.items():
            spectrum = self.trainable.layers[name].spectrum
            pristine = BaseWeight(weight, spectra=[] if spectrum is None else [spectrum])
            deltas[name] = adapter.layers[name].delta(pristine)
        return deltas

    def params(self) -> int:
        assert self.trainable is not None
        rotations = sum(n * k * (k - 1) // 2 for n, k, _ in (p.shape for p in self.trainable.rotations.values()))
        return rotations + (0 if self.trainable.shifts is None else self.trainable.shifts.numel())


class PeftTrainable:
    """peft's parameters behind the interface that the pack's loop trains."""

    def __init__(self, parameters: list[nn.Parameter], settings: TrainSettings) -> None:
        self._parameters, self.settings = parameters, settings
        self.layers: dict[str, Any] = {}

    def parameters(self) -> list[nn.Parameter]:
        return self._parameters

    def optimizers(self) -> list[torch.optim.Optimizer]:
        # no decay: BOFT's scales begin at one
        return [torch.optim.AdamW(self._parameters, lr=self.settings.shift_lr, weight_decay=0.0)]

    def begin_step(self) -> None:
        pass

    def without_gradient(self) -> list[str]:
        return []  # deltas() sees to it that all are trained

    def snapshot(self) -> list[Tensor]:
        return [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def restore(self, snapshot: list[Tensor]) -> None:
        for p, saved in zip(self._parameters, snapshot, strict=True):
            p.copy_(saved)


class PeftRun(MethodRun):
    """With peft's layers in the model."""

    def prepare(self) -> None:
        self.pictures, self.class_pictures = self._datasets()
        self.weights = base.PristineWeights(self.source, list(self.shapes))
        self._load()
        assert self.method.peft is not None
        from peft import inject_adapter_in_model

        _allow_butterflies()
        model = self.patcher.model.diffusion_model
        torch.manual_seed(self.settings.seed)
        for endings, config in self.method.peft():
            names = [n.removeprefix("diffusion_model.") for n in self.shapes if n.endswith(tuple(endings))]
            config.target_modules = set(names)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there are layers of another configuration already
                inject_adapter_in_model(config, model, "bench")
        self.tuned = {n.removesuffix(".base_layer"): m for n, m in _tuner_layers(model)}
        parameters = []
        for layer in self.tuned.values():
            layer.enable_adapters(True)
            for name, parameter in layer.named_parameters():
                trained = "base_layer" not in name
                parameter.requires_grad_(trained)
                if trained:
                    parameters.append(parameter)
        self.trainable = PeftTrainable(parameters, self.settings)  # type: ignore[assignment]

    @contextmanager
    def _base_model(self) -> Iterator[None]:
        for layer in self.tuned.values():
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in self.tuned.values():
                layer._disable_adapters = False

    def result(self) -> None:
        return None

    @torch.no_grad()
    def deltas(self) -> dict[str, Tensor]:
        """Merged minus base weight, with peft's own merge."""
        deltas = {}
        for name, layer in self.tuned.items():
            full = f"diffusion_model.{name}"
            before = self.weights[full].float()
            layer.get_base_layer().weight.data = before.clone()  # not the memory that the model shares
            layer.merge(safe_merge=True)
            deltas[full] = layer.get_base_layer().weight.data.detach() - before
            assert deltas[full].any(), f"{self.method.key} did not train {full}"
        return deltas

    def params(self) -> int:
        return sum(_freedom(layer) for layer in self.tuned.values())


class _BlockDiagonal:
    """What peft's CUDA extension for BOFT computes: stacks of blocks (m, n, k, k) as matrices (m, nk, nk)."""

    @staticmethod
    def apply(blocks: Tensor) -> Tensor:
        m, n, k, _ = blocks.shape
        spread = torch.eye(n).to(blocks)[:, None, :, None] * blocks.unsqueeze(3)  # (m, n, k, n, k)
        return spread.reshape(m, n * k, n * k)


def _allow_butterflies() -> None:
    """peft drops BOFT's butterfly factors where its CUDA extension does not build; nothing else of it needs CUDA."""
    from peft.tuners.boft import layer

    layer.get_fbd_cuda = lambda: True
    layer.FastBlockDiag = _BlockDiagonal


def _tuner_layers(model: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def _freedom(layer: Any) -> int:
    """Degrees of freedom of peft's parameters in a layer.

    OFT keeps the upper triangles of its skew blocks, which are the freedom itself; BOFT keeps its blocks whole.
    """
    freedom = 0
    for name, p in layer.named_parameters():
        if "boft_R" in name:
            *counts, k, _ = p.shape
            freedom += torch.Size(counts).numel() * k * (k - 1) // 2
        elif "base_layer" not in name:
            freedom += p.numel()
    return freedom

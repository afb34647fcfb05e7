# SPDX-License-Identifier: GPL-3.0-or-later
"""peft's layers in the model of a training session, behind the interface that the pack's loop trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from soda_core.host.training.session import TrainingSession
from soda_core.training.settings import TrainSettings

#: Configurations, each with the endings of the names of the layers it goes to.
Configs = Sequence[tuple[list[str], Any]]


class PeftLayers:
    """peft's layers in place of a session's, and what they learnt."""

    def __init__(self, session: TrainingSession, configs: Configs) -> None:
        from peft import inject_adapter_in_model

        self.session = session
        model = session.model.diffusion_model
        torch.manual_seed(session.settings.seed)
        for endings, config in configs:
            names = [n.removeprefix("diffusion_model.") for n in session.shapes if n.endswith(tuple(endings))]
            config.target_modules = set(names)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there are layers of another configuration already
                inject_adapter_in_model(config, model, "bench")
        self.tuned = {f"diffusion_model.{n.removesuffix('.base_layer')}": m for n, m in _tuner_layers(model)}
        self.trainable = PeftTrainable(self.tuned, session.settings)

    def adapter(self) -> None:
        return None

    @torch.no_grad()
    def deltas(self) -> dict[str, Tensor]:
        """Merged minus base weight, with peft's own merge."""
        deltas = {}
        for name, layer in self.tuned.items():
            before = self.session.weights[name].float()
            layer.get_base_layer().weight.data = before.clone()  # not the memory that the model shares
            layer.merge(safe_merge=True)
            deltas[name] = layer.get_base_layer().weight.data.detach() - before
            if not deltas[name].any():
                raise RuntimeError(f"{name} was not trained")
        return deltas

    def degrees_of_freedom(self) -> int:
        return sum(_freedom(layer) for layer in self.tuned.values())


class PeftTrainable:
    """peft's parameters as a :class:`soda_core.training.loop.Trainable`."""

    def __init__(self, layers: Mapping[str, Any], settings: TrainSettings) -> None:
        self.layers, self.settings = layers, settings
        self._parameters: list[nn.Parameter] = []
        for layer in layers.values():
            layer.enable_adapters(True)
            for name, parameter in layer.named_parameters():
                trained = "base_layer" not in name
                parameter.requires_grad_(trained)
                if trained:
                    self._parameters.append(parameter)

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(self._parameters)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"all": torch.optim.AdamW(self._parameters, lr=self.settings.shift_lr, weight_decay=0.0)}

    def begin_step(self) -> None:
        """peft's layers read their parameters when they are called."""

    def frozen_bytes(self) -> int:
        return 0

    def without_gradient(self) -> list[str]:
        return [
            name
            for name, layer in self.layers.items()
            if not any(p.grad is not None and bool(p.grad.any()) for p in layer.parameters())
        ]

    def snapshot(self) -> list[Tensor]:
        return [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def restore(self, snapshot: list[Tensor]) -> None:
        for p, saved in zip(self._parameters, snapshot, strict=True):
            p.copy_(saved)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)


def _tuner_layers(model: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def _freedom(layer: Any) -> int:
    """Degrees of freedom of a layer: OFT keeps of its skew blocks only the upper triangles."""
    return sum(p.numel() for name, p in layer.named_parameters() if "base_layer" not in name)

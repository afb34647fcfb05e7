# SPDX-License-Identifier: GPL-3.0-or-later
"""One training loop for the autoencoder, the UNet and the judge, which goes on where it was stopped."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Plan:
    """How to train: AdamW, linear warm-up, a constant rate, then half a cosine down to a twentieth of it.

    ``decay``: the share of the steps that the way down takes.
    """

    steps: int
    lr: float
    warmup: int = 100
    decay: float = 1.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    ema: float = 0.0  #: decay of the averaged weights; 0 keeps none
    save_seconds: float = 300
    look_every: int = 500

    def lr_at(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        span = self.decay * (self.steps - self.warmup)
        part = (step - (self.steps - span)) / max(1, span)
        return self.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(max(part, 0.0), 1.0))))


@dataclass(frozen=True)
class Player:
    """A network with a loss of its own; two of them may play against each other.

    Args:
        loss_of: the loss of one step by its number; draws from the generator only.
    """

    module: nn.Module
    loss_of: Callable[[int, torch.Generator], Tensor]

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}


def fit(players: Sequence[Player], plan: Plan, folder: Path, look: Callable[[int], None]) -> None:
    """Train all players in turn at every step; the first is the one that matters, and is averaged.

    Every step's random numbers depend on its number alone, so a run that was stopped ends as one that was not.

    Args:
        folder: of the run's state (see :func:`finished`) and its log (``log.jsonl``: step, loss, seconds).
        look: called every ``look_every`` steps with the averaged weights in the first player, to draw something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = _State(folder / "state.safetensors", [player.parameters() for player in players], plan)
    started, saved, losses = time.monotonic(), time.monotonic(), []
    for step in range(state.restore(), plan.steps):
        for i, player in enumerate(players):
            loss = player.loss_of(step, torch.Generator().manual_seed(step))
            if not math.isfinite(float(loss.detach())):
                raise RuntimeError(f"the loss of player {i + 1} is {float(loss)} at step {step}")
            state.update(i, loss, plan.lr_at(step))
            if i == 0:
                losses.append(float(loss.detach()))
        state.average(step)
        last = step + 1 == plan.steps
        if (step + 1) % 50 == 0 or last:
            entry = {"step": step + 1, "loss": sum(losses) / len(losses), "seconds": time.monotonic() - started}
            with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")
            print(f"{step + 1}/{plan.steps} loss {entry['loss']:.5f} {entry['seconds']:.0f} s", flush=True)
            losses = []
        if (step + 1) % plan.look_every == 0 or last:
            with state.averaged_weights(), torch.no_grad():
                look(step + 1)
        if time.monotonic() - saved > plan.save_seconds or last:
            state.save(step + 1)
            saved = time.monotonic()


_MOMENTS = ("exp_avg", "exp_avg_sq")


class _State:
    """Parameters, moments and averages of all players, in one file."""

    def __init__(self, path: Path, parameters: list[dict[str, nn.Parameter]], plan: Plan) -> None:
        self.path, self.parameters, self.plan = path, parameters, plan
        self.optimizers = [
            torch.optim.AdamW(named.values(), lr=plan.lr, weight_decay=plan.weight_decay, betas=plan.betas, fused=True)
            for named in parameters
        ]
        self.averaged = {n: p.detach().clone() for n, p in parameters[0].items()} if plan.ema else {}

    def update(self, player: int, loss: Tensor, lr: float) -> None:
        optimizer = self.optimizers[player]
        for group in optimizer.param_groups:
            group["lr"] = lr
        parameters = list(self.parameters[player].values())
        gradients = torch.autograd.grad(loss, parameters)  # leaves the other players' gradients alone
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def average(self, step: int) -> None:
        if self.averaged:
            decay = min(self.plan.ema, (1 + step) / (10 + step))
            values = [p.detach() for p in self.parameters[0].values()]
            torch._foreach_lerp_(list(self.averaged.values()), values, 1 - decay)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The averages in the first player's parameters, for a while."""
        kept = {name: self.parameters[0][name].detach().clone() for name in self.averaged}
        self._copy(self.averaged)
        try:
            yield
        finally:
            self._copy(kept)

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[0][name].copy_(value)

    def save(self, step: int) -> None:
        tensors = {f"ema/{name}": value for name, value in self.averaged.items()}
        for i, (named, optimizer) in enumerate(zip(self.parameters, self.optimizers, strict=True)):
            for name, parameter in named.items():
                tensors[_key("value", i, name)] = parameter.detach()
                for moment in _MOMENTS:
                    tensors[_key(moment, i, name)] = optimizer.state[parameter][moment]
        unfinished = self.path.with_suffix(".part")
        save_file({name: value.contiguous() for name, value in tensors.items()}, unfinished, {"step": str(step)})
        os.replace(unfinished, self.path)

    @torch.no_grad()
    def restore(self) -> int:
        """The number of steps done."""
        if not self.path.exists():
            return 0
        with safe_open(self.path, "pt") as file:
            step = int(file.metadata()["step"])
            for i, (named, optimizer) in enumerate(zip(self.parameters, self.optimizers, strict=True)):
                for name, parameter in named.items():
                    parameter.copy_(file.get_tensor(_key("value", i, name)))
                    moments = {m: torch.empty_like(parameter) for m in _MOMENTS}
                    for moment, value in moments.items():
                        value.copy_(file.get_tensor(_key(moment, i, name)))
                    optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
            for name, value in self.averaged.items():
                value.copy_(file.get_tensor(f"ema/{name}"))
        return step


def _key(what: str, player: int, name: str) -> str:
    return f"{what}/{name}" if player == 0 else f"{what}{player}/{name}"


def finished(path: Path) -> dict[str, Tensor]:
    """The first player's weights in a run's state file, averaged where there are averages."""
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        prefix = "ema/" if any(name.startswith("ema/") for name in names) else "value/"
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}


def batch_of(count: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(count, (size,), generator=generator)


def sheet(pictures: Iterable[Tensor], columns: int, path: Path) -> None:
    """Pictures (3, side, side) in 0..1 as one PNG."""
    from PIL import Image

    items = list(pictures)
    rows = [torch.cat(items[i : i + columns], 2) for i in range(0, len(items), columns)]
    grid = torch.cat(rows, 1).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0)
    Image.fromarray(grid.numpy()).save(path)

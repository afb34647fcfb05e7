# SPDX-License-Identifier: GPL-3.0-or-later
"""One training loop for the autoencoder, the UNet and the judge, which goes on where it was stopped."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
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
    ema: float = 0.0  #: decay of the averaged weights; 0 keeps none
    save_seconds: float = 300
    look_every: int = 500

    def lr_at(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        span = self.decay * (self.steps - self.warmup)
        part = (step - (self.steps - span)) / max(1, span)
        return self.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(max(part, 0.0), 1.0))))


def fit(
    module: nn.Module,
    plan: Plan,
    loss_of: Callable[[int, torch.Generator], Tensor],
    folder: Path,
    look: Callable[[int], None],
) -> dict[str, Tensor]:
    """Train, and return the weights to use (the averaged ones if there are).

    Every step's random numbers depend on its number alone, so a run that was stopped ends as one that was not.

    Args:
        loss_of: the loss of one step by its number; draws from the generator only.
        folder: of the run's state and its log (``log.jsonl``: step, loss, seconds).
        look: called every ``look_every`` steps with the averaged weights in the module, to draw something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state, parameters = folder / "state.safetensors", {n: p for n, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=plan.lr, weight_decay=plan.weight_decay, betas=(0.9, 0.98), fused=True
    )
    averaged = {name: p.detach().clone() for name, p in parameters.items()} if plan.ema else {}
    done = _restore(state, parameters, optimizer, averaged) if state.exists() else 0
    started, saved, losses = time.monotonic(), time.monotonic(), []
    for step in range(done, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr_at(step)
        loss = loss_of(step, torch.Generator().manual_seed(step))
        if not math.isfinite(float(loss.detach())):
            raise RuntimeError(f"the loss is {float(loss)} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if plan.ema:
            decay = min(plan.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(averaged.values()), [p.detach() for p in parameters.values()], 1 - decay)
        last = step + 1 == plan.steps
        if (step + 1) % 50 == 0 or last:
            entry = {"step": step + 1, "loss": sum(losses) / len(losses), "seconds": time.monotonic() - started}
            with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")
            print(f"{step + 1}/{plan.steps} loss {entry['loss']:.5f} {entry['seconds']:.0f} s", flush=True)
            losses = []
        if (step + 1) % plan.look_every == 0 or last:
            with _weights(parameters, averaged), torch.no_grad():
                look(step + 1)
        if time.monotonic() - saved > plan.save_seconds or last:
            _save(state, step + 1, parameters, optimizer, averaged)
            saved = time.monotonic()
    return {name: value.clone() for name, value in (averaged or {n: p.detach() for n, p in parameters.items()}).items()}


class _weights:
    """The averaged weights in the module's parameters, for a while."""

    def __init__(self, parameters: dict[str, nn.Parameter], averaged: dict[str, Tensor]) -> None:
        self.parameters, self.averaged = parameters, averaged

    def __enter__(self) -> None:
        self.kept = {name: self.parameters[name].detach().clone() for name in self.averaged}
        _copy(self.parameters, self.averaged)

    def __exit__(self, *_: object) -> None:
        _copy(self.parameters, self.kept)


def _copy(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


_MOMENTS = ("exp_avg", "exp_avg_sq")


def _save(
    path: Path,
    step: int,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    averaged: dict[str, Tensor],
) -> None:
    tensors = {f"ema/{name}": value for name, value in averaged.items()}
    for name, parameter in parameters.items():
        tensors[f"value/{name}"] = parameter.detach()
        for moment in _MOMENTS:
            tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    unfinished = path.with_suffix(".part")
    save_file({name: value.contiguous() for name, value in tensors.items()}, unfinished, {"step": str(step)})
    os.replace(unfinished, path)


def _restore(
    path: Path,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    averaged: dict[str, Tensor],
) -> int:
    with safe_open(path, "pt") as file, torch.no_grad():
        step = int(file.metadata()["step"])
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(f"value/{name}"))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                **{m: _like(file.get_tensor(f"{m}/{name}"), parameter) for m in _MOMENTS},
            }
        for name, value in averaged.items():
            value.copy_(file.get_tensor(f"ema/{name}"))
    return step


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    return torch.empty_like(parameter).copy_(value)


def finished(path: Path, prefix: str = "ema/") -> dict[str, Tensor]:
    """The weights of a run's state file."""
    with safe_open(path, "pt") as file:
        names = file.keys()
        prefix = prefix if any(name.startswith(prefix) for name in names) else "value/"
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

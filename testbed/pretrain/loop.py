# SPDX-License-Identifier: GPL-3.0-or-later
"""One training loop for the autoencoder, the UNet and the classifier, which goes on where it was stopped."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from soda_core.files import replacing


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


def fit(
    module: nn.Module,
    loss_of: Callable[[int, torch.Generator], Tensor],
    plan: Plan,
    folder: Path,
    look: Callable[[int], None],
) -> None:
    """Train a network.

    Every step's random numbers depend on its number alone, so a run that was stopped ends as one that was not.

    Args:
        loss_of: the loss of one step by its number; draws from the generator only.
        folder: of the run's state (see :func:`finished`) and its log (``log.jsonl``: step, loss, seconds).
        look: called every ``look_every`` steps with the averaged weights in the network, to draw something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = _State(folder / "state.safetensors", module, plan)
    started, saved, losses = time.monotonic(), time.monotonic(), []
    for step in range(state.restore(), plan.steps):
        loss = loss_of(step, torch.Generator().manual_seed(step))
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise RuntimeError(f"the loss is {losses[-1]} at step {step}")
        state.update(loss, plan.lr_at(step))
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
    """Parameters, their moments and averages, in one file."""

    def __init__(self, path: Path, module: nn.Module, plan: Plan) -> None:
        self.path, self.plan = path, plan
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=plan.lr, weight_decay=plan.weight_decay, betas=plan.betas, fused=True
        )
        self.averaged = {n: p.detach().clone() for n, p in self.parameters.items()} if plan.ema else {}

    def update(self, loss: Tensor, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def average(self, step: int) -> None:
        if self.averaged:
            decay = min(self.plan.ema, (1 + step) / (10 + step))
            values = [p.detach() for p in self.parameters.values()]
            torch._foreach_lerp_(list(self.averaged.values()), values, 1 - decay)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The averages in the network, for a while."""
        kept = {name: self.parameters[name].detach().clone() for name in self.averaged}
        self._copy(self.averaged)
        try:
            yield
        finally:
            self._copy(kept)

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def save(self, step: int) -> None:
        tensors = {f"ema/{name}": value for name, value in self.averaged.items()}
        for name, parameter in self.parameters.items():
            tensors[f"value/{name}"] = parameter.detach()
            for moment in _MOMENTS:
                tensors[f"{moment}/{name}"] = self.optimizer.state[parameter][moment]
        with replacing(self.path) as unfinished:
            save_file({name: value.contiguous() for name, value in tensors.items()}, unfinished, {"step": str(step)})

    @torch.no_grad()
    def restore(self) -> int:
        """The number of steps done."""
        if not self.path.exists():
            return 0
        with safe_open(self.path, "pt") as file:
            step = int(file.metadata()["step"])
            for name, parameter in self.parameters.items():
                parameter.copy_(file.get_tensor(f"value/{name}"))
                moments = {m: torch.empty_like(parameter) for m in _MOMENTS}
                for moment, value in moments.items():
                    value.copy_(file.get_tensor(f"{moment}/{name}"))
                self.optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
            for name, value in self.averaged.items():
                value.copy_(file.get_tensor(f"ema/{name}"))
        return step


def finished(path: Path) -> dict[str, Tensor]:
    """The weights in a run's state file, averaged where there are averages."""
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        prefix = "ema/" if any(name.startswith("ema/") for name in names) else "value/"
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}


def kept(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors in a file, made if it is not there."""
    if not path.exists():
        with replacing(path) as unfinished:
            save_file({name: value.contiguous() for name, value in make().items()}, unfinished)
    return load_file(path)


def batch_of(count: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(count, (size,), generator=generator)


def sheet(pictures: Iterable[Tensor], columns: int, path: Path) -> None:
    """Pictures (3, side, side) in 0..1 as one PNG."""
    from PIL import Image

    items = list(pictures)
    items += [torch.ones_like(items[0])] * (-len(items) % columns)
    rows = [torch.cat(items[i : i + columns], 2) for i in range(0, len(items), columns)]
    grid = torch.cat(rows, 1).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0)
    Image.fromarray(grid.numpy()).save(path)

# SPDX-License-Identifier: GPL-3.0-or-later
"""One training loop for the autoencoder, the classifier and the model, which goes on where it was stopped."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from soda_core.files import replacing
from testbed import model_files
from testbed.pretrain.compute import Compute, Ranks, use_threads

LOG_EVERY = 50  #: steps
STATE, PLATEAU = "state.safetensors", "plateau.safetensors"


@dataclass(frozen=True)
class PretrainSettings:
    """How to train: AdamW, linear warm-up, a constant rate, and over the last ``decay`` steps down to nearly nothing.

    The weights before the way down are kept, so with more steps it goes on from there and loses nothing but the
    way down itself.
    """

    steps: int
    lr: float
    batch: int
    decay: int = 0
    warmup: int = 100
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    ema: float = 0.0  #: decay of the averaged weights; 0 keeps none
    #: on the CPU, 0 = all. Those of a convolution's way back wait for each other spinning: beside other work that takes
    #: them longer than one alone, at low priority for ever
    threads: int = 0
    save_seconds: float = 200
    #: what this begins with is done where the rate begins to fall: it keeps its averages from there on
    settled: str | None = None
    look_every: int = 500

    @property
    def plateau_end(self) -> int:
        return self.steps - self.decay

    def lr_at(self, step: int) -> float:
        rising = min(1.0, (step + 1) / self.warmup)
        falling = min(1.0, (self.steps - step) / max(1, self.decay))
        return self.lr * min(rising, 0.02 + 0.98 * falling)


def fit(
    module: nn.Module,
    loss_of: Callable[[int, torch.Generator], Tensor],
    settings: PretrainSettings,
    folder: Path,
    look: Callable[[int], Mapping[str, float]],
    compute: Compute | None = None,
) -> None:
    """Train a network.

    Every step's random numbers depend on its number alone, so a run that was stopped ends as one that was not. Of
    several processes (see :class:`Ranks`) each draws a batch of its own, and the first one keeps and says everything.

    Args:
        loss_of: the loss of one step by its number, for a batch of ``settings.batch``; draws from the generator only.
        folder: of the run's state (see :func:`finished`) and its log (``log.jsonl``).
        look: called every ``look_every`` steps with the averaged weights in the network, to measure and to draw; what
            it returns goes into the log.
        compute: by default the device at hand, in the faster of float32 and bfloat16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ranks = Ranks.find()
    state = State(folder, module, settings, ranks)
    first, samples = state.restore()
    if first >= settings.steps:
        return
    use_threads(settings.threads)
    if compute is None:
        compute = Compute.find().faster(lambda: loss_of(first, torch.Generator().manual_seed(first)))
        state.optimizer.zero_grad(set_to_none=True)
    started, saved, losses = time.monotonic(), time.monotonic(), []
    for step in range(first, settings.steps):
        if settings.decay and step == settings.plateau_end and ranks.first:
            state.save(step, samples)
            state.keep_plateau()
        if settings.settled and (step == settings.plateau_end or step == first > settings.plateau_end):
            state.settle(settings.settled)
        with compute.autocast():
            loss = loss_of(step, torch.Generator().manual_seed(step * ranks.count + ranks.number))
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise RuntimeError(f"the loss is {losses[-1]} at step {step}")
        state.update(loss, settings.lr_at(step))
        state.average(step)
        samples += settings.batch * ranks.count
        if not ranks.first:
            continue
        done, last = step + 1, step + 1 == settings.steps
        entry: dict[str, float] = {"step": done, "samples": samples}
        if done % LOG_EVERY == 0 or last:
            entry |= {
                "loss": sum(losses) / len(losses),
                "lr": settings.lr_at(step),
                "seconds": time.monotonic() - started,
            }
            losses = []
        if done % settings.look_every == 0 or last:
            with state.averaged_weights(), torch.no_grad(), compute.autocast():
                entry |= look(done)
        if len(entry) > 2:
            _note(entry, folder)
        if time.monotonic() - saved > settings.save_seconds or last:
            state.save(done, samples)
            saved = time.monotonic()


def _note(entry: Mapping[str, float], folder: Path) -> None:
    with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps(entry) + "\n")
    print(folder.name + ": " + ", ".join(f"{name} {value:.6g}" for name, value in entry.items()), flush=True)


_MOMENTS = ("exp_avg", "exp_avg_sq")


class State:
    """Parameters, their moments and averages, in one file."""

    def __init__(self, folder: Path, module: nn.Module, settings: PretrainSettings, ranks: Ranks) -> None:
        self.path, self.plateau, self.settings, self.ranks = folder / STATE, folder / PLATEAU, settings, ranks
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            betas=settings.betas,
            fused=True,
        )
        self.averaged = {n: p.detach().clone() for n, p in self.parameters.items()} if settings.ema else {}

    def update(self, loss: Tensor, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss.backward()
        self.ranks.average([p.grad for p in self.parameters.values() if p.grad is not None])
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def average(self, step: int) -> None:
        if self.averaged:
            decay = min(self.settings.ema, (1 + step) / (10 + step))
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

    @torch.no_grad()
    def settle(self, prefix: str) -> None:
        """Train some parameters no longer: they are what they were on average."""
        for name, parameter in self.parameters.items():
            if name.startswith(prefix):
                parameter.copy_(self.averaged[name]).requires_grad_(False)
                parameter.grad = None

    def save(self, step: int, samples: int) -> None:
        tensors = {f"ema/{name}": value for name, value in self.averaged.items()}
        for name, parameter in self.parameters.items():
            tensors[f"value/{name}"] = parameter.detach()
            for moment in _MOMENTS:
                # none yet where it was settled from the start
                value = self.optimizer.state[parameter].get(moment)
                tensors[f"{moment}/{name}"] = torch.zeros_like(parameter) if value is None else value
        notes = {"step": str(step), "samples": str(samples), "steps": str(self.settings.steps)}
        with replacing(self.path) as unfinished:
            save_file({name: value.contiguous() for name, value in tensors.items()}, unfinished, notes)

    def keep_plateau(self) -> None:
        with replacing(self.plateau) as unfinished:
            shutil.copyfile(self.path, unfinished)

    @torch.no_grad()
    def restore(self) -> tuple[int, int]:
        """The steps done and the samples seen."""
        path = self._newest()
        if path is None:
            return 0, 0
        with safe_open(path, "pt") as file:
            step, samples = (int(file.metadata()[name]) for name in ("step", "samples"))
            for name, parameter in self.parameters.items():
                parameter.copy_(file.get_tensor(f"value/{name}"))
                moments = {m: torch.empty_like(parameter) for m in _MOMENTS}
                for moment, value in moments.items():
                    value.copy_(file.get_tensor(f"{moment}/{name}"))
                count = torch.tensor(float(step), device=parameter.device)
                self.optimizer.state[parameter] = {"step": count, **moments}
            for name, value in self.averaged.items():
                value.copy_(file.get_tensor(f"ema/{name}"))
        return step, samples

    def _newest(self) -> Path | None:
        """The last state, or the one before its way down if there are to be more steps by now."""
        if not self.path.exists():
            return None
        notes = progress(self.path)
        longer = self.settings.steps > notes["steps"] and self.plateau.exists()
        return self.plateau if longer and progress(self.plateau)["step"] <= notes["step"] else self.path


def progress(path: Path) -> dict[str, int]:
    """``step``, ``samples`` and planned ``steps`` of a state file; zeros if there is none."""
    if not path.exists():
        return dict.fromkeys(("step", "samples", "steps"), 0)
    with safe_open(path, "pt") as file:
        return {name: int(value) for name, value in file.metadata().items()}


def finished(folder: Path) -> dict[str, Tensor]:
    """The weights in a run's state, averaged where there are averages."""
    with safe_open(folder / STATE, "pt") as file:
        names = list(file.keys())
        prefix = "ema/" if any(name.startswith("ema/") for name in names) else "value/"
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}


def latest(work: Path, part: str) -> dict[str, Tensor]:
    """A part's weights: those trained in the work folder, or else those shipped."""
    if (work / part / STATE).exists():
        return finished(work / part)
    return model_files.load(model_files.file_of(part))


def kept(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors in a file, made if it is not there."""
    if not path.exists():
        with replacing(path) as unfinished:
            save_file({name: value.contiguous() for name, value in make().items()}, unfinished)
    return load_file(path)


def batch_of(count: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(count, (size,), generator=generator)


def sheet(pictures: Iterable[Tensor], columns: int, path: Path) -> None:
    """Pictures (3, side, side) in 0..1 as one PNG, or as a JPEG if the name ends so."""
    from PIL import Image

    items = list(pictures)
    items += [torch.ones_like(items[0])] * (-len(items) % columns)
    rows = [torch.cat(items[i : i + columns], 2) for i in range(0, len(items), columns)]
    grid = torch.cat(rows, 1).float().cpu().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0)
    with replacing(path) as unfinished:
        kind = "JPEG" if path.suffix == ".jpg" else "PNG"
        Image.fromarray(grid.numpy()).save(unfinished, format=kind, quality=90)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What a process of ``bench quality`` does: train, merge, sample and classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.lib.results import Row
from soda_core.errors import ManifoldError, TrainingError
from soda_core.files import replacing
from testbed import evaluate
from testbed.bed import TestBed
from testbed.methods import Method
from testbed.world.tasks import Task
from testbed.world.vocabulary import CLASSES


@dataclass(frozen=True)
class Scope:
    """How much is measured."""

    methods: tuple[str, ...]
    subjects: tuple[str, ...]
    styles: tuple[str, ...]
    seeds: tuple[int, ...]
    subject_steps: int = 60
    style_steps: int = 150  #: a style shows late: what it looks like has no word that the model knows
    batch: int = 1
    prompts: int = 6
    sampling_steps: int = 8
    strengths: tuple[tuple[float, float], ...] = ((1.0, 1.0), (0.7, 0.7), (1.0, 0.7), (0.7, 1.0))
    ablations: bool = True

    def training(self, task: Task) -> dict[str, Any]:
        # not dco: what this small model gains is so large that dco's weight falls to nothing within a few steps
        return {"steps": self.steps(task), "batch_size": self.batch, "loss": "mse", "schedule": "cosine"}

    def steps(self, task: Task) -> int:
        return self.subject_steps if task.kind == "subject" else self.style_steps


class Runs:
    """The base model and its classifier, loaded once; every method is one job, and returns rows of metrics."""

    def __init__(self, scope: Scope, checkpoint: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.scope, self.bed = scope, TestBed(checkpoint, fast=True)
        self._references: dict[tuple[str, str], Any] = {}
        self._unchanged: dict[int, Any] = {}

    def base(self, task: Task, seed: int) -> list[Row]:
        """Of the model without an adapter."""
        return [self._measure(task, None, seed)]

    def train(
        self, method: Method, task: Task, seed: int, lr: float, prior: int = 0, drift: bool = True,
        keep: Path | None = None,
    ) -> list[Row]:  # fmt: skip
        """Train once and measure: the task, and drift on other prompts.

        Args:
            keep: where the changes of the weights, and our own methods' adapter, are left.
        """
        from testbed.training import train_method

        data = self.bed.training_data(task, prior)
        try:
            trained = train_method(self.bed.patcher, data, method, lr, **self.scope.training(task), seed=seed)
            if not all(bool(delta.isfinite().all()) for delta in trained.deltas.values()):
                raise ValueError("the weights are not finite")
        except (TrainingError, ValueError, torch.linalg.LinAlgError) as error:
            return [{"diverged": True, "why": str(error).splitlines()[0]}]
        if keep is not None:
            keep.parent.mkdir(exist_ok=True)
            if trained.adapter is not None:
                trained.adapter.save(adapter_path(keep))
            with replacing(keep) as unfinished:
                save_file({n: d.half().contiguous() for n, d in trained.deltas.items()}, unfinished)
        cost = {"params": trained.params, "stored": trained.stored, "seconds_per_step": trained.seconds_per_step}
        rows = [{**cost, **self._measure(task, trained.deltas, seed)}]
        if drift:
            rows.append({**cost, "task": "drift", "after": task.kind, **self._drift(trained.deltas, seed)})
        return rows

    def merge(
        self, paths: Sequence[Path], how: str, strengths: Sequence[float], subject: Task, style: Task, seed: int
    ) -> list[Row]:
        """What two trainings left, merged."""
        prompts = evaluate.merge_prompts(subject, style, self.scope.prompts)
        try:
            deltas = self._merged(paths, how, strengths)
        except ManifoldError as error:  # rotated so far that there is no way between
            return [{"diverged": True, "why": str(error).splitlines()[0]}]
        predictions, _ = self._classified(deltas, prompts, seed)
        references = self._reference(subject), self._reference(subject, style.name)
        return [evaluate.merge_metrics(predictions, prompts, *references)]

    def diverged(self) -> list[Row]:
        """A merge with a training that diverged."""
        return [{"diverged": True}]

    def _merged(self, paths: Sequence[Path], how: str, strengths: Sequence[float]) -> dict[str, Tensor]:
        if how == "geodesic":
            from soda_core.adapter import SodaAdapter
            from soda_core.merge import merge

            subject, style = (SodaAdapter.load(adapter_path(path)) for path in paths)
            return self.bed.deltas_of(merge(subject, style, *strengths, method="geodesic"))
        parts = [load_file(path) for path in paths]
        names = parts[0].keys() | parts[1].keys()
        pairs = list(zip(strengths, parts, strict=True))
        return {n: torch.stack([s * part[n].float() for s, part in pairs if n in part]).sum(0) for n in names}

    def _classified(self, deltas: Mapping[str, Tensor] | None, prompts: Sequence[evaluate.Prompt], seed: int) -> Any:
        return evaluate.classified(self.bed, deltas, prompts, seed, self.scope.sampling_steps)

    def _measure(self, task: Task, deltas: Mapping[str, Tensor] | None, seed: int) -> Row:
        if task.kind == "subject":
            prompts = evaluate.subject_prompts(task, self.scope.prompts)
            return evaluate.subject_metrics(self._classified(deltas, prompts, seed)[0], prompts, self._reference(task))
        prompts = evaluate.style_prompts(task, self.scope.prompts)
        return evaluate.style_metrics(self._classified(deltas, prompts, seed)[0], prompts)

    def _drift(self, deltas: Mapping[str, Tensor], seed: int) -> Row:
        prompts = evaluate.plain_prompts(len(CLASSES))
        if seed not in self._unchanged:
            self._unchanged[seed] = self._classified(None, prompts, seed)
        return evaluate.drift_metrics(*self._classified(deltas, prompts, seed), *self._unchanged[seed], prompts)

    def _reference(self, task: Task, style: str = "flat") -> Any:
        key = task.name, style
        if key not in self._references:
            self._references[key] = self.bed.references(task, style)
        return self._references[key]


def adapter_path(deltas: Path) -> Path:
    """Where our own methods keep the adapter that made the changes."""
    return deltas.with_suffix(".soda.safetensors")


_runs: Runs | None = None


def start(scope: Scope, checkpoint: Path, threads: int) -> None:
    """Make this process ready for :func:`call`."""
    global _runs
    _runs = Runs(scope, checkpoint, threads)


def call(name: str, *args: Any) -> list[Row]:
    """A method of this process's :class:`Runs`."""
    assert _runs is not None
    rows: list[Row] = getattr(_runs, name)(*args)
    return rows

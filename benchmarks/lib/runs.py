# SPDX-License-Identifier: GPL-3.0-or-later
"""What a process of ``bench quality`` does: train, merge, sample and classify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.lib.kept import Files
from benchmarks.lib.merges import Strengths, merged
from benchmarks.lib.plan import Asked, Scope
from benchmarks.lib.prediction import measures
from benchmarks.lib.results import Row
from benchmarks.lib.sheet import write_strip
from soda_core.errors import SodaError, TrainingError
from soda_core.files import replacing
from testbed import evaluate
from testbed.bed import TestBed
from testbed.classifier import Predictions
from testbed.methods import Method
from testbed.world.tasks import Task
from testbed.world.vocabulary import CLASSES

#: What nothing is shown by: a training that diverged, a merge that is refused.
NOTHING: Row = {**dict.fromkeys(evaluate.SHOWN, 0.0), "diverged": True}
REAL = 32  #: real pictures of what is asked for


class Runs:
    """The base model and its classifier, loaded once; every method but the private ones is a job and returns its row.

    The first arguments of a job: the files it may leave, and those that the trainings left which it needs.
    """

    def __init__(self, scope: Scope, checkpoint: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.scope, self.bed = scope, TestBed(checkpoint, fast=True)
        self._unchanged: dict[int, Any] = {}

    def base(self, files: Files, parts: Sequence[Files], asked: Asked, seed: int) -> Row:
        """Of the model without an adapter."""
        return self._shown(files, None, asked, seed)

    def real(self, files: Files, parts: Sequence[Files], asked: Asked) -> Row:
        """Of real pictures, through the autoencoder as samples are."""
        prompts = evaluate.prompts_of(asked, REAL)
        pictures = self.bed.real(evaluate.real_scenes(prompts))
        write_strip(pictures[: self.scope.prompts], files.strip)
        return self._said(self.bed.classified(pictures), prompts)

    def train(
        self, files: Files, parts: Sequence[Files], method: Method, task: Task, seed: int, rates: tuple[float, float]
    ) -> Row:
        """Train, measure, and leave the changes of the weights and our own methods' adapter."""
        from testbed.training import train_method

        data, (lr, shift_lr) = self.bed.training_data(task), rates
        try:
            trained = train_method(
                self.bed.patcher, data, method, lr, shift_lr, **self.scope.training(task.kind), seed=seed
            )
            if not all(bool(delta.isfinite().all()) for delta in trained.deltas.values()):
                raise ValueError("the weights are not finite")
        except (TrainingError, ValueError, torch.linalg.LinAlgError) as error:
            return NOTHING | {"why": str(error).splitlines()[0]}
        if trained.adapter is not None:
            trained.adapter.save(files.adapter)
        with replacing(files.deltas) as unfinished:
            save_file({n: d.half().contiguous() for n, d in trained.deltas.items()}, unfinished)
        cost = {"params": trained.params, "stored": trained.stored, "seconds_per_step": trained.seconds_per_step}
        found = {f"automatic {part} rate": rate for part, rate in trained.automatic_rates.items()}
        return cost | found | self._shown(files, trained.deltas, (task,), seed)

    def drift(self, files: Files, parts: Sequence[Files], seed: int) -> Row:
        """Of prompts without a placeholder, against the model without an adapter."""
        prompts = evaluate.plain_prompts(len(CLASSES))
        if seed not in self._unchanged:
            self._unchanged[seed] = self._classified(None, prompts, seed)
        if not parts[0].deltas.exists():
            return {"changed": 1.0, "diverged": True}
        deltas = {name: delta.float() for name, delta in load_file(parts[0].deltas).items()}
        return evaluate.drift_metrics(*self._classified(deltas, prompts, seed), *self._unchanged[seed])

    def merge(
        self, files: Files, parts: Sequence[Files], pair: Asked, way: str, strengths: Strengths, seed: int
    ) -> Row:
        """What two trainings left, merged."""
        if not all(part.deltas.exists() for part in parts):
            return NOTHING | {"why": "a training diverged"}
        try:
            deltas = merged(parts, way, strengths, self.bed.deltas_of)
        except SodaError as error:  # rotated so far that there is no way between, say
            return NOTHING | {"why": str(error).splitlines()[0]}
        measured = measures(*(load_file(part.deltas) for part in parts), deltas) if all(strengths) else {}
        return measured | self._shown(files, deltas, pair, seed)

    def _shown(self, files: Files, deltas: Mapping[str, Tensor] | None, asked: Asked, seed: int) -> Row:
        prompts = evaluate.prompts_of(asked, self.scope.prompts)
        predictions, pictures = self._classified(deltas, prompts, seed)
        write_strip(pictures, files.strip)
        return self._said(predictions, prompts)

    def _said(self, predictions: Predictions, prompts: Sequence[evaluate.Prompt]) -> Row:
        return evaluate.odds(predictions, prompts) | evaluate.accuracies(predictions, prompts)

    def _classified(self, deltas: Mapping[str, Tensor] | None, prompts: Sequence[evaluate.Prompt], seed: int) -> Any:
        return evaluate.classified(self.bed, deltas, prompts, seed, self.scope.sampling_steps)


_runs: Runs | None = None


def start(scope: Scope, checkpoint: Path, threads: int) -> None:
    """Make this process ready for :func:`call`."""
    global _runs
    _runs = Runs(scope, checkpoint, threads)


def call(name: str, files: Files, parts: Sequence[Files], *args: Any) -> Row:
    """A method of this process's :class:`Runs`."""
    assert _runs is not None
    row: Row = getattr(_runs, name)(files, parts, *args)
    return row

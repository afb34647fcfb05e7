# SPDX-License-Identifier: GPL-3.0-or-later
"""A training from the graph: a MODEL and pictures in, a saved adapter out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm

from ...adapter import SodaAdapter
from ...errors import SodaError, TrainingError
from ...training.loop import Progress, train
from ...training.memory import needs
from ...training.settings import TrainSettings
from ...training.trainable import TrainableAdapter
from .. import folders
from . import metadata, preview
from .dataset import Examples, TrainingData
from .objective import Objective
from .options import RunOptions
from .report import Report
from .session import TrainingSession

_OUT_OF_MEMORY = (
    "the device ran out of memory; turn on gradient_checkpointing, lower batch_size (and raise accumulation instead), "
    "train smaller pictures or fewer layers"
)


@dataclass(frozen=True)
class TrainingResult:
    adapter: SodaAdapter
    losses: list[float]
    learning_rates: list[float]
    saved_name: str


def train_in_graph(patcher: Any, data: TrainingData, settings: TrainSettings, options: RunOptions) -> TrainingResult:
    """Train an adapter for ``patcher``'s model and save it.

    The input model, the host's flags and the global random state are as found afterwards, also after an error or a
    cancel; then the adapter so far is saved as ``<prefix>-interrupted``.

    Raises:
        SettingsError, TrainingError: with what to change. Cancel raises the host's own exception.
    """
    folders.check_writable(options.filename_prefix)
    with (
        TrainingSession.open(patcher, settings, options.dtype, options.gradient_checkpointing) as session,
        _told(),
    ):
        return Run(session, data, options).train()


class Run:
    """One training: ready for its first step once it is made.

    Args:
        session: the copy to train in.
        data: from the graph; checked and converted here.
    """

    def __init__(self, session: TrainingSession, data: TrainingData, options: RunOptions) -> None:
        self.session, self.data, self.options = session, data, options
        self.settings = session.settings
        self.progress = Progress()
        self.examples = Examples.of(data, session.model, session.device)
        self.metadata = metadata.describe(
            session, self.examples.pictures, options.filename_prefix, options.trigger_phrase, options.graph
        )
        spectra = session.spectra(options.show)
        self.trainable = TrainableAdapter(session.shapes, self.settings, spectra, session.device)
        self.objective = Objective(session, self.trainable, self.examples)
        self._load()
        session.attach(self.trainable)
        self._announce()

    def train(self) -> TrainingResult:
        """All steps; whatever ends them, what was trained is saved."""
        with _told(self._rescue):
            self._report = Report(self.settings.steps, self.options.show)
            if self.options.preview_every:
                self._preview()
            train(self.trainable, self.settings, self.objective.batch_loss, self._after_step, self.progress)
        adapter = self.adapter()
        saved_name = folders.save_adapter(adapter, self.options.filename_prefix, anywhere=True)
        return TrainingResult(adapter, self.progress.losses, self.progress.learning_rates, saved_name)

    def adapter(self) -> SodaAdapter:
        """What is trained so far."""
        return self.trainable.to_adapter(self.session.weights, self.metadata | {"steps": self.progress.step})

    def memory(self) -> dict[str, int]:
        """Bytes that training takes above the loaded model, by what they are for."""
        largest = self.objective.largest()
        return needs(self.trainable, lambda: self.objective.losses(*largest))

    def _load(self) -> None:
        self.session.load(self.examples.batch_shape(self.settings.batch_size))

    def _announce(self) -> None:
        """Say how much is trained and what memory it takes, before the first step."""
        rotation = sum(p.numel() for p in self.trainable.rotations.values())
        shift = 0 if self.trainable.shifts is None else self.trainable.shifts.numel()
        logging.info("SODA: %s trained parameters (%s rotation, %s shift) in %d layers",
                     *(f"{n:,}" for n in (rotation + shift, rotation, shift)), len(self.trainable.layers))  # fmt: skip
        self.objective.predict_once()
        try:
            parts = self.memory()
        except Exception as error:  # a model that decides by values, say; training itself does not mind
            logging.info("SODA: how much memory a step takes cannot be told beforehand (%s)", error)
            return
        total = _mib(sum(parts.values()))
        listed = ", ".join(f"{name} {_mib(size)}" for name, size in parts.items())
        logging.info("SODA: memory above the loaded model: %s (%s)", total, listed)
        self.options.show(f"{rotation + shift:,} trained parameters, {total} above the loaded model")
        free = mm.get_free_memory(self.session.device)
        if parts["a step"] > free:
            logging.warning("SODA: a step takes %s and %s are free; turn on gradient_checkpointing, or train with "
                            "smaller batches or pictures", _mib(parts["a step"]), _mib(free))  # fmt: skip

    def _after_step(self, progress: Progress) -> None:
        step, options = progress.step, self.options
        self._report.step(progress)
        if options.save_every and step % options.save_every == 0 and step < self.settings.steps:
            try:
                folders.save_adapter(self.adapter(), f"{options.filename_prefix}-step{step:05}")
            except SodaError as error:  # the run itself can go on, and is saved at its end
                logging.warning("SODA: step %d is not saved: %s", step, error)
        if options.preview_every and step % options.preview_every == 0:
            self._preview()
        options.on_step(progress)
        self._report.bar.show(step)

    def _preview(self) -> None:
        """A picture on the node and in the output folder."""
        step = self.progress.step
        self.trainable.begin_step()
        try:
            picture = preview.sample(
                self.session, self.data, self.examples.pictures.groups[0][0].latent, self.options.preview_steps
            )
        finally:
            self._load()
        if picture is not None:
            folders.save_preview(picture, self.options.filename_prefix, step)
        self._report.bar.show(step, picture)

    def _rescue(self) -> str:
        """Save the adapter so far; says where, to end an error with."""
        step = self.progress.step
        if not step:
            return ""
        try:
            name = folders.save_adapter(self.adapter(), f"{self.options.filename_prefix}-interrupted", anywhere=True)
        except Exception as second:
            logging.error("SODA: the adapter of step %d could not be saved: %s", step, second)
            return f" (the adapter of step {step} could not be saved: {second})"
        logging.warning("SODA: stopped, the adapter of step %d is saved as %s", step, name)
        return f" (the adapter of step {step} is saved as {name})"


@contextmanager
def _told(rescue: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Whatever ends a training early, what there is of it is rescued, and an error says so and what to change."""
    try:
        yield
    except BaseException as error:  # the host's cancel is no Exception; nothing trained may be lost
        rescued = rescue()
        if isinstance(error, Exception) and mm.is_oom(error):
            raise TrainingError(_OUT_OF_MEMORY + rescued) from error
        if isinstance(error, TrainingError):
            error.args = (f"{error}{rescued}",)
        raise


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"

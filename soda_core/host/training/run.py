# SPDX-License-Identifier: GPL-3.0-or-later
"""A training, from the graph or a command: a MODEL and pictures in, a saved adapter out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...adapter import SodaAdapter
from ...base_check import relative_error
from ...errors import SettingsError, TrainingError
from ...training.loop import Progress, TrainingLoop
from ...training.measures import Measures
from ...training.memory import needs
from ...training.settings import TrainSettings
from ...training.state import RunState
from ...training.trainable import TrainableAdapter
from .. import folders
from ..versions import is_out_of_memory
from . import metadata
from .dataset import Examples, TrainingData
from .notices import notices, tell
from .objective import Objective
from .options import RunOptions
from .preview import Previews
from .report import Report, announce
from .saving import RunFiles, suffixes
from .session import TrainingSession
from .states import Start
from .validation import Validation

_OUT_OF_MEMORY = (
    "the device ran out of memory; turn on gradient_checkpointing, lower batch_size (and raise accumulation instead), "
    "train smaller pictures or fewer layers"
)


#: Of the base model's prediction, between two starts on one machine: rounding of a GPU is far below, a LoRA above.
_SAME_PREDICTION = 0.01


@dataclass(frozen=True)
class TrainingResult:
    adapter: SodaAdapter
    losses: list[float]
    learning_rates: list[float]
    saved_name: str  #: as listed; where no soda folder took it its whole path, or nothing
    warning: str = ""  #: what a user must know of where it is saved


def train_in_graph(patcher: Any, data: TrainingData, settings: TrainSettings, options: RunOptions) -> TrainingResult:
    """Train an adapter for ``patcher``'s model and save it; of several processes the first alone writes.

    The input model, the host's flags and the global random state are as found afterwards, also after an error or a
    cancel; then the adapter so far is saved as ``<prefix>-interrupted``, and the run can be continued.

    Raises:
        SettingsError, TrainingError: with what to change. Cancel raises the host's own exception.
    """
    with options.live:
        options.ranks.of_first(lambda: folders.check_writable(options.filename_prefix, suffixes(settings, options)))
        with (
            TrainingSession.open(patcher, settings, options.training_dtype, options.gradient_checkpointing) as session,
            _told(),
        ):
            return Run(session, data, options).train()


class Run:
    """One training: ready for its next step once it is made, and everything tried that can fail at its end.

    Args:
        session: the copy to train in.
        data: from the graph; checked and converted here.
    """

    def __init__(self, session: TrainingSession, data: TrainingData, options: RunOptions) -> None:
        self.session, self.data, self.options, self.ranks = session, data, options, options.ranks
        self.settings = session.settings
        self.ranks.check(self.settings.batch_size)
        self.start = self.ranks.of_first(lambda: Start.chosen(options))
        self.examples = Examples.of(data, session.model, session.device)
        self.conditions = {
            "training_dtype": session.dtype,
            "base model": session.fingerprint(),
            **self.examples.fingerprints(),
        }
        self._check_same()
        if self.start.state is not None:
            self.ranks.of_first(partial(self.start.state.check, self.settings, self.conditions))
        self.metadata = self.ranks.of_first(self._describe) | self.start.origin()
        self.trainable = self._trainable()
        self.progress = Progress()
        self.loop = TrainingLoop(self.trainable, self.settings, self.progress, self.ranks)
        self.objective = Objective(session, self.trainable, self.examples, self.ranks)
        self._load()
        session.attach(self.trainable)
        self.prediction = self.objective.base_prediction().float().cpu()
        if self.start.state is not None:
            self._resume(self.start.state)
        self.files = RunFiles(options, self.settings, self.start.file, self.progress, self.adapter, self._state)
        like = self.examples.pictures.groups[0][0].latent
        self.previews = Previews(session, data, options, like, self.metadata)
        announce(self.trainable, self.memory, session.device, options.live.note)
        if self.ranks.first:
            tell(notices(data, self.settings), options)
        self.ranks.of_first(self.files.check)

    def train(self) -> TrainingResult:
        """All steps; whatever ends them, what was trained is saved."""
        with _told(self._rescue):
            self._report = Report(self.settings.steps, self.progress.step)
            if self.options.preview_every and not self.progress.step:
                self._preview()
            live = self.options.live
            if live.watched:
                measures, validation = Measures(self.trainable), Validation(self.objective)
                live.begin(self.settings, self.progress, measures, validation)
            self.loop.run(self.objective.batch_loss, self._after_step, lambda: live.finish)
            if self.options.preview_every and self.progress.step % self.options.preview_every:
                self._preview()
            return self._finish()

    def _finish(self) -> TrainingResult:
        adapter, kept = self.files.finish() if self.ranks.first else (self.adapter(), folders.Kept(""))
        return TrainingResult(adapter, self.progress.losses, self.progress.learning_rates, kept.name, kept.warning)

    def adapter(self) -> SodaAdapter:
        """What is trained so far."""
        found = self.loop.estimates()
        said = {"steps": self.progress.step} | ({"automatic_rates": found} if found else {})
        return self.trainable.to_adapter(self.session.weights, self.metadata | said)

    def memory(self) -> dict[str, int]:
        """Bytes that training takes above the loaded model, by what they are for."""
        largest = self.objective.largest()
        return needs(self.trainable, lambda: self.objective.losses(*largest), self.settings.automatic)

    def _describe(self) -> dict[str, Any]:
        options = self.options
        return metadata.describe(
            self.session, self.examples.pictures, options.filename_prefix, options.trigger_phrase, options.notes
        )

    def _check_same(self) -> None:
        """Raise unless all processes train the same. (Devices may round latents differently.)"""
        shapes = [tuple(group[0].latent.shape) for group in self.examples.pictures.groups]
        self.ranks.check_same({
            "the base model": self.conditions["base model"], "the settings": self.settings.as_metadata(),
            "the number of pictures": len(self.examples.pictures), "their sizes as latents": shapes,
        })  # fmt: skip

    def _trainable(self) -> TrainableAdapter:
        session, adapter = self.session, self.start.adapter
        arguments = session.shapes, self.settings, session.spectra(self.options.live.note), session.device
        return TrainableAdapter(*arguments) if adapter is None else TrainableAdapter.from_adapter(adapter, *arguments)

    def _resume(self, state: RunState) -> None:
        """
        Raises:
            SettingsError: something in front of the model has changed. TrainingError: the state does not fit.
        """
        expected = state.tensors.get("base_prediction", torch.zeros(()))
        if (off := relative_error(self.prediction, expected)) > _SAME_PREDICTION:
            raise SettingsError(
                f"the run cannot be continued: the MODEL's predictions are off by {off:.0%} from what they were; put "
                "back the LoRAs and patches in front of it, and its VAE and checkpoint"
            )
        self.loop.resume(state.tensors)
        step, steps = self.progress.step, self.settings.steps
        logging.info("SODA: continuing at step %d of %d", step, steps)
        self.options.live.note(f"continuing at step {step} of {steps}", "note_continuing", step=step, steps=steps)

    def _state(self) -> RunState | None:
        """What it takes to go on from here; None in the middle of a step."""
        tensors = self.loop.state()
        if tensors is None:
            return None
        tensors["base_prediction"] = self.prediction
        return RunState(self.settings, self.conditions, tensors, self.start.origin())

    def _load(self) -> None:
        self.session.load(self.examples.batch_shape(len(self.ranks.share(self.settings.batch_size))))

    def _after_step(self, progress: Progress) -> None:
        step, options = progress.step, self.options
        self._report.step(progress)
        options.live.step(progress)
        if self.ranks.first:
            self.files.after(step)
        if options.preview_every and step % options.preview_every == 0:
            self._preview()
        options.on_step(progress)
        self._report.bar.show(step)

    def _preview(self) -> None:
        """A picture of each prompt."""
        if not self.ranks.first:
            return
        step = self.progress.step
        self.trainable.begin_step()
        try:
            pictures = self.previews.sample()
        finally:
            self._load()
        self.files.preview = self.previews.keep(pictures, step) or self.files.preview
        self._report.bar.show(step)

    def _rescue(self) -> str:
        """Keep what is trained so far; says where, to end an error with."""
        return self.files.rescue() if self.progress.step and self.ranks.first else ""


@contextmanager
def _told(rescue: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Whatever ends a training early, what there is of it is rescued, and an error says so and what to change."""
    try:
        yield
    except BaseException as error:  # the host's cancel is no Exception; nothing trained may be lost
        rescued = rescue()
        if isinstance(error, Exception) and is_out_of_memory(error):
            raise TrainingError(_OUT_OF_MEMORY + rescued) from error
        if isinstance(error, TrainingError):
            error.args = (f"{error}{rescued}",)
        raise

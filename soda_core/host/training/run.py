# SPDX-License-Identifier: GPL-3.0-or-later
"""A training, from the graph or a command: a MODEL and pictures in, a saved adapter out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management as mm
import torch
from PIL import Image

from ...adapter import SodaAdapter
from ...base_check import relative_error
from ...errors import SettingsError, SodaError, TrainingError
from ...report.loss_curve import loss_curve
from ...report.theme import to_image_tensor
from ...training.loop import Progress, TrainingLoop
from ...training.measures import Measures
from ...training.memory import needs
from ...training.settings import TrainSettings
from ...training.state import RunState
from ...training.trainable import TrainableAdapter
from .. import folders
from ..pictures import from_image
from ..versions import is_out_of_memory
from . import metadata, preview
from .dataset import Examples, TrainingData
from .notices import notices
from .objective import Objective
from .options import RunOptions
from .report import Report
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
        options.ranks.of_first(lambda: folders.check_writable(options.filename_prefix, _suffixes(settings, options)))
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
        self._last_preview: Image.Image | None = None
        self.loop = TrainingLoop(self.trainable, self.settings, self.progress, self.ranks)
        self.objective = Objective(session, self.trainable, self.examples, self.ranks)
        self._load()
        session.attach(self.trainable)
        self.prediction = self.objective.base_prediction().float().cpu()
        if self.start.state is not None:
            self._resume(self.start.state)
        self._announce()
        for notice in notices(data, self.settings) if self.ranks.first else ():
            logging.warning("SODA: %s", notice.text)
            options.warn(notice)
        self.ranks.of_first(
            lambda: folders.check_writable(options.filename_prefix, _suffixes(self.settings, options), self.adapter())
        )

    def train(self) -> TrainingResult:
        """All steps; whatever ends them, what was trained is saved."""
        with _told(self._rescue):
            self._report = Report(self.settings.steps, self.progress.step)
            if self.options.preview_every and not self.progress.step:
                self._preview()
            live = self.options.live
            if live.watched:
                measures, validation = Measures(self.trainable, self.session.weights), Validation(self.objective)
                live.begin(self.settings, self.progress, measures, validation)
            self.loop.run(self.objective.batch_loss, self._after_step, lambda: live.finish)
            if self.options.preview_every and self.progress.step % self.options.preview_every:
                self._preview()
            return self._finish()

    def _finish(self) -> TrainingResult:
        adapter = self.adapter()
        if not self.ranks.first:
            return TrainingResult(adapter, self.progress.losses, self.progress.learning_rates, "")
        try:
            kept = folders.keep_adapter(adapter, self.options.filename_prefix, self._picture())
            adapter = folders.titled(adapter, kept.name)
        except Exception as error:  # whatever it is: the adapter is there, and somebody waited for it
            text = f"the adapter could not be saved ({error}); it is in the graph alone, for Save SODA Adapter"
            kept = folders.Kept("", text)
        if kept.warning:
            self._keep_state()
            logging.warning("SODA: %s", kept.warning)
            self.options.live.note(kept.warning)
        else:
            self.start.file.discard()
        self.options.live.kept(kept.name)
        return TrainingResult(adapter, self.progress.losses, self.progress.learning_rates, kept.name, kept.warning)

    def adapter(self) -> SodaAdapter:
        """What is trained so far."""
        return self.trainable.to_adapter(self.session.weights, self.metadata | {"steps": self.progress.step})

    def _picture(self) -> Image.Image | None:
        """What goes with the file: the last preview, or the losses."""
        if self._last_preview is not None:
            return self._last_preview
        try:
            return from_image(to_image_tensor(loss_curve(self.progress.losses, title=self.options.filename_prefix)))
        except Exception as error:  # no picture is worth an adapter
            logging.warning("SODA: the loss could not be drawn: %s", error)
            return None

    def memory(self) -> dict[str, int]:
        """Bytes that training takes above the loaded model, by what they are for."""
        largest = self.objective.largest()
        return needs(self.trainable, lambda: self.objective.losses(*largest))

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
        logging.info("SODA: continuing at step %d of %d", self.progress.step, self.settings.steps)
        self.options.live.note(f"continuing at step {self.progress.step} of {self.settings.steps}")

    def _keep_state(self) -> bool:
        """Write down what it takes to go on from here; whether that went well."""
        tensors = self.loop.state()
        if tensors is None:
            return False
        tensors["base_prediction"] = self.prediction
        return self.start.file.write(RunState(self.settings, self.conditions, tensors, self.start.origin()))

    def _load(self) -> None:
        self.session.load(self.examples.batch_shape(len(self.ranks.share(self.settings.batch_size))))

    def _announce(self) -> None:
        """Say how much is trained and what memory it takes, before the first step."""
        rotation = sum(p.numel() for p in self.trainable.rotations.values())
        shift = 0 if self.trainable.shifts is None else self.trainable.shifts.numel()
        logging.info("SODA: %s trained parameters (%s rotation, %s shift) in %d layers",
                     *(f"{n:,}" for n in (rotation + shift, rotation, shift)), len(self.trainable.layers))  # fmt: skip
        try:
            parts = self.memory()
        except mm.InterruptProcessingException:  # up to ComfyUI 0.18 a cancel is an Exception
            raise
        except Exception as error:  # a model that decides by values, say; training itself does not mind
            logging.info("SODA: how much memory a step takes cannot be told beforehand (%s)", error)
            return
        total = _mib(sum(parts.values()))
        listed = ", ".join(f"{name} {_mib(size)}" for name, size in parts.items())
        logging.info("SODA: memory above the loaded model: %s (%s)", total, listed)
        self.options.live.note(f"{rotation + shift:,} trained parameters, {total} above the loaded model")
        free = mm.get_free_memory(self.session.device)
        if parts["a step"] > free:
            logging.warning("SODA: a step takes %s and %s are free; turn on gradient_checkpointing, or train with "
                            "smaller batches or pictures", _mib(parts["a step"]), _mib(free))  # fmt: skip

    def _after_step(self, progress: Progress) -> None:
        step, options = progress.step, self.options
        self._report.step(progress)
        options.live.step(progress)
        if self.ranks.first:
            self._write(step)
        options.on_step(progress)
        self._report.bar.show(step)

    def _write(self, step: int) -> None:
        """What is due after a step."""
        options = self.options
        if self.start.file.due():
            self._keep_state()
        if options.save_every and step % options.save_every == 0 and step < self.settings.steps:
            try:
                folders.save_adapter(self.adapter(), f"{options.filename_prefix}-step{step:05}", self._picture())
            except SodaError as error:  # the run itself can go on, and is saved at its end
                logging.warning("SODA: step %d is not saved: %s", step, error)
        if options.preview_every and step % options.preview_every == 0:
            self._preview()

    def _preview(self) -> None:
        """A picture of each prompt, on the node and in the output folder."""
        if not self.ranks.first:
            return
        options, step = self.options, self.progress.step
        like = self.examples.pictures.groups[0][0].latent
        self.trainable.begin_step()
        try:
            pictures = [
                preview.sample(self.session, self.data, prompt, like, options.preview_steps)
                for prompt in preview.prompts(self.data)
            ]
        finally:
            self._load()
        for number, picture in enumerate(pictures):
            if picture is None:
                continue
            if number == 0:
                self._last_preview = picture
            if file := folders.save_preview(picture, options.filename_prefix, step, number, self.metadata):
                options.live.picture(step, number, file)
        self._report.bar.show(step)

    def _rescue(self) -> str:
        """Save the state and the adapter so far; says where, to end an error with."""
        step = self.progress.step
        if not step or not self.ranks.first:
            return ""
        try:
            goes_on = self._keep_state()
            kept = folders.keep_adapter(self.adapter(), f"{self.options.filename_prefix}-interrupted", self._picture())
        except Exception as second:
            logging.error("SODA: the adapter of step %d could not be saved: %s", step, second)
            return f" (the adapter of step {step} could not be saved: {second})"
        logging.warning("SODA: stopped, the adapter of step %d is saved as %s", step, kept.name)
        if kept.warning:
            logging.warning("SODA: %s", kept.warning)
        if goes_on:
            logging.info("SODA: continue_from = %r goes on from there", self.start.file.choice)
        self.options.live.kept(kept.name, self.start.file.choice if goes_on else "")
        return f" (the adapter of step {step} is saved as {kept.name})"


def _suffixes(settings: TrainSettings, options: RunOptions) -> list[str]:
    """What is put behind the prefix in names of files that a run may save."""
    return ["", "-interrupted", *([f"-step{settings.steps:05}"] if options.save_every else [])]


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


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"

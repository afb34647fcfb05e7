# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run leaves on disk: its adapter, on the way and however it ends, and the state to go on from."""

from __future__ import annotations

import logging
from collections.abc import Callable

from PIL import Image

from ...adapter import SodaAdapter
from ...errors import SodaError
from ...report.loss_curve import loss_curve
from ...report.theme import to_image_tensor
from ...training.loop import Progress
from ...training.settings import TrainSettings
from ...training.state import RunState
from .. import folders
from ..pictures import from_image
from .options import RunOptions
from .states import StateFile


def suffixes(settings: TrainSettings, options: RunOptions) -> list[str]:
    """What is put behind the prefix in names of files that a run may save."""
    return ["", "-interrupted", *([f"-step{settings.steps:05}"] if options.save_every else [])]


class RunFiles:
    """The files of one run; of several processes the first alone writes them.

    Args:
        progress: of the run, as it goes on.
        adapter: makes what is trained so far.
        state: makes what it takes to go on from here; None in the middle of a step.
    """

    def __init__(
        self, options: RunOptions, settings: TrainSettings, state_file: StateFile, progress: Progress,
        adapter: Callable[[], SodaAdapter], state: Callable[[], RunState | None],
    ) -> None:  # fmt: skip
        self._options, self._settings, self._state_file, self._progress = options, settings, state_file, progress
        self._adapter, self._state = adapter, state
        self.preview: Image.Image | None = None  #: the newest, if any

    def check(self) -> None:
        """Raise now what saving would raise later; see :func:`..folders.check_writable`."""
        prefix = self._options.filename_prefix
        folders.check_writable(prefix, suffixes(self._settings, self._options), self._adapter())

    def after(self, step: int) -> None:
        """Write what is due after a step."""
        options = self._options
        if self._state_file.due():
            self._keep_state()
        if options.save_every and step % options.save_every == 0 and step < self._settings.steps:
            try:
                folders.save_adapter(self._adapter(), f"{options.filename_prefix}-step{step:05}", self._picture())
            except SodaError as error:  # the run itself can go on, and is saved at its end
                logging.warning("SODA: step %d is not saved: %s", step, error)

    def finish(self) -> tuple[SodaAdapter, folders.Kept]:
        """Save the adapter of a run that has ended well; returns it as it is in its file."""
        adapter, live = self._adapter(), self._options.live
        try:
            kept = folders.keep_adapter(adapter, self._options.filename_prefix, self._picture())
            adapter, words = folders.titled(adapter, kept.name), {"key": "note_elsewhere", "path": kept.name}
        except Exception as error:  # whatever it is: the adapter is there, and somebody waited for it
            text = f"the adapter could not be saved ({error}); it is in the graph alone, for Save SODA Adapter"
            kept, words = folders.Kept("", text), {"key": "note_unsaved", "error": str(error)}
        if kept.warning:
            self._keep_state()
            logging.warning("SODA: %s", kept.warning)
            live.note(kept.warning, **words)
        else:
            self._state_file.discard()
        live.kept(kept.name)
        return adapter, kept

    def rescue(self) -> str:
        """Save the state and the adapter of a run that was stopped or failed; says where, to end an error with."""
        step = self._progress.step
        try:
            goes_on = self._keep_state()
            prefix = f"{self._options.filename_prefix}-interrupted"
            kept = folders.keep_adapter(self._adapter(), prefix, self._picture())
        except Exception as second:
            logging.error("SODA: the adapter of step %d could not be saved: %s", step, second)
            return f" (the adapter of step {step} could not be saved: {second})"
        logging.warning("SODA: stopped, the adapter of step %d is saved as %s", step, kept.name)
        if kept.warning:
            logging.warning("SODA: %s", kept.warning)
        if goes_on:
            logging.info("SODA: continue_from = %r goes on from there", self._state_file.choice)
        self._options.live.kept(kept.name, self._state_file.choice if goes_on else "")
        return f" (the adapter of step {step} is saved as {kept.name})"

    def _keep_state(self) -> bool:
        """Whether it is written."""
        state = self._state()
        return state is not None and self._state_file.write(state)

    def _picture(self) -> Image.Image | None:
        """What goes with an adapter's file: the newest preview, or the losses."""
        if self.preview is not None:
            return self.preview
        try:
            curve = loss_curve(self._progress.losses, title=self._options.filename_prefix)
            return from_image(to_image_tensor(curve))
        except Exception as error:  # no picture is worth an adapter
            logging.warning("SODA: the loss could not be drawn: %s", error)
            return None

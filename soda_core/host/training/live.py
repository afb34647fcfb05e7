# SPDX-License-Identifier: GPL-3.0-or-later
"""What open front ends see of a training: one plain value, renewed while it runs.

Everything that is shown is in every state, with the curves thinned to a bounded size: a page that is loaded in the
middle of a run, or missed something, is up to date with the next one.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

from ...training.loop import Progress
from ...training.measures import Measures
from ...training.series import RunningMean, Series
from ...training.settings import TrainSettings
from ..versions import is_cancel
from .validation import Validation

State = dict[str, Any]
Status = Literal["preparing", "training", "done", "stopped", "failed"]

#: Least seconds between two states of a run that only goes on.
EVERY = 0.5
#: Pictures a strip holds, by prompt; beyond it every other one goes, but for the first.
MOST_PICTURES = 24
#: Characters of an error.
_MOST_TEXT = 2000


class Live:
    """A run as it is seen. Within it as a context, whatever ends the run is told.

    Args:
        post: takes a state; None where nobody will look, and nothing is computed.
        about: what tells this run from others, for whoever draws it: plain values.
    """

    def __init__(self, post: Callable[[State], None] | None = None, **about: Any) -> None:
        self.id = uuid.uuid4().hex
        self.finish = False  #: end after this step as if it were the last
        self._post, self._about = post, about
        self._status: Status = "preparing"
        self._note, self._saved, self._kept_run, self._error = "", "", "", ""
        self._words: dict[str, Any] = {}
        self._step, self._steps, self._rates = 0, 0, list[float]()
        self._curves = {name: Series() for name in ("loss", "mean", "validation", "schedule", "rotation", "shift")}
        self._mean = RunningMean()
        self._pictures: list[dict[str, Any]] = []
        self._measures: Measures | None = None
        self._validation: Validation | None = None
        self._first, self._began, self._told = 0, 0.0, 0.0

    # ------------------------------------------------------------------------------------------------- what happens

    def __enter__(self) -> Live:
        self._tell()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._status = "done"
        elif is_cancel(error):
            self._status = "stopped"
        else:
            self._status, self._error = "failed", str(error)[:_MOST_TEXT]
        self._measures = self._validation = None  # they hold a model
        self._tell()

    def note(self, text: str, key: str = "", **values: Any) -> None:
        """A line on what is done beside steps.

        Args:
            text: in English.
            key: of the same words in ``locales/*/main.json``, with these values in them; none where only a terminal
                shows it.
        """
        self._note, self._words = text, {"key": key, **values}
        self._tell()

    @property
    def watched(self) -> bool:
        """Whether anybody will look."""
        return self._post is not None

    def begin(self, settings: TrainSettings, progress: Progress, measures: Measures, validation: Validation) -> None:
        """The first step comes next. Only for what is watched."""
        self._status, self._steps, self._note, self._words = "training", settings.steps, "", {}
        self._rates = [*progress.rates.values()]
        for step, (loss, rate) in enumerate(zip(progress.losses, progress.learning_rates, strict=True), 1):
            self._add(step, loss, rate)  # of a run that goes on
        self._step = self._first = progress.step
        self._measures, self._validation = measures, validation
        self._look(progress.step)
        self._began = time.monotonic()
        self._tell()

    def step(self, progress: Progress) -> None:
        """One step more."""
        if not self.watched:
            return
        self._step, self._rates = progress.step, [*progress.rates.values()]
        self._add(progress.step, progress.losses[-1], progress.learning_rates[-1])
        if self._validation is not None and (self.finish or self._validation.due(self._step)):
            self._look(self._step)
            self._tell()
        elif time.monotonic() - self._told >= EVERY:
            self._measure(self._step)
            self._tell()

    def ask_finish(self) -> bool:
        """From another thread: the run is to end after the step it is at. Whether it has not ended already."""
        going = self._status in ("preparing", "training")
        if going:
            self.finish = True
            self._tell()
        return going

    def picture(self, step: int, prompt: int, file: dict[str, str]) -> None:
        """A preview is there, as the host's ``/view`` takes it."""
        self._pictures.append({"step": step, "prompt": prompt, **file})
        strip = [picture for picture in self._pictures if picture["prompt"] == prompt]
        if len(strip) > MOST_PICTURES:
            for gone in strip[1:-1:2]:
                self._pictures.remove(gone)
        self._tell()

    def kept(self, name: str, run: str = "") -> None:
        """The adapter is saved, and the run can be continued as ``run``; told at the end."""
        self._saved, self._kept_run = name, run

    # ------------------------------------------------------------------------------------------------ what is shown

    def state(self) -> State:
        """Plain finite values, ready for JSON."""
        done, seconds = self._step - self._first, time.monotonic() - self._began
        speed = done / seconds if done > 0 and seconds > 0 else 0.0
        return {
            **self._about,
            "id": self.id,
            "status": "finishing" if self.finish and self._status == "training" else self._status,
            "step": self._step,
            "steps": self._steps,
            "speed": float(f"{speed:.4g}"),
            "left": round((self._steps - self._step) / speed) if speed else None,
            "rates": self._rates,
            "curves": {name: series.points() for name, series in self._curves.items()},
            "pictures": list(self._pictures),
            "note": self._note,
            "note_words": self._words,
            "saved": self._saved,
            "kept_run": self._kept_run,
            "error": self._error,
        }

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self._post is not None:
            self._post(self.state())

    def _add(self, step: int, loss: float, rate: float) -> None:
        self._curves["loss"].add(step, loss)
        self._curves["mean"].add(step, self._mean.add(loss))
        self._curves["schedule"].add(step, rate)

    def _look(self, step: int) -> None:
        if self._validation is not None:
            self._curves["validation"].add(step, self._validation.loss())
        self._measure(step)

    def _measure(self, step: int) -> None:
        if self._measures is None:
            return
        for name, value in (("rotation", self._measures.rotation()), ("shift", self._measures.shift())):
            if value is not None:
                self._curves[name].add(step, value)

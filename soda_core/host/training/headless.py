# SPDX-License-Identifier: GPL-3.0-or-later
"""A training without a graph: the node's run, on a model from files and the pictures of a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ...training.loop import Progress
from ...training.options import FolderOptions
from ...training.settings import TrainSettings
from .. import folders, loaders
from .live import Live
from .notices import folder_notices, tell
from .options import RunOptions
from .pictures import from_folder, listed
from .run import TrainingResult, train_in_graph

#: Steps whose mean loss is told.
_RECENT = 20


class Shown(Live):
    """A run as a terminal shows it: one line.

    Args:
        show: takes the line.
    """

    def __init__(self, show: Callable[[str], None], steps: int) -> None:
        super().__init__()
        self._show, self._total = show, steps
        self.done, self.saved, self.run = 0, "", ""  #: steps; names of the adapter and, where it can go on, of the run

    def note(self, text: str, key: str = "", **values: Any) -> None:
        self._show(text)

    def step(self, progress: Progress) -> None:
        self.done, recent = progress.step, progress.losses[-_RECENT:]
        self._show(f"step {self.done}/{self._total}   loss {sum(recent) / len(recent):.4f}")

    def kept(self, name: str, run: str = "") -> None:
        self.saved, self.run = name, run


def train_folder(
    files: loaders.ModelFiles,
    pictures: Path,
    folder: FolderOptions,
    settings: TrainSettings,
    options: RunOptions,
    class_pictures: Path | None = None,
) -> TrainingResult:
    """Train an adapter; its file also says what ``folder`` holds.

    Raises:
        SettingsError, TrainingError: with what to change. A cancel raises the host's own exception.
    """
    options = replace(options, notes={**options.notes, "folder": asdict(folder)})
    with torch.inference_mode():  # as the host runs its nodes
        options.live.note("loading the model")
        model, clip, vae = loaders.load(files)
        if options.ranks.first and folder.caption:  # without one, a picture that has none is an error
            tell(folder_notices(pictures, listed(pictures), folder.caption), options)
        options.live.note("encoding pictures and captions")
        data = from_folder(pictures, clip, vae, folder, class_pictures)
        del clip  # its memory is the training's
        return train_in_graph(model, data, settings, options)


def saved_path(result: TrainingResult) -> Path | None:
    """Where the adapter of a run is; None where no folder took it."""
    if not result.saved_name or Path(result.saved_name).is_absolute():
        return Path(result.saved_name) if result.saved_name else None
    return folders.adapter_path(result.saved_name)

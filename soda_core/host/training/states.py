# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that can be continued: where their states are kept until they are finished, and how one is chosen."""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths

from ...adapter import SodaAdapter
from ...errors import SettingsError, SodaError
from ...files import check_prefix
from ...training.options import NOTHING
from ...training.state import RunState
from .. import folders
from .options import RunOptions

#: So many are kept, the newest.
KEPT = 10

#: Of a run among :func:`choices`, before its name.
LISTED_AS = "unfinished: "  # no adapter is called so: their names have an ending


def choices() -> list[str]:
    """What ``continue_from`` offers: nothing, runs, the newest first, and adapters."""
    return [NOTHING, *(f"{LISTED_AS}{path.stem}" for path in _paths()), *folders.adapter_names()]


class StateFile:
    """The state of one run on disk.

    Args:
        minutes: between two writes; 0 for no state at all.
    """

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.minutes = path, minutes
        self._written = time.monotonic()

    @property
    def choice(self) -> str:
        """Its entry among :func:`choices`."""
        return f"{LISTED_AS}{self.path.stem}"

    def due(self) -> bool:
        return self.minutes > 0 and time.monotonic() - self._written >= 60 * self.minutes

    def write(self, state: RunState) -> bool:
        """Whether it is written: not being able to is no reason to stop a training."""
        if not self.minutes:
            return False
        self._written = time.monotonic()
        try:
            state.save(self.path)
        except SodaError as error:
            logging.warning("SODA: the run can only be continued from an earlier step, if at all: %s", error)
            return False
        for path in _paths()[KEPT:]:
            path.unlink(missing_ok=True)
        return True

    def discard(self) -> None:
        """The run is finished."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            logging.warning("SODA: the state of the finished run stays in %s: %s", self.path, error)


@dataclass(frozen=True)
class Start:
    """Where a run starts: at the base model, an adapter or a state; and the file for its own state."""

    file: StateFile
    state: RunState | None = None
    adapter: SodaAdapter | None = None

    @classmethod
    def chosen(cls, options: RunOptions) -> Start:
        """
        Raises:
            SettingsError: there is no such run or adapter. FileFormatError: its file cannot be read.
        """
        choice = options.continue_from
        if choice.startswith(LISTED_AS):
            path = next((path for path in _paths() if path.stem == choice.removeprefix(LISTED_AS)), None)
            if path is None:
                raise SettingsError(
                    f"continue_from: {choice!r} is gone: it was finished, or is none of the newest {KEPT}. "
                    f"Choose another, or {NOTHING}"
                )
            return cls(StateFile(path, options.state_minutes), state=RunState.load(path))
        adapter = None if choice == NOTHING else folders.load_adapter(choice)
        return cls(StateFile(_new_path(options.filename_prefix), options.state_minutes), adapter=adapter)

    def origin(self) -> dict[str, Any]:
        """``started_from`` of a run's metadata, where it is not the base model."""
        if self.adapter is not None:
            return {"started_from": {"title": self.adapter.title, "hash": self.adapter.identity()}}
        return {} if self.state is None else dict(self.state.notes)


def folder() -> Path:
    """Of the states, in the user's private one."""
    return Path(folder_paths.get_system_user_directory("soda_states"))


def _paths() -> list[Path]:
    """Of all states, the newest first."""
    found = []
    for path in folder().glob("*.safetensors"):
        try:
            found.append((path.stat().st_mtime_ns, path))
        except OSError:  # another process has just finished that run
            continue
    return [path for _, path in sorted(found, reverse=True)]


def _new_path(prefix: str) -> Path:
    """Named after the run and its start; unlike any other."""
    name = re.sub(r"[^\w.-]", "_", check_prefix(prefix).rsplit("/", 1)[-1])[:40]
    return folder() / f"{name} {time.strftime('%Y-%m-%d %H.%M.%S')} {uuid.uuid4().hex[:4]}.safetensors"

# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that stopped, as a file: all that it takes to go on as if it had never stopped.

Random numbers are not in it: they depend on seed and step alone. The format is safetensors with a sorted JSON value
``soda_state``; a digest tells a damaged file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from .. import tensor_file
from ..errors import FileFormatError, SettingsError, SodaError
from .settings import TrainSettings

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class RunState:
    """
    Args:
        settings: of the run.
        conditions: what else decides its result, as text by name: the precision, fingerprints of data and weights.
        tensors: of :meth:`.loop.TrainingLoop.state`, and what a host keeps beside them.
        notes: for whoever goes on; they decide nothing.
    """

    settings: TrainSettings
    conditions: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Steps done."""
        return self.tensors["losses"].numel()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, whole or not at all; it replaces an earlier state of the run.

        Raises:
            SodaError: the disk is full or the folder cannot be written.
        """
        document = {
            "format_version": FORMAT_VERSION,
            "settings": self.settings.as_metadata(),
            "conditions": dict(self.conditions),
            "notes": dict(self.notes),
            "digest": tensor_file.tensor_hash(self.tensors),
        }
        tensor_file.write(path, self.tensors, {"soda_state": json.dumps(document, sort_keys=True)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RunState:
        """
        Raises:
            FileFormatError: it is no state, or a damaged one.
        """
        path = Path(path)
        try:
            with safetensors.safe_open(os.fspath(path), framework="pt") as file:
                document = _document((file.metadata() or {})["soda_state"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
            if document["format_version"] != FORMAT_VERSION:
                raise FileFormatError(f"has format version {document['format_version']!r}; update the pack")
            if document["digest"] != tensor_file.tensor_hash(tensors):
                raise FileFormatError("does not match its own digest")
            settings = TrainSettings.from_metadata(_record(document, "settings"))
            conditions, notes = _record(document, "conditions"), _record(document, "notes")
            if not all(isinstance(value, str) for value in conditions.values()):
                raise FileFormatError("has conditions that are no text")
            state = cls(settings, conditions, tensors, notes)
            state.step  # noqa: B018  (there is one)
        except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, SodaError) as error:
            raise FileFormatError(
                f"the stopped run {path.name!r} cannot be read ({error}); start from its -interrupted adapter instead"
            ) from error
        return state

    def check(self, settings: TrainSettings, conditions: Mapping[str, str]) -> None:
        """
        Raises:
            SettingsError: a run of these settings under these conditions would not be this one; it says all that
                differs. ``steps`` may be another number, but for what is done already.
        """
        alike = TrainSettings.from_metadata(settings.as_metadata())  # in the same types
        names = [f.name for f in fields(TrainSettings) if f.name != "steps"]
        told: dict[str, tuple[Any, Any]] = {
            name: (getattr(self.settings, name), getattr(alike, name)) for name in names
        }
        told |= {
            name: (self.conditions.get(name, "none"), conditions.get(name, "none"))
            for name in dict.fromkeys((*self.conditions, *conditions))
        }
        differences = [f"{name} (was {was!r}, is {now!r})" for name, (was, now) in told.items() if was != now]
        if settings.steps < self.step:
            differences.append(f"steps ({self.step} are done, asked for are {settings.steps})")
        if differences:
            raise SettingsError(
                f"the run cannot be continued, because this is another one: {'; '.join(differences)}. Put back what "
                "differs, or start from the adapter that was saved when it stopped"
            )


def _document(text: str) -> dict[str, Any]:
    try:
        return _record({"soda_state": json.loads(text)}, "soda_state")
    except RecursionError:
        raise FileFormatError("is nested too deeply") from None


def _record(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A part of the document that is itself one."""
    if not isinstance(document[key], dict):
        raise FileFormatError(f"has a {key!r} that is no record")
    return document[key]  # type: ignore[no-any-return]

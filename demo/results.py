# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run of the demo leaves to be shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from demo.settings import Scene
from testbed.world.tasks import Task

BASE, SUBJECT = "base", "subject"  #: columns; each further one is named after its style


@dataclass(frozen=True)
class Training:
    """One finished training run."""

    task: Task
    pictures: list[tuple[Image.Image, str]]  #: with captions
    curve: Image.Image
    portrait: Image.Image
    file: str
    kilobytes: float
    settings: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Row:
    """One scene, painted from the same noise with different adapters.

    Args:
        subject: whose adapter is in the model; None in the row of styles alone.
        cells: picture by column.
    """

    scene: Scene
    subject: Task | None
    cells: dict[str, Image.Image]


@dataclass
class Results:
    """Everything, in the order in which it was made.

    Args:
        rows, lora_rows: a row for each subject, and at the end the one of styles alone.
        reports: of the merges, by what was merged.
        timings: seconds by what took them.
    """

    subjects: list[Training] = field(default_factory=list)
    styles: list[Training] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    lora_rows: list[Row] = field(default_factory=list)
    reports: dict[str, str] = field(default_factory=dict)
    timings: list[tuple[str, float]] = field(default_factory=list)
    machine: dict[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        return [BASE, SUBJECT, *(training.task.name for training in self.styles)]

# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run is given beside its data and the settings of its training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...training.loop import OnStep
from ...training.options import RunSettings
from ...training.ranks import ALONE, Ranks
from .live import Live


@dataclass(frozen=True)
class Notice:
    """What looks like a mistake, though it can be trained with.

    Args:
        kind: what ``web/notices.js`` translates by.
        text: in English.
        count, total, first: what is in it of numbers and names.
    """

    kind: str
    text: str
    count: int = 0
    total: int = 0
    first: str = ""


@dataclass(frozen=True)
class RunOptions(RunSettings):
    """
    Args:
        notes: kept in the file: workflow and prompt JSON of a graph, or what a command was given.
        live: shows the run while it goes on; without one nobody sees it.
        warn: shows what looks like a mistake on the node, where it stays.
        on_step: called after every step; what it raises ends the run, as a cancel does.
        ranks: the processes that share the run.
    """

    filename_prefix: str = "soda"
    notes: Mapping[str, Any] = field(default_factory=dict)
    live: Live = field(default_factory=Live)
    warn: Callable[[Notice], None] = lambda notice: None
    on_step: OnStep = lambda progress: None
    ranks: Ranks = ALONE

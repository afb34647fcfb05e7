# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run in the graph does beside training; none of it changes the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import get_args

from ...training.loop import OnStep
from ...training.setting import check_settings, setting
from .live import Live
from .session import TrainingDtype

#: Of ``continue_from``: start from the base model.
NOTHING = "(none)"


@dataclass(frozen=True)
class Notice:
    """What looks like a mistake, though it can be trained with.

    Args:
        kind: what ``web/notices.js`` translates by.
        text: in English.
        count: the number in it.
    """

    kind: str
    text: str
    count: int = 0


@dataclass(frozen=True)
class RunOptions:
    """
    Args:
        graph: workflow and prompt JSON, kept in the file.
        live: shows the run while it goes on; without one nobody sees it.
        warn: shows what looks like a mistake on the node, where it stays.
        on_step: called after every step; what it raises ends the run, as a cancel does.
    """

    filename_prefix: str = "soda"
    trigger_phrase: str = field(
        default="",
        metadata=setting(
            "The phrase that calls your subject or style, e.g. 'sks dog'. Stored in the file and given back by the "
            "loader; it does not change the captions.",
        ),
    )
    dtype: TrainingDtype = field(
        default="auto",
        metadata=setting(
            "Precision of the model's own computation. auto (default): bf16 on GPUs that are fast at it, fp32 "
            "elsewhere. bf16: half the memory. fp32: exact, best on a CPU. model: whatever the model runs in. The "
            "adapter itself is always float32.",
            choices=get_args(TrainingDtype),
            advanced=True,
        ),
    )
    gradient_checkpointing: bool = field(
        default=False,
        metadata=setting(
            "Recompute activations in the backward pass: less memory, half as long again or more. Turn on when memory "
            "runs out.",
            advanced=True,
        ),
    )
    save_every: int = field(
        default=0,
        metadata=setting(
            "Also save the adapter every so many steps (name-step00100_00001_); 0 = only at the end.",
            minimum=0,
            maximum=1_000_000,
            advanced=True,
        ),
    )
    preview_every: int = field(
        default=0,
        metadata=setting(
            "Every so many steps, and before the first (the base), sample the first caption at a fixed seed: cfg 6 "
            "with negative connected, else 1. Shown on the node and kept in output/soda-previews, where the next run "
            "of that name overwrites it; 0 = none (default: each is a whole sampling).",
            minimum=0,
            maximum=1_000_000,
        ),
    )
    preview_steps: int = field(
        default=20,
        metadata=setting("Sampling steps of a preview; 20 shows enough.", minimum=1, maximum=1000, advanced=True),
    )
    state_minutes: float = field(
        default=5.0,
        metadata=setting(
            "Every so many minutes, and when it stops, the run is written down so that it can be continued exactly, "
            "also after a crash; 5 costs nothing that shows. 0 = never.",
            minimum=0.0,
            maximum=1440.0,
            step=0.5,
            advanced=True,
        ),
    )
    continue_from: str = field(
        default=NOTHING,
        metadata=setting(
            "Go on with a run that was stopped or crashed, exactly as if it had not been: same settings (steps may "
            "grow), pictures and model. An adapter instead is where a new run starts, with its layers and sizes. "
            "(none), the default: start from the base model.",
            advanced=True,
        ),
    )
    graph: dict[str, str] = field(default_factory=dict)
    live: Live = field(default_factory=Live)
    warn: Callable[[Notice], None] = lambda notice: None
    on_step: OnStep = lambda progress: None

    def __post_init__(self) -> None:
        check_settings(self)

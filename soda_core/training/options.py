# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run does beside training, which does not change the result; and how a folder becomes its pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from .setting import check_settings, setting

#: Of ``continue_from``: start from the base model.
NOTHING = "(none)"

TrainingDtype = Literal["auto", "bf16", "fp32", "model"]


@dataclass(frozen=True)
class RunSettings:
    """What a user may say of a run beside its training; none of it changes the result."""

    trigger_phrase: str = field(
        default="",
        metadata=setting(
            "The phrase that calls your subject or style, e.g. 'sks dog'. Stored in the file and given back by the "
            "loader; it does not change the captions.",
        ),
    )
    training_dtype: TrainingDtype = field(
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

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class FolderOptions:
    """How the pictures and captions of a folder become training data."""

    resolution: int = field(
        default=512,
        metadata=setting(
            "Side of the square that pictures are scaled and cropped to, in pixels: 512 for SD 1.5, 1024 for SDXL, "
            "SD 3.5 and Flux. 0 keeps each picture's own size.",
            minimum=0,
            maximum=8192,
        ),
    )
    caption: str = field(
        default="",
        metadata=setting("Caption of the pictures that have no text file of the same name, e.g. 'a sks dog'."),
    )
    placeholder: str = field(
        default="",
        metadata=setting(
            "For dco: what is taken out of the captions for the base model, which does not know it yet, e.g. 'sks '. "
            "Without it the base sees the same captions.",
        ),
    )
    negative: str = field(
        default="", metadata=setting("Negative prompt of previews; without it they use cfg 1.", advanced=True)
    )

    def __post_init__(self) -> None:
        check_settings(self)

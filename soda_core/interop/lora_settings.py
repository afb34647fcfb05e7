# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of an export: node, command and function read them here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from ..errors import SettingsError
from ..layer import StrengthMode
from ..training.setting import check_settings, setting
from .names import Naming

Size = Literal["rank", "error", "size_mb", "exact"]

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class LoraSettings:
    """How an adapter becomes a LoRA."""

    naming: Naming = field(
        default="comfy",
        metadata=setting(
            "Names of the layers in the file. comfy (default): ComfyUI's own, for every model it knows. kohya: what "
            "most other programs read. diffusers: for its load_lora_weights. These two know SD 1 and 2, SDXL, SD 3 and "
            "Flux. ComfyUI's Load LoRA reads all three.",
            choices=get_args(Naming),
        ),
    )
    by: Size = field(
        default="rank",
        metadata=setting(
            "What decides how much of the change is kept. rank (default): the size of a LoRA of this rank, spread "
            "over the layers where it keeps most. error: as small as leaves out no more than this part. size_mb: as "
            "much as fits. exact: everything, as full differences, which ComfyUI's Load LoRA reads too.",
            choices=get_args(Size),
        ),
    )
    rank: int = field(
        default=32,
        metadata=setting(
            "Mean rank: the file has the size of a LoRA of this rank in every layer. 32 (default) is what LoRAs "
            "commonly have; the report says what 8, 32 and 128 leave out.",
            minimum=1,
            maximum=1280,
        ),
    )
    error: float = field(
        default=0.1,
        metadata=setting(
            "Largest part of the change's norm to leave out: 0.1 (default) = 10 %, over all layers together. A "
            "change of full rank needs a large file for that.",
            minimum=0.001,
            maximum=0.999,
            step=0.01,
        ),
    )
    size_mb: float = field(
        default=100.0,
        metadata=setting(
            "Largest size of the file in megabytes (a million bytes each). 100 (default) is a common size for SDXL.",
            minimum=0.01,
            maximum=100_000.0,
            step=1.0,
        ),
    )
    strength: float = field(
        default=1.0,
        metadata=setting(
            "How much of the adapter is exported; 1 = as trained (default): strengths in Load LoRA then mean the same.",
            step=0.05,
        ),
    )
    mode: StrengthMode = field(
        default="linear",
        metadata=setting(
            "How strength scales. linear (default): W0 + s (W - W0), as a LoRA itself scales. geodesic: turns the "
            "rotation by s times its angle, which no LoRA loader can do later.",
            choices=get_args(StrengthMode),
            advanced=True,
        ),
    )
    dtype: str = field(
        default="float16",
        metadata=setting(
            "What numbers are stored as. float16 (default): half the size, its rounding is far below what a LoRA "
            "leaves out. float32: for an exact export that is compared to the last digit.",
            choices=tuple(_DTYPES),
            advanced=True,
        ),
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.error >= 1:
            raise SettingsError(f"error must be below 1 (0.1 leaves out 10 %), got {self.error!r}")
        if not math.isfinite(self.strength) or self.strength == 0:
            raise SettingsError(f"strength must be a number other than 0, got {self.strength!r}: 0 changes nothing")
        if self.by == "exact" and self.naming == "diffusers":
            raise SettingsError("diffusers reads no full differences; choose the naming 'comfy' or 'kohya', or a rank")

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]

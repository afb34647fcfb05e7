# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of a training run: one frozen record, checked whole and saved whole."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ..errors import SettingsError
from ..kronecker import FACTORS, factor_presets
from ..spectral import Decomposition
from ..stiefel import Retraction
from ..targets import LAYER_PRESETS

Train = Literal["rotation + shift", "rotation only", "shift only"]
Loss = Literal["mse", "min-snr", "dco"]
Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides the result of a run, given data and base model.

    Learning rates are per optimiser step; the authors' defaults (SDXL, 1000 steps, batch 1) are kept.
    """

    steps: int = 1000
    batch_size: int = 1
    accumulation: int = 1
    rotation_lr: float = 5e-5
    shift_lr: float = 5e-5
    decomposition: Decomposition = "svd"
    train: Train = "rotation + shift"
    shift_knots: int = 16  #: of the curve over the singular values that a shift is (svd); 0: each its own, the paper's
    factor_preset: str = "auto"
    factor_count: int = FACTORS
    layers: str = "attention"
    layer_pattern: str = ""
    loss: Loss = "dco"
    min_snr_gamma: float = 5.0
    dco_beta: float = 1000.0
    prior_weight: float = 1.0
    warmup_steps: int = 0
    schedule: Schedule = "constant"
    gradient_clip: float = 1.0
    retraction: Retraction = "euler"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "factor_count"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        for name in ("rotation_lr", "shift_lr", "gradient_clip", "prior_weight"):
            value = getattr(self, name)
            self._require(name, math.isfinite(value) and value >= 0, "0 or more")
        for name in ("min_snr_gamma", "dco_beta"):
            value = getattr(self, name)
            self._require(name, math.isfinite(value) and value > 0, "above 0")
        self._require("shift_knots", self.shift_knots == 0 or self.shift_knots >= 2, "0, or 2 or more")
        self._require("warmup_steps", 0 <= self.warmup_steps <= self.steps, f"between 0 and steps ({self.steps})")
        choices: dict[str, tuple[str, ...]] = {
            "decomposition": get_args(Decomposition),
            "train": get_args(Train),
            "loss": get_args(Loss),
            "schedule": get_args(Schedule),
            "retraction": get_args(Retraction),
            "factor_preset": factor_presets(),
            "layers": tuple(LAYER_PRESETS),
        }
        for name, allowed in choices.items():
            self._require(name, getattr(self, name) in allowed, f"one of {list(allowed)}")
        if self.layers == "pattern" and not self.layer_pattern.strip():
            raise SettingsError("layers = 'pattern' needs a layer_pattern, for example '*attn2.to_k'")

    def _require(self, name: str, ok: bool, expected: str) -> None:
        if not ok:
            raise SettingsError(f"{name} must be {expected}, got {getattr(self, name)!r}")

    @property
    def rotates(self) -> bool:
        return self.train != "shift only"

    @property
    def shifts(self) -> bool:
        return self.train != "rotation only"

    def shift_size(self, rank: int) -> int:
        """Number of trained values in the shift of a weight of ``rank``; a curve where it is less."""
        return min(self.shift_knots, rank) if self.shift_knots and self.decomposition == "svd" else rank

    def lr_factor(self, step: int) -> float:
        """Multiplier of both learning rates at ``step`` (0-based): linear warm-up, then the schedule."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def as_metadata(self) -> dict[str, Any]:
        return asdict(self)

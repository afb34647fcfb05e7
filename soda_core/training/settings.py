# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of a training run: one frozen record, checked whole and saved whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from .. import kronecker
from ..errors import SettingsError
from ..spectral import Decomposition
from ..stiefel import Retraction
from ..targets import LAYER_PRESETS
from .setting import CONNECTED, Setting, check_settings, setting

Train = Literal["rotation + shift", "rotation only", "shift only"]
Loss = Literal["dco", "mse", "min-snr"]
Schedule = Literal["constant", "cosine"]
Rates = Literal["by hand", "automatic"]
RateUnits = Literal["layer", "entry"]
#: Of rates that do not say theirs: they are from before there was a choice.
UNSAID_UNITS: RateUnits = "entry"


def _learning_rate(what: str) -> dict[str, Setting]:
    return setting(
        f"{what}. Fewer steps need a higher one. Nothing learnt: times three, again and again. Broken pictures: a "
        "third. 0 freezes this part.",
        minimum=0.0,
        maximum=1.0,
        step=1e-6,
        when=("rates", "by hand"),
        exponent=True,
    )


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides the result of a run, given data and base model.

    Learning rates are per optimiser step; the defaults are the authors' (SDXL, 1000 steps, batch 1).

    Args:
        factor_sizes: of the rotations' Kronecker factors by number of inputs, before what ``factor_preset`` says.
    """

    steps: int = field(
        default=1000,
        metadata=setting(
            "Optimiser steps. 1000 is the authors' value for a handful of pictures.",
            minimum=1,
            maximum=1_000_000,
        ),
    )
    batch_size: int = field(
        default=1,
        metadata=setting(
            "Pictures per forward pass. 1 (the authors' value) needs the least memory.",
            minimum=1,
            maximum=1024,
            advanced=True,
        ),
    )
    accumulation: int = field(
        default=1,
        metadata=setting(
            "Batches per optimiser step. Above 1 acts like a larger batch without its memory.",
            minimum=1,
            maximum=1024,
            advanced=True,
        ),
    )
    rotation_lr: float = field(
        default=4e-4,
        metadata=_learning_rate(
            "Learning rate of the rotations: RMS angle in radians that a step turns a layer by, whatever its size and "
            "factors. 4e-4 is the authors' for 1000 steps on SDXL (5e-5 for each entry of a factor, with two factors)"
        ),
    )
    shift_lr: float = field(
        default=5e-5,
        metadata=_learning_rate(
            "Learning rate of the spectral shifts: how far a step goes, relative to the root mean square of the "
            "layer's singular values. 5e-5 is about the authors' for 1000 steps on SDXL"
        ),
    )
    rates: Rates = field(
        default="by hand",
        metadata=setting(
            "by hand (default): the two learning rates as they are set. automatic: both are estimated while training "
            "goes on (Prodigy), from small ones up, and what they came to is in the log and the file; rotation_lr and "
            "shift_lr are not used. cosine suits it.",
            choices=get_args(Rates),
            advanced=True,
        ),
    )
    rate_units: RateUnits = field(
        default="layer",
        metadata=setting(
            "What the learning rates count. layer (default): the angle that a layer turns by, and shifts relative to "
            "its singular values. entry: as in files, workflows and settings from before there was a choice, an entry "
            "of a factor and the shift itself, whose effect depends on the layers' sizes.",
            choices=get_args(RateUnits),
            advanced=True,
        ),
    )
    decomposition: Decomposition = field(
        default="svd",
        metadata=setting(
            "What the shift acts on. svd: singular values (default, the paper's main method). qr: the diagonal of the "
            "triangular factor, two to four times as fast to load.",
            choices=get_args(Decomposition),
        ),
    )
    train: Train = field(
        default="rotation + shift",
        metadata=setting(
            "Which parts to train. Both is SODA (default); 'shift only' is SVDiff.",
            choices=get_args(Train),
            advanced=True,
        ),
    )
    shift_knots: int = field(
        default=16,
        metadata=setting(
            "For svd: the shift is a smooth curve over the singular values with so many knots. 16 (default) also fits "
            "bf16 and fp8 copies of the base model; 0 gives every singular value a shift of its own, as in the paper, "
            "which is partly lost on such copies. qr needs no curve.",
            minimum=0,
            maximum=64,
            when=("decomposition", "svd"),
        ),
    )
    factor_preset: str = field(
        default="auto",
        metadata=setting(
            "Sizes of the Kronecker factors. auto = balanced, for any width (default); large = one of up to 96 rows "
            "and one for the rest, for what auto cannot learn: ten times the parameters in narrow layers (SD 1.5), "
            "hardly more in wide ones, in about the same time; svdiff-size and oft-size are the authors' sets for "
            "SDXL's widths.",
            choices=kronecker.factor_presets(),
            advanced=True,
        ),
    )
    factor_count: int = field(
        default=kronecker.FACTORS,
        metadata=setting(
            "Number of Kronecker factors for factor_preset = auto. 2 (default) learned subjects on the demo's model, "
            "3 (the authors' number, on SDXL) only styles, with fewer parameters and in the same time. 1 is one dense "
            "rotation.",
            minimum=1,
            maximum=8,
            advanced=True,
            when=("factor_preset", "auto"),
        ),
    )
    factor_sizes: Mapping[int, tuple[int, ...]] | None = None
    layers: str = field(
        default="attention",
        metadata=setting(
            f"Which layers to adapt: {'; '.join(f'{name} = {text}' for name, text in LAYER_PRESETS.items())}. "
            "Attention is the paper's choice.",
            choices=tuple(LAYER_PRESETS),
        ),
    )
    layer_pattern: str = field(
        default="",
        metadata=setting(
            "For layers = pattern: wildcards over layer names, several separated by commas, e.g. *attn2.to_k, "
            "*attn2.to_v",
            when=("layers", "pattern"),
        ),
    )
    loss: Loss = field(
        default="dco",
        metadata=setting(
            "dco (default, the authors'): improve on the base model's own loss, and no more; keeps what the base can "
            "do, for a second forward pass a step. mse: plain denoising, follows the pictures most closely. min-snr: "
            "mse with noise levels balanced.",
            choices=get_args(Loss),
        ),
    )
    min_snr_gamma: float = field(
        default=5.0,
        metadata=setting(
            "For min-snr: largest weight of clean noise levels. 5 is the paper's value.",
            minimum=1e-3,
            maximum=1e3,
            step=0.1,
            when=("loss", "min-snr"),
        ),
    )
    dco_beta: float = field(
        default=1000.0,
        metadata=setting(
            "For dco: how sharply improvement over the base is rewarded. 1000 is the authors' value for SDXL. "
            "Learning that soon stops wants a smaller one: 30 was best on the demo's small model.",
            minimum=1e-3,
            maximum=1e6,
            step=1.0,
            when=("loss", "dco"),
        ),
    )
    prior_weight: float = field(
        default=1.0,
        metadata=setting(
            "Weight of the class pictures' loss (prior preservation), relative to the training pictures' own; used "
            "when class_latents are connected. 1 is DreamBooth's value.",
            minimum=0.0,
            maximum=100.0,
            step=0.05,
            when=("class_latents", CONNECTED),
        ),
    )
    warmup_steps: int = field(
        default=0,
        metadata=setting(
            "Steps over which the learning rates rise from zero. 0 (default) suits the small rates; try 20 to 100 "
            "when a run diverges early.",
            minimum=0,
            maximum=1_000_000,
            advanced=True,
        ),
    )
    schedule: Schedule = field(
        default="constant",
        metadata=setting(
            "Learning rates over the run: constant (default, the authors') or cosine down to zero.",
            choices=get_args(Schedule),
            advanced=True,
        ),
    )
    gradient_clip: float = field(
        default=1.0,
        metadata=setting(
            "Largest gradient norm; 1 is the authors' value, 0 turns clipping off.",
            minimum=0.0,
            maximum=1000.0,
            step=0.1,
            advanced=True,
        ),
    )
    retraction: Retraction = field(
        default="euler",
        metadata=setting(
            "How a step stays on the orthogonal group. euler is the authors' and the fastest; results hardly differ.",
            choices=get_args(Retraction),
            advanced=True,
        ),
    )
    seed: int = field(
        default=0,
        metadata=setting(
            "Decides pictures, noise and noise levels of every step, and the preview's noise. The same seed on the "
            "same machine gives the same adapter.",
            minimum=0,
            maximum=0xFFFFFFFFFFFFFFFF,
        ),
    )

    def __post_init__(self) -> None:
        check_settings(self)
        self._require("shift_knots", self.shift_knots != 1, "0, or 2 or more")
        self._require("warmup_steps", self.warmup_steps <= self.steps, f"between 0 and steps ({self.steps})")
        if not self.automatic and not (self.rotates and self.rotation_lr) and not (self.shifts and self.shift_lr):
            raise SettingsError(f"nothing would be trained: with train = {self.train!r} the learning rate is 0")
        for in_features, sizes in (self.factor_sizes or {}).items():
            kronecker.check_sizes(sizes, in_features)
        if self.layers == "pattern" and not self.layer_pattern.strip():
            raise SettingsError("layers = 'pattern' needs a layer_pattern, for example '*attn2.to_k'")

    def _require(self, name: str, ok: bool, expected: str) -> None:
        if not ok:
            raise SettingsError(f"{name} must be {expected}, got {getattr(self, name)!r}")

    @property
    def automatic(self) -> bool:
        """Whether the learning rates are estimated."""
        return self.rates == "automatic"

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
        """Multiplier of the learning rates at ``step`` (0-based): linear warm-up, then the schedule."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def rotation_sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Factor sizes of the rotation of a weight ``(out, in, *kernel)``; none without one.

        Raises:
            SettingsError: see :func:`..kronecker.factor_sizes`.
        """
        if not self.rotates:
            return ()
        in_features = math.prod(shape[1:])
        if self.factor_sizes and in_features in self.factor_sizes:
            return tuple(self.factor_sizes[in_features])
        return kronecker.factor_sizes(in_features, self.factor_preset, self.factor_count)

    @classmethod
    def from_metadata(cls, values: Mapping[str, Any]) -> TrainSettings:
        """From :meth:`as_metadata`, also by way of JSON, which has no numbers as keys and no tuples.

        Units of rates that it does not say are :data:`UNSAID_UNITS`.

        Raises:
            SettingsError: there is a setting that this version does not know.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise SettingsError(f"unknown setting {unknown[0]!r}: it is of another version of the pack; update it")
        sizes = values.get("factor_sizes")
        sizes = sizes and {int(n): tuple(s) for n, s in sizes.items()}
        return cls(**{"rate_units": UNSAID_UNITS, **values, "factor_sizes": sizes})

    def as_metadata(self) -> dict[str, Any]:
        """For JSON; ``factor_sizes`` only where they were given."""
        values = asdict(self)
        if values["factor_sizes"] is None:
            del values["factor_sizes"]
        return values

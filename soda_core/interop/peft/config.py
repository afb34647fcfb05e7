# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of SODA in PEFT; defaults, bounds and meaning are :class:`...training.settings.TrainSettings`'s."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from ...spectral import Decomposition
from ...training.settings import Train, TrainSettings


class SodaPeftType(str, enum.Enum):
    """Stands where PEFT's own methods have a member of ``PeftType``, an enumeration that cannot be added to."""

    SODA = "SODA"


def _help(text: str) -> dict[str, Any]:
    return {"help": text}


@dataclass
class SodaConfig(PeftConfig):
    """What ``get_peft_model`` needs to know; see :class:`.TrainSettings` for the first six.

    Raises:
        SettingsError: a value outside its bounds, with those that are allowed.
    """

    decomposition: Decomposition = field(
        default=TrainSettings.decomposition, metadata=_help("What the shift acts on: 'svd' or 'qr'.")
    )
    train: Train = field(
        default=TrainSettings.train, metadata=_help("'rotation + shift', 'rotation only' or 'shift only'.")
    )
    shift_knots: int = field(
        default=TrainSettings.shift_knots,
        metadata=_help("Knots of the curve over the singular values that an SVD shift is; 0 = each value its own."),
    )
    factor_preset: str = field(
        default=TrainSettings.factor_preset, metadata=_help("Sizes of the Kronecker factors: 'auto', 'large', ...")
    )
    factor_count: int = field(default=TrainSettings.factor_count, metadata=_help("Number of factors for 'auto'."))
    factor_sizes: dict[int, tuple[int, ...]] | None = field(
        default=None, metadata=_help("Sizes by number of inputs (in * kernel), before what factor_preset says.")
    )
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata=_help("Names or endings of the modules to adapt, or a regular expression.")
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata=_help("Names or endings of modules to leave out, or a regular expression.")
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata=_help("Indices of the blocks to adapt, where not all.")
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata=_help("Name of the list of blocks that layers_to_transform counts.")
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata=_help("Modules to train and save whole beside the adapted ones.")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = SodaPeftType.SODA
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if self.factor_sizes is not None:  # JSON knows neither numbers as keys nor tuples
            self.factor_sizes = {int(inputs): tuple(sizes) for inputs, sizes in self.factor_sizes.items()}
        self.settings()

    def settings(self) -> TrainSettings:
        """The same for the core."""
        return TrainSettings(
            decomposition=self.decomposition,
            train=self.train,
            shift_knots=self.shift_knots,
            factor_preset=self.factor_preset,
            factor_count=self.factor_count,
            factor_sizes=self.factor_sizes,
        )

# SPDX-License-Identifier: GPL-3.0-or-later
"""How adapters of the demo's base model are trained, in the demo and where benchmarks want one like the demo's.

Chosen by the first subject and the first style alone; see "How it is set" in ``demo/README.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainingRecipe:
    """How one kind of adapter is trained.

    Args:
        rotation_lr: RMS angle in radians that a step turns a layer by.
        shift_lr: relative to the RMS of a layer's singular values.
        lora_lr: learning rate of the LoRA that it is compared with.
        settings: of the training node, and of the LoRA's training.
    """

    rotation_lr: float
    shift_lr: float
    lora_lr: float
    settings: dict[str, Any]

    def widgets(self, steps: int | None = None) -> dict[str, Any]:
        """Of the training node; ``steps`` instead of the recipe's own."""
        rates = {"rotation_lr": self.rotation_lr, "shift_lr": self.shift_lr}
        return self.settings | rates | ({} if steps is None else {"steps": steps})


#: for a small model and few steps
RECIPES = {
    "subject": TrainingRecipe(
        rotation_lr=4e-2, shift_lr=2.2e-3, lora_lr=2e-3,
        settings={
            "steps": 200, "batch_size": 4, "schedule": "cosine", "loss": "mse",
            "layers": "attention + feed-forward", "factor_preset": "large",
        },
    ),
    "style": TrainingRecipe(
        rotation_lr=5e-2, shift_lr=2.7e-3, lora_lr=2e-3,
        settings={
            "steps": 250, "batch_size": 4, "schedule": "cosine", "loss": "mse",
            "layers": "attention + feed-forward", "factor_preset": "large",
        },
    ),
}  # fmt: skip

# SPDX-License-Identifier: GPL-3.0-or-later
"""All settings of the demo: what is learnt, how each kind of adapter is trained, and what is painted with it.

They are to be chosen by the first subject and the first style alone; the others are trained and merged in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from testbed.world.tasks import STYLE, SUBJECT, Task

#: the first of each alone, or all with ``--all``
SUBJECTS = (SUBJECT, Task("subject", "tropical fish"))
STYLES = (STYLE, Task("style", "thermal camera"))


@dataclass(frozen=True)
class Recipe:
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


#: for a small model and few steps; see "How it is set" in demo/README.md
RECIPES = {
    "subject": Recipe(
        rotation_lr=8e-2, shift_lr=4.5e-3, lora_lr=2e-3,
        settings={
            "steps": 200, "batch_size": 4, "schedule": "cosine", "loss": "mse",
            "layers": "attention + feed-forward", "factor_preset": "large",
        },
    ),
    "style": Recipe(
        rotation_lr=5e-2, shift_lr=2.7e-3, lora_lr=2e-3,
        settings={
            "steps": 250, "batch_size": 4, "schedule": "cosine", "loss": "mse",
            "layers": "attention + feed-forward", "factor_preset": "large",
        },
    ),
}  # fmt: skip
LORA_RANK = 4
MERGE = {"subject_strength": 1.0, "style_strength": 1.0}
#: *simple* has the noise levels at which the base model was looked at while it was trained
SAMPLE: dict[str, Any] = {"steps": 20, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}


@dataclass(frozen=True)
class Scene:
    """A prompt, to which a style adds its own words, and the seed of the noise."""

    text: str
    seed: int


#: what is painted of each subject, on backgrounds that its pictures do not have; then with the styles alone
SCENES = {
    "sunflower": Scene("a sks flower on a sunset background", 5),
    "tropical fish": Scene("a sks fish on a striped background", 21),
}
ANOTHER_CLASS = Scene("a bird on a red background", 11)  #: of which the styles have no picture
STYLE_WORDS = ", in zqx style"

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the demo learns, and what is painted with it; how each kind of adapter is trained is in ``testbed/recipes.py``.

All of it is to be chosen by the first subject and the first style alone; the others are trained and merged in the same
way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from testbed.world.tasks import STYLE, SUBJECT, Task

#: the first of each alone, or all with ``--all``
SUBJECT_TASKS = (SUBJECT, Task("subject", "tropical fish"))
STYLE_TASKS = (STYLE, Task("style", "thermal camera"))

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

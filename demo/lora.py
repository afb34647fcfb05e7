# SPDX-License-Identifier: GPL-3.0-or-later
"""LoRAs to compare with: peft's layers in the pack's own training loop, so that only the method differs."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from demo.settings import LORA_RANK
from testbed.bed import TestBed
from testbed.methods import Method
from testbed.recipes import RECIPES
from testbed.world.tasks import Task

EVERY_LAYER = [""]  #: of those that the run adapts: all names end with nothing
LORA = Method("LoRA", "large", peft=lambda: [(EVERY_LAYER, LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK))])


def train_lora(bed: TestBed, task: Task, file: Path, steps: int | None = None) -> None:
    """Write a LoRA of a task's pictures, multiplied out, as the host's own LoRA loaders read it.

    Args:
        steps: instead of the recipe's own.
    """
    from testbed.training import train_method  # needs the host, which the test bed has imported

    recipe = RECIPES[task.kind]
    settings = recipe.settings | ({} if steps is None else {"steps": steps})
    with torch.inference_mode(False):
        trained = train_method(bed.patcher, bed.training_data(task), LORA, recipe.lora_lr, **settings, seed=0)
    save_file({f"{name}.diff": delta.half().contiguous() for name, delta in trained.deltas.items()}, file)

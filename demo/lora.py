# SPDX-License-Identifier: GPL-3.0-or-later
"""LoRAs to compare with: peft's layers in the pack's own training loop, so that only the method differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from testbed.bed import TestBed
from testbed.methods import Method
from testbed.world.tasks import Task

RANK = 4
EVERY_LAYER = [""]  #: of those that the run adapts: all names end with nothing
LORA = Method("LoRA", "large", peft=lambda: [(EVERY_LAYER, LoraConfig(r=RANK, lora_alpha=RANK))])


def train_lora(bed: TestBed, task: Task, file: Path, lr: float, **settings: Any) -> None:
    """Write a LoRA of a task's pictures, multiplied out, as the host's own LoRA loaders read it.

    Args:
        settings: of the pack's training, see :class:`~soda_core.training.settings.TrainSettings`.
    """
    from testbed.training import train_method  # needs the host, which the bed has imported

    with torch.inference_mode(False):
        trained = train_method(bed.patcher, bed.training_data(task), LORA, lr, **settings)
    save_file({f"{name}.diff": delta.half().contiguous() for name, delta in trained.deltas.items()}, file)

# SPDX-License-Identifier: GPL-3.0-or-later
"""peft's layers in the pack's training loop: what the demo and the benchmarks compare with."""

from __future__ import annotations

import pytest
import torch

from testbed.methods import METHODS, Method, lora_rank_4

from .conftest import conditioning, latents

pytestmark = pytest.mark.host
PRESET = "sd15-min"
KINDS = {"peft": Method("LoRA", "large", peft=lora_rank_4), "ours": METHODS["SODA-SVD curve-large"]}


@pytest.mark.parametrize("kind", KINDS)
def test_both_kinds_train_and_give_their_changes(host, kind) -> None:
    from soda_core.host.training import TrainingData
    from testbed.training import train_method  # imports the host

    method, model = KINDS[kind], host.model(PRESET)
    with torch.inference_mode():
        data = TrainingData([latents(model)], [conditioning(PRESET)])
    trained = train_method(model, data, method, 1e-2, steps=3, loss="mse", seed=0)
    shapes = {name: tuple(delta.shape) for name, delta in trained.deltas.items()}
    assert len(shapes) == 8 and trained.params > 0 and all(bool(delta.any()) for delta in trained.deltas.values())
    assert (trained.adapter is None) == (kind == "peft")

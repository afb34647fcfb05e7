# SPDX-License-Identifier: GPL-3.0-or-later
"""Models of several families in the host, and adapters trained on them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from testbed.paths import ROOT

FAMILIES = {"sd15-min": (768, 0), "sdxl-koala-min": (2048, 1280), "sd3-d2": (4096, 2048)}
#: and some that few tests are run with
OTHERS = {"flux-d1": (4096, 768), "demo": (4096, 2048)}


def conditioning(preset: str, seed: int = 0):
    """A CONDITIONING of the family's shapes."""
    width, pooled = (FAMILIES | OTHERS)[preset]
    g = torch.Generator().manual_seed(seed)
    options = {"pooled_output": torch.randn(1, pooled, generator=g)} if pooled else {}
    return [[torch.randn(1, 77, width, generator=g), options]]


def latents(model, count: int = 2, size: int = 8, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return {"samples": torch.randn(count, model.model.latent_format.latent_channels, size, size, generator=g)}


def in_words(state: dict[str, Any]) -> str:
    """The note of a training's state as an English front end shows it, where there are words for it."""
    words = json.loads((ROOT / "locales" / "en" / "main.json").read_text("utf-8"))["soda"]
    key = state["note_words"].get("key")
    return words[key].format(**state["note_words"]) if key else state["note"]


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request, host):
    """A family's model, and an adapter trained on it for a few steps with everything on."""
    preset = request.param
    return make_family(host, preset)


def make_family(host, preset: str, **overrides):
    model = host.model(preset)
    training, settings = host.core("host.training"), host.core("training.settings")
    # A linear of every kind and, for the UNets, convolutions too would be slow; attention is what users train.
    chosen = settings.TrainSettings(
        **{"steps": 3, "rotation_lr": 0.02, "shift_lr": 0.02, "loss": "mse", "seed": 5} | overrides
    )
    with torch.inference_mode():
        data = training.TrainingData([latents(model)], [conditioning(preset)])
        result = training.train_in_graph(model, data, chosen, training.RunOptions(filename_prefix=f"t/{preset}"))
    return SimpleNamespace(
        preset=preset, model=model, result=result, adapter=result.adapter, data=data, settings=chosen
    )

# SPDX-License-Identifier: GPL-3.0-or-later
"""What training says it needs is what a real step then takes."""

from __future__ import annotations

import logging
from contextlib import ExitStack

import pytest
import torch

from .conftest import FAMILIES, conditioning, latents

pytestmark = pytest.mark.host


@pytest.fixture
def run(host):
    """``run(model, preset, ...)``: a run that is ready for its first step; ``prior`` are sizes of class pictures."""
    training, sessions = host.core("host.training.run"), host.core("host.training.session")
    config = host.core("training.settings")

    def prepared(model, preset: str, checkpointing: bool = False, prior: tuple[int, ...] = (), dtype: str = "fp32",
                 **settings):  # fmt: skip
        given = [latents(model)], [conditioning(preset)]
        own = (
            {"class_latents": [latents(model, 1, size) for size in prior], "class_positive": given[1]} if prior else {}
        )
        session = sessions.TrainingSession.open(model, config.TrainSettings(**settings), dtype, checkpointing)
        data = training.TrainingData(*given, **own)
        return training.Run(opened.enter_context(session), data, training.RunOptions())

    with ExitStack() as opened:
        yield prepared


def real_peak(host, run) -> int:
    """Of a step with real tensors."""
    trainable = run.trainable
    with host.core("training.memory").TensorBytes() as made:
        trainable.begin_step()
        losses = run.objective.batch_loss(torch.Generator().manual_seed(0))
        torch.autograd.grad(losses.objective, list(trainable.parameters()))
    return made.peak


CASES = [
    *((preset, {"loss": "mse"}) for preset in FAMILIES),
    ("sd15-min", {"loss": "dco", "decomposition": "qr", "batch_size": 2}),
    ("sd15-min", {"train": "rotation only", "checkpointing": True}),
    ("sd15-min", {"loss": "min-snr", "prior": (8, 8)}),
    ("sd15-min", {"layers": "attention + feed-forward", "shift_knots": 0}),
    ("sd15-min", {"dtype": "bf16"}),
]


@pytest.mark.parametrize(("preset", "settings"), CASES, ids=str)
def test_the_estimate_is_what_a_real_step_takes(host, run, preset, settings) -> None:
    ready = run(host.model(preset), preset, **settings)
    real = real_peak(host, ready)
    assert real > 0
    assert abs(ready.memory()["a step"] / real - 1) < 0.02
    assert real_peak(host, ready) == real, "the estimate left something behind"


def test_the_largest_pictures_of_a_set_count(host, run) -> None:
    small, mixed, large = (
        run(host.model("sd15-min"), "sd15-min", prior=sizes).memory()["a step"]
        for sizes in ((8, 8, 8), (8, 8, 16), (16, 16, 16))
    )
    assert small < mixed == large


def test_checkpointing_is_seen(host, run) -> None:
    model = host.model("sd15-1")
    plain, checkpointed = (run(model, "sd15-min", checkpointing=on).memory()["a step"] for on in (False, True))
    assert checkpointed < 0.7 * plain


def test_too_little_memory_is_said_before_the_first_step(host, run, monkeypatch, caplog) -> None:
    monkeypatch.setattr(host.core("host.training.run"), "needs", lambda *_: {"a step": 2**60})
    with caplog.at_level(logging.WARNING):
        run(host.model("sd15-min"), "sd15-min")
    (warning,) = [r.message for r in caplog.records if r.message.startswith("SODA")]
    assert "gradient_checkpointing" in warning and "MiB are free" in warning

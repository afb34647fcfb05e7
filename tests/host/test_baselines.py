# SPDX-License-Identifier: GPL-3.0-or-later
"""peft's layers in the pack's training loop: what the demo and the benchmarks compare with."""

from __future__ import annotations

import pytest
import torch

from testbed.methods import METHODS, Method, lora_rank_4

from .conftest import conditioning, latents

pytestmark = pytest.mark.host
PRESET = "demo"
OURS = METHODS["SODA-SVD curve-large"]
KINDS = {
    "peft": Method("LoRA", "large", peft=lora_rank_4),
    "ours": OURS,
}


def train(host, method, **settings):
    from soda_core.host.training import TrainingData
    from testbed.training import train_method  # imports the host

    model = host.model(PRESET)
    with torch.inference_mode():
        data = TrainingData([latents(model)], [conditioning(PRESET)])
    return train_method(model, data, method, 1e-2, steps=3, seed=0, **settings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["mse", "dco"])
def test_every_kind_trains_and_gives_its_changes(host, kind, loss) -> None:
    trained = train(host, KINDS[kind], loss=loss)
    shapes = {name: tuple(delta.shape) for name, delta in trained.deltas.items()}
    assert len(shapes) == 15 and trained.params > 0 and all(bool(delta.any()) for delta in trained.deltas.values())
    assert (trained.adapter is None) == (kind == "peft")
    if loss == "dco":  # nothing is trained yet, and the base model is the other one: β (loss - loss) = 0
        assert trained.losses != train(host, KINDS[kind], loss="mse").losses


def test_peft_layers_can_be_disabled_within_a_step(host) -> None:
    from soda_core.host.training import TrainingData
    from soda_core.host.training.session import TrainingSession
    from soda_core.training.settings import TrainSettings
    from testbed.training import MethodTraining

    model = host.model(PRESET)
    data = TrainingData([latents(model)], [conditioning(PRESET)])
    with (
        torch.inference_mode(),
        TrainingSession.open(model, TrainSettings(steps=2, shift_lr=0.1, loss="mse")) as session,
    ):
        training = MethodTraining(session, data, KINDS["peft"])
        example, sigma = training.objective.examples.pictures.groups[0][0], torch.tensor([0.7])

        def predict():
            return session.denoise(example.latent, sigma, [example.conds])

        base = predict().detach()
        training.train()
        adapted = predict()
        with torch.no_grad(), training.layers.trainable.disabled():
            again = predict()
        assert torch.equal(again, base) and not torch.allclose(adapted, base, atol=1e-4)
        gradients = torch.autograd.grad(adapted.sum(), list(training.layers.trainable.parameters()))
        assert all(bool(g.any()) for g in gradients)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What a learning rate is: how far one step goes, whatever the layer; and rates from before there were units."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import reduce

import pytest
import torch

from soda_core.cli import settings_file
from soda_core.linalg import rotation_angles
from soda_core.spectral import decompose
from soda_core.training.loop import Losses, Progress, train
from soda_core.training.settings import TrainSettings
from soda_core.training.trainable import TrainableAdapter

#: Two, three and one factors; wide, narrow, and a convolution; weights of different sizes.
SHAPES = {"a": (40, 24), "b": (16, 120), "c": (12, 8, 3, 3), "d": (30, 64)}
FACTORS = {24: (4, 6), 120: (4, 5, 6), 72: (72,), 64: (2, 4, 8)}
SIZES = {"a": 0.1, "b": 1.0, "c": 3.0, "d": 40.0}
SETTINGS = TrainSettings(
    steps=1, rotation_lr=3e-3, shift_lr=2e-3, loss="mse", shift_knots=0, gradient_clip=0.0, factor_sizes=FACTORS
)


def weights() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {name: SIZES[name] * torch.randn(shape, generator=g) for name, shape in SHAPES.items()}


def after_a_step(settings: TrainSettings) -> TrainableAdapter:
    spectra = {name: decompose(W, settings.decomposition) for name, W in weights().items()}
    trainable = TrainableAdapter(SHAPES, settings, spectra)
    g = torch.Generator().manual_seed(1)
    directions = {name: torch.randn(shape, generator=g) for name, shape in SHAPES.items()}

    def batch_loss(generator: torch.Generator) -> Losses:
        total = sum((layer.weight(weights()[n]) * directions[n]).sum() for n, layer in trainable.layers.items())
        return Losses(total, total.detach())

    train(trainable, settings, batch_loss, lambda progress: None, Progress())
    trainable.begin_step()
    return trainable


def rms_angle(factors: list[torch.Tensor]) -> float:
    return float(rotation_angles(reduce(torch.kron, [R.detach().double() for R in factors])).square().mean().sqrt())


@pytest.mark.parametrize("retraction", ["euler", "cayley", "exp"])
def test_a_step_turns_every_layer_by_the_rate(retraction) -> None:
    trainable = after_a_step(replace(SETTINGS, retraction=retraction))
    for name, layer in trainable.layers.items():
        assert rms_angle(layer.factors) == pytest.approx(3e-3, rel=2e-3), name


@pytest.mark.parametrize(("decomposition", "knots"), [("svd", 0), ("svd", 5), ("qr", 0)])
def test_a_step_shifts_by_the_rate_times_the_singular_values(decomposition, knots) -> None:
    trainable = after_a_step(replace(SETTINGS, decomposition=decomposition, shift_knots=knots))
    for name, W in weights().items():
        rms = float(torch.linalg.svdvals(W.flatten(1).double()).square().mean().sqrt())
        layer = trainable.layers[name]
        values = (layer.heights if knots else layer.shift).detach().abs()
        moved = values[values > 0]  # no singular value is near the lowest knots of some curves
        assert len(moved) >= (len(values) / 2 if knots else len(values)), name
        torch.testing.assert_close(moved, torch.full_like(moved, 2e-3 * rms), rtol=2e-3, atol=0)


def test_rates_by_entry_are_those_of_before() -> None:
    trainable = after_a_step(replace(SETTINGS, rate_units="entry", rotation_lr=1e-4))
    for layer in trainable.layers.values():
        for R in layer.factors:
            off = R.detach().abs()[~torch.eye(len(R), dtype=torch.bool)]
            torch.testing.assert_close(off, torch.full_like(off, 1e-4), rtol=1e-2, atol=0)
        torch.testing.assert_close(layer.shift.detach().abs(), torch.full_like(layer.shift, 2e-3), rtol=1e-3, atol=0)


def test_a_weight_of_zeros_is_shifted_as_it_is() -> None:
    spectrum = decompose(torch.zeros(6, 8), "svd")
    settings = replace(SETTINGS, train="shift only")
    trainable = TrainableAdapter({"z": (6, 8)}, settings, {"z": spectrum})
    trainable.shifts.grad = torch.ones_like(trainable.shifts)
    for optimizer in trainable.optimizers().values():
        optimizer.step()
    torch.testing.assert_close(trainable.shifts.detach(), torch.full((6,), -2e-3), rtol=1e-3, atol=0)


def test_settings_that_do_not_say_their_units_are_from_before() -> None:
    said = json.loads(json.dumps(TrainSettings(rotation_lr=1e-2).as_metadata()))
    assert TrainSettings.from_metadata(said).rate_units == said.pop("rate_units") == "layer"
    assert TrainSettings.from_metadata(said).rate_units == "entry"


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("rotation_lr = 1e-2", "entry"),
        ("shift_lr = 1e-2", "entry"),
        ('rotation_lr = 1e-2\nrate_units = "layer"', "layer"),
        ("steps = 3", None),
    ],
)
def test_a_file_of_settings_that_does_not_say_its_units(tmp_path, text, units) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    assert settings_file.read(path).get("rate_units") == units

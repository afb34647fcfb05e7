# SPDX-License-Identifier: GPL-3.0-or-later
"""Automatic rates: the estimate against its formulas in float64, and what it finds where the answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from soda_core.errors import TrainingError
from soda_core.kronecker import rotate
from soda_core.linalg import rotation_angles
from soda_core.spectral import decompose
from soda_core.stiefel import StiefelAdam
from soda_core.training.adam import ScaledAdamW
from soda_core.training.loop import Losses, Progress, TrainingLoop, train
from soda_core.training.optimizers import SMALLEST
from soda_core.training.prodigy import Prodigy, of_rotations, of_vectors
from soda_core.training.settings import TrainSettings
from soda_core.training.trainable import TrainableAdapter

from .conftest import random_rotation

BETA = 0.999**0.5


def by_the_formulas(vectors: bool, start, units, gradients, d: float, lrs) -> tuple[list, list[float]]:
    """Prodigy around AdamW or Stiefel Adam, written down again with numpy; all parameters, and d, after every step."""
    x, x0, b1, b2, eps = [p.copy() for p in start], start, 0.9, 0.999 if vectors else 0.99, 1e-8 if vectors else 1e-5
    m, v, s, r = ([np.zeros_like(p) for p in x] for _ in range(3)), None, None, 0.0
    m, v, s = m
    ways, distances = [], []
    for t, (gs, lr) in enumerate(zip(gradients, lrs, strict=True), 1):
        before, seen = [p.copy() for p in x], []
        for i, G in enumerate(gs):
            g = G if vectors else np.swapaxes(x[i], -1, -2) @ G - np.swapaxes(G, -1, -2) @ x[i]
            m[i], v[i] = b1 * m[i] + (1 - b1) * g, b2 * v[i] + (1 - b2) * g * g
            unit = units[i] if vectors else units[i][:, None, None]
            step = -lr * d * unit * (m[i] / (1 - b1**t)) / (np.sqrt(v[i] / (1 - b2**t)) + eps)
            if vectors:
                x[i] = x[i] * (1 - unit * lr * d * 0.01) + step
                way = (before[i] - x0[i]) / unit
            else:
                U, _, Vh = np.linalg.svd(x[i] @ (np.eye(x[i].shape[-1]) + step))
                x[i] = U @ Vh
                turned = np.swapaxes(x0[i], -1, -2) @ before[i]
                way = (turned - np.swapaxes(turned, -1, -2)) / 2 / unit
            seen.append((unit * g, way))
        r = BETA * r - lr * d * d * sum((g * way).sum() for g, way in seen)
        s = [BETA * s_i + lr * d * d * g for s_i, (g, _) in zip(s, seen, strict=True)]
        d = max(d, 2 * r / sum(np.abs(s_i).sum() for s_i in s))
        ways.append([p.copy() for p in x])
        distances.append(d)
    return ways, distances


@pytest.mark.parametrize("vectors", [True, False])
def test_it_is_what_its_formulas_say(vectors) -> None:
    g = torch.Generator().manual_seed(0)
    shapes = [(7,), (4,)] if vectors else [(3, 4, 4), (2, 5, 5)]
    start = [
        torch.randn(shape, generator=g, dtype=torch.float64)
        if vectors
        else torch.stack([random_rotation(shape[-1], 0.3, seed=i).double() for i in range(shape[0])])
        for shape in shapes
    ]
    if not vectors:  # to float64's last digit
        start = [torch.linalg.svd(p)[0] @ torch.linalg.svd(p)[2] for p in start]
    units = [0.1 + torch.rand(shape if vectors else shape[:1], generator=g, dtype=torch.float64) for shape in shapes]
    steady = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]
    gradients = [[a + 0.3 * torch.randn(a.shape, generator=g, dtype=torch.float64) for a in steady] for _ in range(40)]
    lrs = [1.0] * 20 + [0.5] * 20

    parameters = [torch.nn.Parameter(p.clone()) for p in start]
    if vectors:
        inner = ScaledAdamW(parameters, 1.0, units)
    else:
        inner = StiefelAdam([{"params": [p], "scale": u} for p, u in zip(parameters, units, strict=True)], 1.0)
    optimizer = Prodigy(inner, of_vectors if vectors else of_rotations, units, 1e-3, coefficient=2.0)
    expected, distances = by_the_formulas(
        vectors, [p.numpy() for p in start], [u.numpy() for u in units],
        [[p.numpy() for p in gs] for gs in gradients], 1e-3, lrs,
    )  # fmt: skip
    for gs, lr, ways, d in zip(gradients, lrs, expected, distances, strict=True):
        for p, gradient in zip(parameters, gs, strict=True):
            p.grad = gradient.clone()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        assert all(group["lr"] == lr for group in optimizer.param_groups)
        assert optimizer.distance == pytest.approx(d, rel=1e-9)
        for p, way in zip(parameters, ways, strict=True):
            torch.testing.assert_close(p.detach(), torch.from_numpy(way), rtol=1e-7, atol=1e-9)
    assert distances[-1] > 20e-3, "steady gradients raise it"


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("angle", [0.003, 0.03, 0.3])
def test_a_rotation_is_found_however_far_it_is(angle, noise) -> None:
    """From steps of a millionth of a radian; the estimate ends near the way there."""
    target = random_rotation(8, angle)
    X, unit = torch.nn.Parameter(torch.eye(8)[None]), torch.tensor([1 / 7**0.5])
    optimizer = Prodigy(StiefelAdam([{"params": [X], "scale": unit}], 1.0), of_rotations, [unit], 1e-6)
    g, steps, far = torch.Generator().manual_seed(0), 400, float(rotation_angles(target).square().mean().sqrt())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * (1 + np.cos(np.pi * step / steps))
        optimizer.zero_grad()
        (X - target).square().sum().backward()
        X.grad += noise * far * torch.randn(1, 8, 8, generator=g) / 8
        optimizer.step()
    left = float(rotation_angles(X.detach()[0].mT @ target).square().mean().sqrt())
    assert left < 0.1 * far
    assert 0.02 * far < optimizer.distance < 2 * far


SETTINGS = TrainSettings(steps=60, rates="automatic", loss="mse", schedule="cosine", shift_knots=0, seed=2)


def trained(settings: TrainSettings, size: float = 1.0, width: int = 24, loss: float = 1.0) -> TrainingLoop:
    """Weights of some size, and those that they are to become."""
    g = torch.Generator().manual_seed(0)
    W = size * torch.randn(30, width, generator=g)
    factors = [random_rotation(k, 0.3, seed=k) for k in settings.rotation_sizes(tuple(W.shape))]
    spectrum = decompose(W, "svd")
    target = rotate(W + spectrum.delta(0.1 * spectrum.rms * torch.randn(spectrum.rank, generator=g)), factors)
    trainable = TrainableAdapter({"a": tuple(W.shape)}, settings, {"a": decompose(W, settings.decomposition)})

    def batch_loss(generator: torch.Generator) -> Losses:
        total = loss * (trainable.layers["a"].weight(W) - target).square().sum() / size**2
        return Losses(total, total.detach())

    loop = TrainingLoop(trainable, settings, Progress())
    loop.run(batch_loss, lambda progress: None)
    return loop


def test_neither_the_size_of_weights_nor_of_the_loss_matters() -> None:
    settings = replace(SETTINGS, gradient_clip=0.0)
    known = trained(settings).estimates()
    assert known.keys() == {"rotation", "shift"}
    for other in (trained(settings, size=32.0), trained(settings, loss=256.0)):
        assert other.estimates() == pytest.approx(known, rel=0.02)


@pytest.mark.parametrize("sizes", [(24,), (4, 6), (2, 3, 4)])
def test_the_loss_falls_whatever_the_factors_are(sizes) -> None:
    loop = trained(replace(SETTINGS, factor_sizes={24: sizes}))
    assert loop.progress.losses[-1] < 0.7 * loop.progress.losses[0]
    assert loop.estimates()["rotation"] > 10 * SMALLEST["rotation"]


def test_it_says_the_rates_it_takes_and_what_it_came_to() -> None:
    settings, told = replace(SETTINGS, steps=30, rotation_lr=0.0, shift_lr=0.0), []
    g = torch.Generator().manual_seed(0)
    W, direction = torch.randn(2, 12, 16, generator=g)
    trainable = TrainableAdapter({"a": (12, 16)}, settings, {"a": decompose(W, "svd")})

    def batch_loss(generator: torch.Generator) -> Losses:
        total = (trainable.layers["a"].weight(W) * direction).sum()
        return Losses(total, total.detach())

    loop = TrainingLoop(trainable, settings, Progress())
    assert loop.progress.rates == pytest.approx(SMALLEST)
    loop.run(batch_loss, lambda progress: told.append((dict(progress.rates), progress.learning_rates[-1])))
    assert told[0] == (pytest.approx(SMALLEST), pytest.approx(SMALLEST["rotation"]))
    assert all(rates["rotation"] == pytest.approx(rate) for rates, rate in told)
    found, largest = loop.estimates(), {part: max(rates[part] for rates, _ in told) for part in SMALLEST}
    assert all(SMALLEST[part] < largest[part] <= found[part] for part in SMALLEST)
    trainable.settings = TrainSettings()
    assert TrainingLoop(trainable, trainable.settings, Progress()).estimates() == {}, "they are set by hand"


def test_a_run_that_diverges_names_its_rates() -> None:
    W = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    trainable = TrainableAdapter({"a": (8, 6)}, SETTINGS, {"a": decompose(W, "svd")})
    steps = iter(range(100))

    def batch_loss(generator: torch.Generator) -> Losses:
        total = trainable.layers["a"].weight(W).square().sum() * (torch.nan if next(steps) == 3 else 1.0)
        return Losses(total, total.detach())

    with pytest.raises(TrainingError, match=r"Set rates by hand, lower than these \(rotation .*, shift "):
        train(trainable, SETTINGS, batch_loss, lambda progress: None, Progress())

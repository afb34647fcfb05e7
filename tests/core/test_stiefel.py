# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
import torch

from soda_core import StiefelAdam
from soda_core.errors import SettingsError, ShapeError
from soda_core.linalg import orthogonality_residual

from .conftest import random_rotation

RETRACTIONS = ["euler", "cayley", "exp"]


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("lr", [5e-5, 1e-2, 0.5])
def test_stays_on_the_manifold(retraction, lr) -> None:
    X = torch.nn.Parameter(torch.eye(12).repeat(4, 1, 1))
    optimizer = StiefelAdam([X], lr=lr, retraction=retraction)
    g = torch.Generator().manual_seed(0)
    for _ in range(300):
        X.grad = torch.randn(X.shape, generator=g)
        optimizer.step()
    assert orthogonality_residual(X) < 1e-5


@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_errors_do_not_add_up(retraction) -> None:
    X = torch.nn.Parameter(torch.eye(12).repeat(2, 1, 1))
    optimizer = StiefelAdam([X], lr=1e-2, retraction=retraction)
    g = torch.Generator().manual_seed(0)
    for _ in range(10_000):
        X.grad = torch.randn(X.shape, generator=g)
        optimizer.step()
    assert orthogonality_residual(X) < 1e-5


@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_finds_a_planted_rotation(retraction) -> None:
    target = random_rotation(8, 0.5)
    X = torch.nn.Parameter(torch.eye(8))
    optimizer = StiefelAdam([X], lr=0.02, retraction=retraction)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 400)
        optimizer.zero_grad()
        (X - target).square().sum().backward()
        optimizer.step()
    assert (X.detach() - target).abs().max() < 1e-3
    assert (torch.eye(8) - target).abs().max() > 0.1


def test_batched_and_separate_parameters_agree() -> None:
    """One stack, separate matrices and a stack among separate ones take the same steps."""
    g = torch.Generator().manual_seed(1)
    gradients = torch.randn(20, 5, 6, 6, generator=g)
    stack = torch.nn.Parameter(torch.eye(6).repeat(5, 1, 1))
    single = [torch.nn.Parameter(torch.eye(6)) for _ in range(5)]
    mixed = [torch.nn.Parameter(torch.eye(6).repeat(3, 1, 1)), *[torch.nn.Parameter(torch.eye(6)) for _ in range(2)]]
    optimizers = [StiefelAdam(params, lr=0.01) for params in ([stack], single, mixed)]
    for G in gradients:
        stack.grad = G.clone()
        for X, part in zip(single, G, strict=True):
            X.grad = part.clone()
        mixed[0].grad, mixed[1].grad, mixed[2].grad = G[:3].clone(), G[3].clone(), G[4].clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(torch.stack(list(single)), stack, atol=1e-7, rtol=0)
    torch.testing.assert_close(torch.cat([mixed[0], torch.stack(mixed[1:])]), stack, atol=1e-7, rtol=0)


def test_state_round_trip_continues_exactly() -> None:
    def steps(optimizer, X, seeds):
        for seed in seeds:
            X.grad = torch.randn(X.shape, generator=torch.Generator().manual_seed(seed))
            optimizer.step()

    straight = torch.nn.Parameter(torch.eye(5))
    steps(StiefelAdam([straight], lr=0.01), straight, range(6))
    first = torch.nn.Parameter(torch.eye(5))
    optimizer = StiefelAdam([first], lr=0.01)
    steps(optimizer, first, range(3))
    second = torch.nn.Parameter(first.detach().clone())
    resumed = StiefelAdam([second], lr=0.01)
    resumed.load_state_dict(optimizer.state_dict())
    steps(resumed, second, range(3, 6))
    assert torch.equal(second, straight)


def test_parameters_without_gradient_rest() -> None:
    moved, rests = torch.nn.Parameter(torch.eye(4)), torch.nn.Parameter(torch.eye(4))
    moved.grad = torch.randn(4, 4)
    StiefelAdam([moved, rests], lr=0.1).step()
    assert torch.equal(rests, torch.eye(4)) and not torch.equal(moved, torch.eye(4))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"lr": -1.0}, "learning rate"),
        ({"lr": 0.1, "betas": (0.9, 1.0)}, "betas"),
        ({"lr": 0.1, "retraction": "qr"}, "retraction"),
    ],
)
def test_bad_settings_are_refused(arguments, match) -> None:
    with pytest.raises(SettingsError, match=match):
        StiefelAdam([torch.nn.Parameter(torch.eye(3))], **arguments)


def test_a_matrix_that_is_not_square_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(3, 4\)"):
        StiefelAdam([torch.nn.Parameter(torch.zeros(3, 4))], lr=0.1)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The published code's numbers. Tolerances: the distance a float64 evaluation has from them, rounded up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from soda_core import SodaAdapter, SodaLayer, StiefelAdam, losses, merge

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "golden.safetensors")
CASES = range(6)
WIDE = (3, 4)  # 320 rows, where float32 resolves near-equal singular values to 2e-5 only
RETRACTIONS = {"euler": "ForwardEuler", "cayley": "Cayley", "exp": "MatrixExp"}


def case(n: int, prefix: str = "") -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """``W0``, factors, shift."""
    factors = [GOLDEN[k] for k in sorted(k for k in GOLDEN if k.startswith(f"case{n}.{prefix}R"))]
    return GOLDEN[f"case{n}.W0"], factors, GOLDEN[f"case{n}.{prefix}shift"]


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def svd_tolerance(n: int) -> float:
    return 2e-5 if n in WIDE else 2.5e-6


@pytest.mark.parametrize("n", CASES)
def test_svd_weight(n: int) -> None:
    W0, factors, shift = case(n)
    W = SodaLayer("svd", factors, shift).adapt(W0)
    assert distance(W, GOLDEN[f"case{n}.W_svd"]) < svd_tolerance(n)
    assert distance(W0, GOLDEN[f"case{n}.W_svd"]) > 0.01, "the base itself must not pass"


@pytest.mark.parametrize("n", [n for n in CASES if f"case{n}.W_qr" in GOLDEN])
def test_qr_weight(n: int) -> None:
    W0, factors, _ = case(n)
    W = SodaLayer("qr", factors, GOLDEN[f"case{n}.shift_qr_canonical"]).adapt(W0)
    assert distance(W, GOLDEN[f"case{n}.W_qr"]) < 7e-7


@pytest.mark.parametrize("n", CASES)
def test_delta_merge(n: int) -> None:
    W0, factors, shift = case(n)
    _, style_factors, style_shift = case(n, "style.")
    subject = SodaAdapter({"x": SodaLayer("svd", factors, shift)})
    style = SodaAdapter({"x": SodaLayer("svd", style_factors, style_shift)})
    W = merge(subject, style, 0.8, 0.6).adapt("x", W0)
    assert distance(W, GOLDEN[f"case{n}.W_merge_0.8_0.6"]) < svd_tolerance(n)


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("k", [8, 20])
def test_stiefel_adam(k: int, retraction: str) -> None:
    A = GOLDEN[f"stiefel.{k}.A"]
    X = torch.nn.Parameter(torch.eye(k))
    optimizer = StiefelAdam([X], lr=0.02, betas=(0.9, 0.99), eps=1e-5, retraction=retraction)
    compared = 0
    for step in range(1, 61):
        X.grad = (X - A).detach()
        optimizer.step()
        key = f"stiefel.{k}.{RETRACTIONS[retraction]}.X{step}"
        if key in GOLDEN:
            compared += 1
            assert distance(X.detach(), GOLDEN[key]) < 5e-7, f"step {step}"
    assert compared == 4


@pytest.mark.parametrize("beta", [1000, 5])
def test_dco(beta: int) -> None:
    found = losses.dco(GOLDEN["dco.loss_model"], GOLDEN["dco.loss_reference"], beta=float(beta))
    torch.testing.assert_close(found, GOLDEN[f"dco.beta{beta}"])

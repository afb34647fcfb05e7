# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math

import pytest
import torch

from soda_core import linalg
from soda_core.errors import ManifoldError, SettingsError, ShapeError
from soda_core.kronecker import FACTOR_PRESETS, LARGEST_DENSE_FACTOR, factor_sizes, geodesic_power, rotate, unrotate
from soda_core.linalg import (
    canonical_lq,
    check_orthogonal,
    orthogonal_log,
    orthogonality_residual,
    rotation_angles,
    skew_exp,
    thin_svd,
)

from .conftest import random_rotation

SHAPES = [(30, 30), (20, 50), (50, 20), (1, 7), (7, 1)]


def spectrum_weight(shape: tuple[int, int], kind: str) -> torch.Tensor:
    g = torch.Generator().manual_seed(3)
    U, _ = torch.linalg.qr(torch.randn(shape[0], min(shape), generator=g, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(shape[1], min(shape), generator=g, dtype=torch.float64))
    i = torch.arange(min(shape), dtype=torch.float64)
    S = {"decay": 0.7**i, "equal": torch.ones_like(i), "rank-deficient": (i < 1 + min(shape) // 2).double()}[kind]
    return ((U * S) @ V.T).float()


@pytest.mark.parametrize("kind", ["decay", "equal", "rank-deficient"])
@pytest.mark.parametrize("shape", SHAPES)
def test_svd_reconstructs_with_orthonormal_bases(shape, kind) -> None:
    W = spectrum_weight(shape, kind)
    U, S, Vh = thin_svd(W)
    torch.testing.assert_close((U * S) @ Vh, W, atol=2e-6, rtol=0)
    assert (S >= 0).all() and (S[:-1] >= S[1:]).all()
    assert orthogonality_residual(U.mT @ U if U.shape[0] >= U.shape[1] else U) < 1e-5
    eye = torch.eye(len(S))
    torch.testing.assert_close(U.mT @ U, eye, atol=2e-6, rtol=0)
    torch.testing.assert_close(Vh @ Vh.mT, eye, atol=2e-6, rtol=0)
    torch.testing.assert_close(S, torch.linalg.svdvals(W), atol=2e-6, rtol=0)


@pytest.mark.parametrize("condition", [1e1, 9e3, 2e4, 1e5])
def test_a_shift_is_as_exact_as_float64_whatever_the_condition(condition) -> None:
    """On both sides of the condition number at which a QR takes over; a float32 SVD is off by 1e-5 to 1e-2 here."""
    g, n = torch.Generator().manual_seed(5), 96
    U, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    W = ((U * torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)) @ V.T).float()
    U, _, Vh = torch.linalg.svd(W.double())
    change = torch.sin(torch.arange(n)).double()
    expected = (U * change) @ Vh
    U, _, Vh = (t.double() for t in thin_svd(W))
    assert float(((U * change) @ Vh - expected).norm() / expected.norm()) < 3e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_lq_is_canonical(shape) -> None:
    W = spectrum_weight(shape, "decay")
    L, Qh = canonical_lq(W)
    torch.testing.assert_close(L @ Qh, W, atol=2e-6, rtol=0)
    assert (L.diagonal() >= 0).all()
    assert torch.equal(L, L.tril())
    again = canonical_lq(W.double())[1]
    torch.testing.assert_close(again.float(), Qh, atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("angle", [1e-4, 0.3, 0.7])
def test_log_and_exp_are_inverse(k, angle) -> None:
    R = random_rotation(k, angle).double()
    R, _ = torch.linalg.qr(R)  # float32 rounding off the manifold would show in float64
    R = R * torch.sign(torch.diagonal(R))
    A = orthogonal_log(R)
    assert torch.equal(A, -A.mT)
    torch.testing.assert_close(skew_exp(A), R, atol=1e-12, rtol=0)


def test_log_of_equal_eigenvalues_and_batches() -> None:
    stack = torch.stack([torch.eye(6), random_rotation(6)])
    logs = orthogonal_log(stack)
    assert logs[0].abs().max() == 0
    torch.testing.assert_close(skew_exp(logs[1]), stack[1].double(), atol=1e-6, rtol=0)


def test_half_turns_and_reflections_have_no_geodesic() -> None:
    with pytest.raises(ManifoldError, match="180"):
        orthogonal_log(torch.diag(torch.tensor([-1.0, -1.0, 1.0])))
    with pytest.raises(ManifoldError, match="delta"):
        orthogonal_log(torch.diag(torch.tensor([-1.0, 1.0])))


def test_check_orthogonal_says_by_how_much() -> None:
    assert check_orthogonal(random_rotation(8)) == (True, "")
    ok, reason = check_orthogonal(1.1 * torch.eye(4))
    assert not ok and "0.21" in reason and "0.001" in reason
    assert "NaN" in check_orthogonal(torch.full((2, 2), math.nan))[1]
    assert "square" in check_orthogonal(torch.zeros(2, 3))[1]


@pytest.mark.parametrize("sizes", [(12,), (3, 4), (2, 3, 2), (1, 12)])
def test_rotate_equals_the_dense_product(sizes) -> None:
    factors = [random_rotation(k, seed=i) for i, k in enumerate(sizes)]
    K = torch.eye(1)
    for R in factors:
        K = torch.kron(K, R)
    x = torch.randn(5, 7, 12)
    torch.testing.assert_close(rotate(x, factors), x @ K.T)
    torch.testing.assert_close(unrotate(x, factors), x @ K)
    torch.testing.assert_close(unrotate(rotate(x, factors), factors), x)
    assert (rotate(x, factors) - x).abs().max() > 0.1


def test_rotate_by_the_identity_is_exact() -> None:
    x = torch.randn(9, 12)
    assert torch.equal(rotate(x, [torch.eye(3), torch.eye(4)]), x)
    assert rotate(x, []) is x


def test_rotate_refuses_a_wrong_width() -> None:
    with pytest.raises(ShapeError, match="12 dimensions.*13"):
        rotate(torch.zeros(2, 13), [torch.eye(3), torch.eye(4)])


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, -1.0, 2.5])
def test_geodesic_power_stays_orthogonal_and_scales_angles(strength) -> None:
    R = random_rotation(6, 0.2)
    (P,) = geodesic_power([R], strength)
    assert orthogonality_residual(P) < 1e-5
    torch.testing.assert_close(rotation_angles(P), abs(strength) * rotation_angles(R), atol=1e-4, rtol=0)
    if strength in (0.0, 1.0):
        assert torch.equal(P, R if strength else torch.eye(6))


@pytest.mark.parametrize("width", [320, 640, 768, 1280, 2048, 2560, 2880, 3072, 4096, 5120, 10240, 11520, 60, 7, 1])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_automatic_sizes_multiply_to_the_width(width, count) -> None:
    sizes = factor_sizes(width, "auto", count)
    assert math.prod(sizes) == width
    assert len(sizes) <= count
    if count >= 3 and width >= 320:
        assert max(sizes) <= 32


def sieve(limit: int) -> list[int]:
    """The primes up to it."""
    return [n for n in range(2, limit + 1) if all(n % p for p in range(2, math.isqrt(n) + 1))]


def test_authors_sizes_by_name_and_fallback() -> None:
    for name, table in FACTOR_PRESETS.items():
        for width, sizes in table.items():
            assert factor_sizes(width, name) == sizes
            assert math.prod(sizes) == width
    assert factor_sizes(320, "svdiff-size") == factor_sizes(320)


@pytest.mark.parametrize("width", [320, 640, 768, 1280, 2048, 2432, 3072, 11520, 194, 97, 96, 7, 1])
def test_large_sizes_multiply_to_the_width_and_have_more_parameters(width) -> None:
    large, auto = factor_sizes(width, "large"), factor_sizes(width)
    assert math.prod(large) == width
    assert sum(k * (k - 1) for k in large) >= sum(k * (k - 1) for k in auto)
    assert max(large) <= max(96, *auto)


@pytest.mark.parametrize(("preset", "count"), [("auto", 2), ("auto", 3), ("large", 1), ("large", 2), ("oft-size", 2)])
def test_no_factor_is_dense_and_large_unless_it_is_asked_for(preset, count) -> None:
    refused, primes = 0, sieve(4096)
    for in_features in range(1, 4097):
        prime = max((p for p in primes if in_features % p == 0), default=1)
        if prime > LARGEST_DENSE_FACTOR:
            refused += 1
            with pytest.raises(SettingsError, match=f"{in_features} inputs .* prime factor {prime}"):
                factor_sizes(in_features, preset, count)
            continue
        sizes = factor_sizes(in_features, preset, count)
        assert math.prod(sizes) == in_features and max(sizes) <= LARGEST_DENSE_FACTOR, in_features
    assert 1000 < refused < 2000


def test_large_primes_are_refused_by_name() -> None:
    assert factor_sizes(251) == (251,)
    with pytest.raises(SettingsError, match="1009"):
        factor_sizes(2 * 1009)
    assert factor_sizes(1009, count=1) == (1009,), f"one dense rotation was asked for (limit {LARGEST_DENSE_FACTOR})"
    with pytest.raises(SettingsError, match="svdiff-size"):
        factor_sizes(320, "nonsense")


def test_in_batches_is_the_function_of_each_matrix_in_order() -> None:
    matrices = [torch.randn(k, k, dtype=dtype) for k, dtype in ((3, torch.float32), (5, torch.float64)) * 3]
    calls = []

    def function(stack: torch.Tensor) -> torch.Tensor:
        calls.append(stack.shape)
        return stack @ stack

    found = linalg.in_batches(function, matrices)
    assert calls == [(3, 3, 3), (3, 5, 5)]
    for M, squared in zip(matrices, found, strict=True):
        assert squared.dtype == M.dtype
        torch.testing.assert_close(squared, M @ M)
    assert linalg.in_batches(function, []) == []

# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soda_core import SodaAdapter, SodaLayer, SodaSum
from soda_core.base_weight import BaseWeight
from soda_core.errors import BaseMismatchError, SettingsError
from soda_core.kronecker import factor_sizes, identity_factors
from soda_core.spectral import decompose

from .conftest import random_layer

SHAPES = [(24, 24), (16, 30), (40, 12), (8, 6, 3, 3), (5, 4, 1, 1)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def reference(W0: torch.Tensor, layer: SodaLayer) -> torch.Tensor:
    """The formula written out densely in float64."""
    W = W0.double().flatten(1)
    if layer.shift is not None and layer.decomposition == "svd":
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        W = (U * torch.relu(S + layer.shift.double())) @ Vh
    elif layer.shift is not None:
        Q, R = torch.linalg.qr(W.T)
        sign = torch.sign(torch.diagonal(R))
        L, Q = (R * sign[:, None]).T, Q * sign
        D = torch.zeros_like(L)
        D.diagonal().copy_(layer.shift.double())
        W = (L + D) @ Q.T
    K = torch.eye(1, dtype=torch.float64)
    for R in layer.factors:
        K = torch.kron(K, R.double())
    if layer.factors:
        W = W @ K.T
    return W.reshape(W0.shape)


@pytest.mark.parametrize("ablation", ["both", "rotation", "shift", "none"])
@pytest.mark.parametrize("decomposition", ["svd", "qr"])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_dense_formula(shape, decomposition, ablation) -> None:
    sizes = factor_sizes(math.prod(shape[1:])) if ablation in ("both", "rotation") else ()
    W0, layer = random_layer(shape, sizes, decomposition, shift=0.1 if ablation in ("both", "shift") else None)
    expected = reference(W0, layer)
    torch.testing.assert_close(layer.adapt(W0).double(), expected, atol=5e-6, rtol=0)
    assert (expected - W0).norm() > 0.01 or ablation == "none"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["linear", "geodesic"])
@pytest.mark.parametrize("decomposition", ["svd", "qr"])
@pytest.mark.parametrize("shape", SHAPES)
def test_untrained_is_the_base_bit_for_bit(shape, decomposition, mode, dtype) -> None:
    W0 = torch.randn(shape).to(dtype)
    width = math.prod(shape[1:])
    layer = SodaLayer(decomposition, identity_factors(factor_sizes(width)), torch.zeros(min(shape[0], width)))
    for strength in (1.0, 0.5, -1.0):
        assert torch.equal(layer.adapt(W0, strength, mode), W0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_keeps_dtype_and_shape_and_leaves_the_weight_alone(dtype) -> None:
    W0, layer = random_layer((8, 6, 3, 3), (2, 27))
    W0 = W0.to(dtype)
    before = W0.clone()
    W = layer.adapt(W0, 0.7)
    assert W.dtype == dtype and W.shape == W0.shape and W.device == W0.device
    assert torch.equal(W0, before) and not torch.equal(W, before)


@pytest.mark.parametrize("mode", ["linear", "geodesic"])
def test_strength_zero_and_one(mode) -> None:
    W0, layer = random_layer()
    assert torch.equal(layer.adapt(W0, 0.0, mode), W0)
    assert torch.equal(layer.adapt(W0, 1.0, mode), layer.adapt(W0))


@pytest.mark.parametrize("strength", [0.5, -1.0, 2.0])
def test_linear_strength_is_linear(strength) -> None:
    W0, layer = random_layer()
    torch.testing.assert_close(layer.delta(W0, strength), strength * layer.delta(W0))


@given(strength=st.floats(-3, 3), seed=st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_geodesic_strength_keeps_every_norm(strength, seed) -> None:
    """Without a shift the adapted weight is the base turned: same singular values at any strength."""
    W0, layer = random_layer(shift=None, seed=seed)
    W = layer.adapt(W0, strength, "geodesic")
    torch.testing.assert_close(torch.linalg.svdvals(W), torch.linalg.svdvals(W0), atol=1e-4, rtol=1e-4)


def test_linear_strength_does_not_keep_norms() -> None:
    W0, layer = random_layer(shift=None)
    W = layer.adapt(W0, 3.0, "linear")
    assert not torch.allclose(torch.linalg.svdvals(W), torch.linalg.svdvals(W0), atol=1e-2)


def test_geodesic_minus_one_undoes_a_rotation() -> None:
    W0, layer = random_layer(shift=None)
    there = layer.adapt(W0, 1.0, "geodesic")
    torch.testing.assert_close(layer.adapt(there, -1.0, "geodesic"), W0, atol=1e-5, rtol=0)


def test_geodesic_strength_scales_a_curve() -> None:
    W0, layer = random_layer()
    spectrum, heights = decompose(W0, "svd"), torch.linspace(-0.02, 0.05, 6)
    layer = replace(layer, shift=spectrum.knots(6) @ heights, knots=heights)
    part = layer.at_strength(-0.3)
    torch.testing.assert_close(spectrum.knots(6) @ part.knots, part.shift)
    torch.testing.assert_close(part.shift, -0.3 * layer.shift)


def test_a_layer_and_a_sum_answer_alike() -> None:
    """What a reader of an adapter asks, it asks of both."""
    W0, layer = random_layer((8, 6, 3, 3), (2, 27))
    total = SodaSum(((0.5, layer), (0.5, layer)))
    assert layer.terms == ((1.0, layer),) and layer.single is layer and total.single is None
    for adapted in (layer, total):
        assert adapted.shape == (8, 6, 3, 3) and adapted.in_features == 54
        assert adapted.num_parameters == sum(term.num_parameters for _, term in adapted.terms)
        torch.testing.assert_close(adapted.delta(W0), layer.delta(W0))
        assert adapted.check_base(W0).spectral_error < 1e-6
        adapted.check_shape("x", (8, 6, 3, 3))
        with pytest.raises(BaseMismatchError, match=r"'x'.*\(8, 6, 3, 3\).*\(8, 6, 1, 1\)"):
            adapted.check_shape("x", (8, 6, 1, 1))
    assert layer.num_parameters == 2 * 2 + 27 * 27 + 8


def test_a_repr_is_one_short_line() -> None:
    _, layer = random_layer()
    assert repr(layer) == "SodaLayer(svd, shape=(24, 30), factors 5 x 6, shift 24)"
    assert repr(SodaLayer("qr")) == "SodaLayer(qr, shape=None, factors none, shift none)"
    assert repr(replace(layer, knots=torch.zeros(6))).endswith("shift 24 on 6 knots)")
    total = SodaSum(((0.5, layer), (0.25, layer)))
    assert repr(total) == f"SodaSum(0.5 x {layer} + 0.25 x {layer})"
    adapter = SodaAdapter({str(i): layer for i in range(1000)}, {"title": "a\nfox", "base_model": {"name": "b"}})
    assert repr(adapter) == r"SodaAdapter('a\nfox', 1000 layers, 85,000 parameters, trained on 'b')"


def test_a_kept_decomposition_gives_the_same_weight() -> None:
    for kind in ("svd", "qr"):
        W0, layer = random_layer(decomposition=kind)
        kept = BaseWeight(W0, spectra=[decompose(W0, kind)])
        assert torch.equal(layer.adapt(kept), layer.adapt(W0))


def test_svd_shift_cannot_make_a_negative_singular_value() -> None:
    W0, _ = random_layer()
    layer = SodaLayer("svd", [], torch.full((24,), -100.0))
    assert layer.adapt(W0).abs().max() < 1e-6


def test_wrong_sizes_are_named() -> None:
    W0, layer = random_layer()
    with pytest.raises(BaseMismatchError, match=r"24.*\(24, 30\)|\(24,\).*"):
        layer.adapt(W0[:20])
    with pytest.raises(SettingsError, match="svd"):
        SodaLayer("eig")
    with pytest.raises(SettingsError, match="linear"):
        layer.adapt(W0, 1.0, "cubic")

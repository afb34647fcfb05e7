# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
import torch

from soda_core import SodaAdapter, SodaLayer, merge
from soda_core.base_check import BaseCheck, BaseReport, relative_error, sketch
from soda_core.report.base_check import refusal, summary, table

from .conftest import random_layer, random_rotation


@pytest.mark.parametrize("decomposition", ["svd", "qr"])
def test_the_same_base_passes_exactly(decomposition) -> None:
    W0, layer = random_layer((64, 48), (6, 8), decomposition)
    check = layer.check_base(W0)
    assert check.spectral_error < 1e-6 and check.base_distance == 0
    assert check.spectral_norm > 0.01


def test_the_estimate_follows_the_true_error() -> None:
    """A bf16 copy of a base with a steep spectrum turns its singular vectors; the sketches see how far."""
    g = torch.Generator().manual_seed(0)
    i = torch.arange(1, 161).float()
    U, V = (torch.linalg.qr(torch.randn(160, 160, generator=g))[0] for _ in range(2))
    W0 = (U * i**-0.7) @ V.T
    layer = SodaLayer("svd", [], 0.05 * torch.randn(160, generator=g)).with_base_check(W0)
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        stored = W0.to(dtype).float()
        true = layer.delta(W0).norm() and (layer.delta(stored) - layer.delta(W0)).norm() / layer.delta(W0).norm()
        estimate = layer.check_base(stored).spectral_error
        assert 0.6 * true < estimate < 1.6 * true, (dtype, float(true), estimate)


def test_another_base_fails() -> None:
    _W0, layer = random_layer((64, 48), (6, 8))
    other = random_layer((64, 48), (6, 8), seed=9)[0]
    check = layer.check_base(other)
    assert check.spectral_error > 0.5 and check.base_distance > 0.5


def test_a_layer_without_sketches_says_nothing() -> None:
    W0, _ = random_layer()
    assert SodaLayer("svd", [random_rotation(30)]).check_base(W0) is None


def test_a_sketch_keeps_norms_and_is_the_same_for_ever() -> None:
    """Files hold sketches, so another version of the pack must draw the same signs."""
    g = torch.Generator().manual_seed(0)
    norms = [(sketch(M).norm() / M.norm()).square() for M in torch.randn(40, 96, 64, generator=g)]
    assert torch.stack(norms).mean() == pytest.approx(1.0, abs=0.05)
    assert sketch(torch.diag(torch.arange(40.0)))[5:7].tolist() == [
        [21.0, 21.0, -21.0, 21.0],
        [16.0, -16.0, 16.0, -22.0],
    ]
    assert relative_error(sketch(torch.zeros(4, 4)), torch.zeros(32, 4)) == 0.0


def test_a_sum_is_checked_as_its_terms_are() -> None:
    W0, a = random_layer()
    _, b = random_layer(seed=3)
    b = b.with_base_check(W0)
    stored = W0.to(torch.bfloat16).float()
    checks = [a.check_base(stored), b.check_base(stored)]
    total = merge(SodaAdapter({"x": a}), SodaAdapter({"x": b}), -2.0, 0.0).layers["x"].check_base(stored)
    assert total.spectral_error == pytest.approx(checks[0].spectral_error)
    assert total.spectral_norm == pytest.approx(2 * checks[0].spectral_norm)
    assert total.base_distance == max(check.base_distance for check in checks)


REPORT = BaseReport({"a": BaseCheck(0.03, 4.0, 0.01), "b": BaseCheck(0.0, 3.0, 0.07), "c": BaseCheck(0.5, 0.0, 0.0)})


def test_layers_count_by_the_size_of_their_change() -> None:
    assert REPORT.spectral_error == pytest.approx(0.03 * 4 / 5)
    assert REPORT.base_distance == pytest.approx((0.05**2 * 2 / 3) ** 0.5)
    assert [name for name, _ in REPORT.worst()] == ["c", "a", "b"]
    assert BaseReport({}).spectral_error == BaseReport({}).base_distance == 0.0


@pytest.mark.parametrize(
    ("error", "distance", "doubtful", "refused"),
    [(0.019, 0.09, False, False), (0.021, 0.0, True, False), (0.0, 0.11, True, False), (0.21, 0.0, True, True)],
)
def test_thresholds(error, distance, doubtful, refused) -> None:
    report = BaseReport({"a": BaseCheck(error, 1.0, distance)})
    assert (report.doubtful, report.refused) == (doubtful, refused)


def test_its_texts() -> None:
    assert summary(BaseReport({})) == "base check: nothing to compare"
    said = "base check: spectral part off by 2.40% overall, base weights differ by 4.08%"
    assert summary(REPORT) == said + "; worst layers: c 50.0%, a 3.0%, b 0.0%"
    assert summary(BaseReport({"b": REPORT.layers["b"]})) == (
        "base check: spectral part off by 0.00% overall, base weights differ by 7.00%"
    )
    assert table(REPORT).splitlines() == [
        " spectral       base  layer",
        "   50.00%      0.00%  c",
        "    3.00%      1.00%  a",
        "    0.00%      7.00%  b",
    ]
    adapter = SodaAdapter({}, {"title": "fox", "base_model": {"name": "b", "family": "SDXL 1.0"}})
    assert refusal(REPORT, adapter) == (
        f"fox does not fit this base model: {summary(REPORT)} (allowed 20%). It was trained on b (SDXL 1.0): load that "
        "file in that precision, or turn on 'ignore_base_check' to use it all the same"
    )

# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math

import pytest

from soda_core.training.series import RunningMean, Series


def test_a_short_run_is_kept_as_it_is() -> None:
    series = Series(most=8)
    for step in range(1, 6):
        series.add(step, 0.123456 * step)
    assert series.points() == [[step, float(f"{0.123456 * step:.4g}")] for step in range(1, 6)]


@pytest.mark.parametrize("count", [7, 8, 9, 100, 12_345])
def test_a_long_run_is_thinned_and_its_mean_kept(count) -> None:
    series = Series(most=8)
    for step in range(1, count + 1):
        series.add(step, float(step % 2))
        assert len(series) <= 8
    steps = [step for step, _ in series.points()]
    assert steps == sorted(set(steps)) and steps[-1] <= count < steps[-1] + count / 3 + 1
    if count > 8:
        assert all(abs(value - 0.5) < 0.51 for _, value in series.points())
        assert series.points()[0][1] == 0.5, "neighbours of 0 and 1 make their mean"


def test_what_is_no_number_is_left_out_of_a_curve_and_of_a_mean() -> None:
    series, mean = Series(), RunningMean(0.5)
    values = [1.0, math.nan, math.inf, 3.0]
    means = [mean.add(value) for value in values]
    for step, value in enumerate(values):
        series.add(step, value)
    assert series.points() == [[0, 1.0], [3, 3.0]]
    assert means[0] == 1.0 and math.isnan(means[1]) and means[3] == pytest.approx((0.5 * 1 + 1 * 3) / 1.5)

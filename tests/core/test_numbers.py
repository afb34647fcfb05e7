# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers from widgets, scripts and files are finite and in range, or refused by name before work starts."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from soda_core import SodaAdapter, SodaLayer, SodaSum, merge
from soda_core.base_check import BaseCheck, BaseReport
from soda_core.errors import BaseMismatchError, MergeError, SettingsError
from soda_core.interference import interference
from soda_core.kronecker import GROUPED, grouping
from soda_core.report.base_check import refusal, summary, table
from soda_core.training.setting import check_settings, settings_of
from soda_core.training.settings import TrainSettings

from .conftest import random_layer, random_rotation

BAD = [math.nan, math.inf, -math.inf, 1e300, 1001.0, -1001.0]


@pytest.mark.parametrize("mode", ["linear", "geodesic"])
@pytest.mark.parametrize("strength", BAD)
def test_a_strength_is_finite_and_in_range(strength, mode) -> None:
    W, layer = random_layer()
    summed = merge(SodaAdapter({"x": layer}), SodaAdapter({"x": layer})).layers["x"]
    for changed in (layer, summed):
        for change in (changed.adapt, changed.delta):
            with pytest.raises(SettingsError, match="strength must be a number between -1000 and 1000, got"):
                change(W, strength, mode)
    with pytest.raises(SettingsError, match="strength"):
        layer.at_strength(strength)
    with pytest.raises(SettingsError, match="a term's strength"):
        SodaSum(((strength, layer),))


@pytest.mark.parametrize("method", ["delta", "geodesic"])
@pytest.mark.parametrize("strength", BAD)
def test_a_merge_names_the_strength_it_refuses(strength, method) -> None:
    adapter = SodaAdapter({"x": random_layer()[1]})
    with pytest.raises(SettingsError, match="subject_strength must be"):
        merge(adapter, adapter, strength, 1.0, method)
    with pytest.raises(SettingsError, match="style_strength must be"):
        merge(adapter, adapter, 1.0, strength, method)


def test_merges_of_merges_stay_in_range() -> None:
    adapter = SodaAdapter({"x": random_layer()[1]})
    strong = merge(adapter, adapter, 1000.0, 1.0)
    with pytest.raises(SettingsError, match="product of strengths in layer 'x'.*10000"):
        merge(strong, adapter, 10.0, 1.0)
    many = adapter
    for _ in range(6):
        many = merge(many, many, 0.5, 0.5)
    assert len(many.layers["x"].terms) == 64
    with pytest.raises(MergeError, match="layer 'x' would be a sum of 65 changes, at most 64"):
        merge(many, adapter)


def test_layers_of_two_sizes_are_not_merged_though_they_say_no_shape() -> None:
    """A file need not say the shape; sizes of rotations and shifts still tell."""
    turned = [SodaLayer("svd", [random_rotation(k)], None) for k in (4, 5)]
    shifted = [SodaLayer("svd", [], torch.zeros(n)) for n in (4, 5)]
    for a, b in (turned, shifted):
        for method in ("delta", "geodesic"):
            with pytest.raises(MergeError, match="layer 'x' has a (rotation|shift) of size 4"):
                merge(SodaAdapter({"x": a}), SodaAdapter({"x": b}), method=method)
        (row,) = interference(SodaAdapter({"x": a}), SodaAdapter({"x": b})).values()
        assert row.shift_cosine is None and row.rotation_distance is None


@pytest.mark.parametrize("shape", [(), (24,), (24, 31), (23, 30), (3, 30)])
def test_a_weight_of_another_size_is_refused_before_it_is_decomposed(shape) -> None:
    layer = SodaLayer("svd", [random_rotation(30)], torch.zeros(24))
    summed = SodaSum(((1.0, SodaLayer("svd", [random_rotation(30)])), (1.0, layer)))
    for changed in (layer, summed):
        with pytest.raises(BaseMismatchError, match="layer 'x'"):
            changed.check_shape("x", shape)
        changed.check_shape("x", (24, 30))


class TestBaseCheck:
    def test_nan_is_refused_and_first_in_the_list(self) -> None:
        """``nan > 0.2`` is false."""
        report = BaseReport({"fine": BaseCheck(0.5, 1.0, 0.0), "lost": BaseCheck(math.nan, 1.0, math.nan)})
        assert math.isnan(report.spectral_error) and report.refused and report.doubtful
        assert report.worst()[0][0] == "lost"
        assert "lost nan%" in summary(report) and "nan" in table(report)
        assert "does not fit" in refusal(report, SodaAdapter({}))

    def test_a_distance_of_nan_is_worth_a_warning(self) -> None:
        report = BaseReport({"x": BaseCheck(0.0, 0.0, math.nan)})
        assert report.doubtful and not report.refused

    def test_a_base_of_nan_is_no_base(self) -> None:
        W, layer = random_layer()
        with pytest.raises(BaseMismatchError, match=r"\(24, 30\) holds NaN"):
            layer.check_base(W * math.nan)

    def test_sketches_that_overflow_are_refused(self) -> None:
        W, layer = random_layer()
        sketches = layer.sketches
        huge = type(sketches)(torch.full_like(sketches.spectral, 3e38), sketches.base)
        check = SodaLayer(layer.decomposition, layer.factors, layer.shift, sketches=huge).check_base(W)
        assert BaseReport({"x": check}).refused


NUMBERS = [name for name, setting in settings_of(TrainSettings).items() if setting.minimum is not None]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_of_a_training_is_finite_and_in_range(name) -> None:
    setting = settings_of(TrainSettings)[name]
    for bad in (math.nan, math.inf, -math.inf, setting.minimum - 1):
        with pytest.raises(SettingsError, match=rf"{name} must be"):
            TrainSettings(**{name: bad})
    above = setting.maximum * 2
    script = TrainSettings(**{"steps": above, name: above} if name == "warmup_steps" else {name: above})
    with pytest.raises(SettingsError, match=r"must be .* or less"):
        check_settings(script, offered=True)
    check_settings(TrainSettings(), offered=True)


@pytest.mark.parametrize("sizes", [(2,) * 17, (1, 131_072), (131_072,), (2, 3)])
def test_sizes_of_factors_that_no_file_holds_are_refused_before_training(sizes) -> None:
    with pytest.raises(SettingsError, match="factor_sizes"):
        TrainSettings(factor_sizes={131_072: sizes})
    with pytest.raises(SettingsError, match="one dense rotation of 131072 inputs"):
        TrainSettings(factor_count=1).rotation_sizes((8, 131_072))


# ---------------------------------------------------------------------------------------------------------- groupings


def partitions(count: int) -> Iterator[tuple[int, ...]]:
    """All ways to cut a row of ``count`` into neighbouring groups: 2^(count - 1)."""
    if not count:
        yield ()
    for first in range(1, count + 1):
        for rest in partitions(count - first):
            yield (first, *rest)


def exhaustive(sizes: tuple[int, ...]) -> tuple[int, ...]:
    def products(partition: tuple[int, ...]) -> list[int]:
        starts = [sum(partition[:i]) for i in range(len(partition))]
        return [math.prod(sizes[start : start + n]) for start, n in zip(starts, partition, strict=True)]

    allowed = [
        partition
        for partition in partitions(len(sizes))
        if all(n == 1 or k <= GROUPED for n, k in zip(partition, products(partition), strict=True))
    ]
    return min(allowed, key=lambda partition: (len(partition), sum(products(partition))))


def test_groupings_are_those_that_trying_all_finds() -> None:
    g = torch.Generator().manual_seed(0)
    choices = [1, 2, 2, 3, 4, 5, 6, 8, 10, 16, 20, 64, 96, 97, 200]
    tried = set()
    for count in range(9):
        for _ in range(1 if not count else 150):
            places = torch.randint(len(choices), (count,), generator=g).tolist()
            tried.add(tuple(choices[place] for place in places))
    tried |= {
        (4, 16, 20),
        (8, 8, 10),
        (4, 8, 64),
        (2, 16, 64),
        (2, 4, 96),
        (32, 40),
        (16, 80),
        (2,) * 8,
        (96, 1, 1, 96),
    }
    assert len(tried) > 900
    for sizes in tried:
        assert grouping(sizes) == exhaustive(sizes), sizes


def test_grouping_any_number_of_factors_is_quick() -> None:
    """26 took days: each more doubled it."""
    assert sum(grouping((1,) * 300)) == 300
    assert grouping((2,) * 16) == (5, 5, 6)

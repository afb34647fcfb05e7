# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from soda_core.host import charts
from soda_core.host.charts import LayerRow, adapter_picture, loss_curve, smooth, to_image_tensor


def accent_rows(image) -> dict[int, float]:
    """Mean height of the strong line's pixels by column, inside the plot."""
    pixels = np.asarray(image).astype(int)[60:380, 70:740]
    close = (np.abs(pixels - np.array(charts._ACCENT)).sum(2) < 60).nonzero()
    return {x: float(close[0][close[1] == x].mean()) for x in set(close[1].tolist())}


def test_a_falling_loss_falls() -> None:
    rows = accent_rows(loss_curve([1.0 - i / 300 for i in range(200)]))
    left, right = min(rows), max(rows)
    assert rows[right] - rows[left] > 100, "image rows count downwards"
    assert right - left > 500


@pytest.mark.parametrize(
    "losses",
    [[], [0.5], [0.5] * 10, [0.0, 0.0], [math.nan] * 3, [1.0, math.nan, math.inf, 0.5], [-1.0, 2.0], [1e-9, 1e6] * 5],
    ids=str,
)
def test_odd_losses_still_make_a_picture(losses) -> None:
    assert loss_curve(losses).size == (768, 432)


def test_a_nan_is_a_gap() -> None:
    broken = loss_curve([1.0, 0.9, 0.8, math.nan, math.nan, math.nan, 0.6, 0.5], smoothing=0.0)
    gap = set(range(300, 400)) & set(accent_rows(broken))
    assert not gap and set(accent_rows(loss_curve([1.0, 0.9, 0.8, 0.7, 0.7, 0.7, 0.6, 0.5], smoothing=0.0))) >= gap


def test_smoothing_is_not_biased_at_the_start() -> None:
    assert smooth([2.0, 2.0, 2.0], 0.9) == pytest.approx([2.0, 2.0, 2.0])


def test_many_points_are_thinned_but_keep_their_extremes() -> None:
    values = [0.0] * 100_000
    values[54_321] = 9.0
    points = charts._thin(values, 500)
    assert len(points) <= 1000
    assert (54_321, 9.0) in points


def rows(count: int, shift: float = 0.1, angle: float = 3.0) -> list[LayerRow]:
    g = torch.Generator().manual_seed(0)
    shifts, angles = shift * torch.randn(count, 64, generator=g), angle * torch.rand(count, 64, generator=g)
    return [LayerRow(f"net.block.{i}.to_q", shifts[i], angles[i], 99, (64, 64)) for i in range(count)]


@pytest.mark.parametrize("count", [1, 32, 700])
def test_portraits_of_any_size(count) -> None:
    image = adapter_picture(rows(count), title="fox", subtitle="base")
    assert image.size[0] == 1024 and image.size[1] <= 2000
    assert np.asarray(image).std() > 5


def test_portraits_of_ablations_and_of_nothing_learnt() -> None:
    no_shift = [LayerRow("a", None, torch.tensor([1.0]), 1, None)]
    no_rotation = [LayerRow("a", torch.tensor([1.0]), None, 1, None)]
    nothing = [LayerRow("a", torch.zeros(8), torch.zeros(8), 16, (8, 8))]
    pictures = [np.asarray(adapter_picture(r, title="t")) for r in (no_shift, no_rotation, nothing, [])]
    assert all(p.shape[1] == 1024 for p in pictures)
    assert not np.array_equal(pictures[0], pictures[1])


def test_larger_shifts_are_brighter_and_the_same_adapter_gives_the_same_picture() -> None:
    half = rows(1)
    both = [half[0], LayerRow("b", 0.1 * half[0].shift, half[0].angles, 99, (64, 64))]
    first, second = np.asarray(adapter_picture(both, title="t")), np.asarray(adapter_picture(both, title="t"))
    assert np.array_equal(first, second)
    strips = first[92:132, 280:600].astype(int)
    colour = (strips.max(2) - strips.min(2)).mean(1)
    assert colour[2:14].mean() > 3 * colour[22:34].mean()


def test_the_tensor_is_the_hosts_image() -> None:
    image = to_image_tensor(loss_curve([1.0, 0.5]))
    assert image.shape == (1, 432, 768, 3) and image.dtype == torch.float32
    assert 0 <= float(image.min()) < float(image.max()) <= 1

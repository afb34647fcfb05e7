# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from soda_core.report import charts
from soda_core.report.charts import LayerRow, adapter_picture, loss_curve, smooth, to_image_tensor


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
    [
        [],
        [0.5],
        [0.5] * 10,
        [0.0, 0.0],
        [math.nan] * 3,
        [1.0, math.nan, math.inf, 0.5],
        [-1.0, 2.0],
        [1e-9, 1e6] * 5,
        [1e308, -1e308, 1.0],
        [0.5, 0.5 + 1e-16],
        [5e-324] * 3,
        [1e300] * 3,
    ],
    ids=str,
)
def test_odd_losses_still_make_a_picture(losses) -> None:
    assert loss_curve(losses).size == (768, 432)


def test_a_nan_is_a_gap() -> None:
    broken = loss_curve([1.0, 0.9, 0.8, math.nan, math.nan, math.nan, 0.6, 0.5], smoothing=0.0)
    gap = set(range(300, 400)) & set(accent_rows(broken))
    assert not gap and set(accent_rows(loss_curve([1.0, 0.9, 0.8, 0.7, 0.7, 0.7, 0.6, 0.5], smoothing=0.0))) >= gap


def test_a_constant_loss_is_a_level_line_and_one_step_a_dot_in_the_middle() -> None:
    level = accent_rows(loss_curve([0.5] * 40))
    inside = [level[x] for x in range(10, 600)]
    assert max(inside) - min(inside) < 0.5, "from the left to the right edge, without a step"
    dot = accent_rows(loss_curve([0.5]))
    plot = [x for x in dot if x < 620]  # right of the plot stands the value
    assert plot and max(plot) - min(plot) < 10 and abs((64 + 704) / 2 - 70 - sum(plot) / len(plot)) < 3


def test_a_wide_range_is_drawn_on_a_log_axis() -> None:
    """An exponential fall is a straight line there, and hugs the bottom on a linear axis."""
    wide = accent_rows(loss_curve([10 ** (-4 * i / 200) for i in range(200)], smoothing=0.0))
    assert wide[320] == pytest.approx((wide[20] + wide[620]) / 2, abs=3)
    narrow = accent_rows(loss_curve([10 ** (-1.5 * i / 200) for i in range(200)], smoothing=0.0))
    assert narrow[320] > (narrow[20] + narrow[620]) / 2 + 20


def test_learning_rates_add_a_line_of_their_own() -> None:
    losses = [1.0, 0.8, 0.7, 0.6]
    plain = np.asarray(loss_curve(losses))
    assert not np.array_equal(plain, np.asarray(loss_curve(losses, learning_rates=[1e-3, 5e-4, 1e-4, 0.0])))
    assert np.array_equal(plain, np.asarray(loss_curve(losses, learning_rates=[0.0] * 4)))
    assert loss_curve(losses, learning_rates=[math.nan, 1e-4]).size == (768, 432)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, [1]), (3, [1, 2, 3]), (40, [1, 10, 20, 30, 40]), (800, [1, 200, 400, 600, 800])],
)
def test_the_step_axis_has_whole_round_steps(steps, expected) -> None:
    assert charts._step_ticks(steps) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.02341, "0.0234"), (1e-4, "1e-4"), (1.36e-4, "1.36e-4"), (999.7, "1,000"), (1234.4, "1,234"),
     (2e6, "2e6"), (-0.5, "-0.5")],
)  # fmt: skip
def test_numbers_read_well(value, text) -> None:
    assert charts._number(value) == text


def test_tick_labels_agree_on_their_decimals() -> None:
    assert charts._tick_labels([0.4, 0.425, 0.45]) == ["0.400", "0.425", "0.450"]
    assert charts._tick_labels([0.0, 2e-7, 4e-7]) == ["0", "2e-7", "4e-7"]


def test_smoothing_is_not_biased_at_the_start() -> None:
    assert smooth([2.0, 2.0, 2.0], 0.9) == pytest.approx([2.0, 2.0, 2.0])


def test_many_points_are_thinned_but_keep_their_extremes() -> None:
    values = [0.0] * 100_000
    values[54_321] = 9.0
    points = charts._thin(values, 500)
    assert len(points) <= 1000
    assert (54_321, 9.0) in points
    assert len(charts._column_means(values, 500)) <= 500
    assert loss_curve(values).size == (768, 432)


def rows(count: int, shift: float = 0.1, angle: float = 3.0) -> list[LayerRow]:
    g = torch.Generator().manual_seed(0)
    shifts, angles = shift * torch.randn(count, 64, generator=g), angle * torch.rand(count, 64, generator=g)
    return [LayerRow(f"net.block.{i}.to_q", shifts[i], angles[i], 99, (64, 64)) for i in range(count)]


@pytest.mark.parametrize("count", [1, 32, 60, 61, 700, 1400])
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


def test_an_absent_column_says_so_and_an_untrained_adapter_is_not_coloured() -> None:
    def colour(count_rows: list[LayerRow], left: int, right: int) -> int:
        pixels = np.asarray(adapter_picture(count_rows, title="t")).astype(int)[92 : 92 + 20 * len(count_rows)]
        return int((pixels.max(2) - pixels.min(2))[:, left:right].max())

    strip, bars = (270, 610), (640, 930)
    assert colour(rows(8), *strip) > 60 and colour(rows(8), *bars) > 60
    untrained = rows(8, shift=0.0, angle=0.0)
    assert colour(untrained, *strip) < 20 and colour(untrained, *bars) < 20
    ablation = [LayerRow(r.name, None, r.angles, r.parameters, r.shape) for r in rows(8)]
    assert colour(ablation, *strip) < 20 < colour(ablation, *bars)
    words = np.asarray(adapter_picture(ablation, title="t")).astype(int)[92:252, 270:610].max(2)
    assert words.max() > 120, "no shift stands there"
    assert words[:50].max() < 60 and words[110:].max() < 60, "and stands there once"


def test_values_that_are_not_finite_are_drawn_and_named() -> None:
    good, bad = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([1.0, math.nan, math.inf])
    pictures = [np.asarray(adapter_picture([LayerRow("a", s, good, 1, None)], title="t")) for s in (good, bad)]
    assert not np.array_equal(pictures[0][40:60], pictures[1][40:60]), "the header says so"


def test_long_or_broken_titles_stay_in_their_place() -> None:
    long = "a very long title\nover lines " * 20
    assert loss_curve([1.0, 0.5], title=long).size == (768, 432)
    plain, busy = (np.asarray(adapter_picture(rows(2), title=t, subtitle=t)) for t in ("", long))
    assert np.array_equal(plain[:, 860:], busy[:, 860:]), "the totals are not printed over"


def test_names_keep_their_block_numbers() -> None:
    name = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_out.0"
    canvas = charts._Canvas(100, 100)
    shown = charts._fit_path(canvas, name, 230)
    assert canvas.text_width(shown, 11) <= 230 and shown.endswith(".0.attn1.to_out.0") and ".4.1." in shown
    blocks = [LayerRow(f"diffusion_model.double_blocks.{i}.img_attn.{p}", None, None, 1, None)
              for i in range(3) for p in ("qkv", "proj")]  # fmt: skip
    assert charts._blocks(blocks) == [(f"double_blocks.{i}", 2 * i, 2) for i in range(3)]
    other = LayerRow("diffusion_model.single_blocks.0.linear1", None, None, 1, None)
    assert charts._blocks([*blocks, other])[-2:] == [("double_blocks.2", 4, 2), ("single_blocks.0", 6, 1)]


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

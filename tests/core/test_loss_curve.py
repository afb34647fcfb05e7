# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math
import time
import warnings

import matplotlib.style
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from soda_core.report import theme
from soda_core.report.loss_curve import loss_curve, smooth
from soda_core.report.theme import to_image_tensor


def pixels(figure) -> np.ndarray:
    """(height, width, 3), 0..255"""
    return (to_image_tensor(figure)[0] * 255).round().int().numpy()


def labels(figure, axis: str) -> list[str]:
    """What stands at the ticks that show."""
    figure.canvas.draw()
    axes = figure.axes[0]
    low, high = sorted(axes.get_xlim() if axis == "x" else axes.get_ylim())
    shown = axes.get_xticklabels() if axis == "x" else axes.get_yticklabels()
    places = axes.get_xticks() if axis == "x" else axes.get_yticks()
    return [label.get_text() for label, place in zip(shown, places, strict=True) if low <= place <= high]


def accent_rows(image) -> dict[int, float]:
    """Mean height of the strong line's pixels by column, inside the plot."""
    accent = np.array(to_rgb(theme.ACCENT)) * 255
    close = (np.abs(pixels(image)[60:380, 70:740] - accent).sum(2) < 60).nonzero()
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
    assert pixels(loss_curve(losses)).shape == (432, 768, 3)


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
    plain = pixels(loss_curve(losses))
    assert not np.array_equal(plain, pixels(loss_curve(losses, learning_rates=[1e-3, 5e-4, 1e-4, 0.0])))
    assert np.array_equal(plain, pixels(loss_curve(losses, learning_rates=[0.0] * 4)))
    assert pixels(loss_curve(losses, learning_rates=[math.nan, 1e-4])).shape == (432, 768, 3)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, [1]), (3, [1, 2, 3]), (40, [1, 10, 20, 30, 40]), (800, [1, 200, 400, 600, 800])],
)
def test_the_step_axis_has_whole_round_steps(steps, expected) -> None:
    assert labels(loss_curve([0.5] * steps), "x") == [str(step) for step in expected]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.02341, "0.0234"), (1e-4, "1e-4"), (1.36e-4, "1.36e-4"), (999.7, "1,000"), (1234.4, "1,234"),
     (2e6, "2e6"), (-0.5, "-0.5")],
)  # fmt: skip
def test_numbers_read_well(value, text) -> None:
    assert theme.number(value) == text


def test_tick_labels_agree_on_their_decimals() -> None:
    assert labels(loss_curve([0.395, 0.505]), "y") == ["0.400", "0.425", "0.450", "0.475", "0.500"]
    small = loss_curve([0.0, 4e-7])
    assert labels(small, "y") == ["0", "1", "2", "3", "4"]
    assert small.axes[0].yaxis.get_offset_text().get_text() == "1e−7"


def test_a_log_axis_has_decades_or_finer_steps_where_it_is_short() -> None:
    assert labels(loss_curve([10.0**-i for i in range(5)], smoothing=0.0), "y") == ["1e-4", "0.001", "0.01", "0.1", "1"]
    assert labels(loss_curve([3.0, 0.04], smoothing=0.0), "y") == ["0.05", "0.1", "0.2", "0.5", "1", "2"]


def test_smoothing_is_not_biased_at_the_start() -> None:
    assert smooth([2.0, 2.0, 2.0], 0.9) == pytest.approx([2.0, 2.0, 2.0])


def test_many_points_keep_their_extremes() -> None:
    values = [0.0] * 100_000
    values[54_321] = 9.0
    picture = pixels(loss_curve(values))
    faint = np.array(to_rgb(theme.FAINT)) * 255
    rows, columns = (np.abs(picture[48:386, 64:704] - faint).sum(2) < 120).nonzero()
    assert rows.min() < 40, "the spike reaches the top"
    assert set(columns[rows < 200].tolist()) <= set(range(345, 351)), "and stands at its step"


def test_a_mean_of_many_steps_is_a_line_and_not_a_band() -> None:
    noise = np.random.default_rng(0).uniform(0.1, 1.0, 100_000).tolist()
    picture = pixels(loss_curve(noise, smoothing=0.9))[60:380, 70:690]
    accent = np.array(to_rgb(theme.ACCENT)) * 255
    assert (np.abs(picture - accent).sum(2) < 60).sum(0).mean() < 14


def test_a_title_of_any_length_and_script_is_cut_to_its_place_at_once() -> None:
    def title(text: str) -> str:
        return max((t.get_text() for t in loss_curve([1.0, 0.5], title=text).texts), key=len)

    started = time.perf_counter()
    shown = title("0123456789" * 10_000)
    assert time.perf_counter() - started < 2
    assert shown.startswith("0123456789") and shown.endswith("0123456789") and 30 < len(shown) < 80 and "…" in shown
    assert title("a short title of a few words") == "a short title of a few words"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for odd in ("姜黄色的狐狸", "ثعلب", "лиса", "🦊", "$x^2", "$\\frac{1}{$", "a\x00b\nc\u2028d", "\ud800", ""):
            pixels(loss_curve([1.0, 0.5], title=odd))


def test_the_style_of_another_pack_changes_little() -> None:
    ours = pixels(loss_curve([1.0, 0.5, 0.7], title="fox"))
    for style in ("ggplot", "seaborn-v0_8-darkgrid", "dark_background"):
        with matplotlib.style.context(style):
            assert np.abs(pixels(loss_curve([1.0, 0.5, 0.7], title="fox")) - ours).max() < 8, style


def test_the_tensor_is_the_hosts_image() -> None:
    image = to_image_tensor(loss_curve([1.0, 0.5]))
    assert image.shape == (1, 432, 768, 3) and image.dtype == torch.float32
    assert 0 <= float(image.min()) < float(image.max()) <= 1

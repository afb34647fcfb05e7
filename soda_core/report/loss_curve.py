# SPDX-License-Identifier: GPL-3.0-or-later
"""The loss curve of a training run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..training.series import RunningMean
from . import theme
from .theme import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Larger losses are a diverged run, drawn as a gap like NaN.
_LARGEST_LOSS = 1e30
#: The axis is logarithmic where the largest running mean is so many times the smallest.
_LOG_FROM = 50.0


def smooth(values: Sequence[float], factor: float) -> list[float]:
    """The running mean after each value; a NaN or infinite value shows as a gap."""
    mean = RunningMean(factor)
    return [mean.add(value) for value in values]


def loss_curve(
    losses: Sequence[float],
    *,
    title: str = "SODA training",
    smoothing: float = 0.9,
    learning_rates: Sequence[float] | None = None,
    width: int = 768,
    height: int = 432,
) -> Figure:
    """Loss over steps: raw as a faint line, its running mean as a strong one; a log axis where the mean spans much.

    Args:
        losses: one per step; NaN and infinite values are gaps.
        smoothing: share of the past in the running mean, 0..1.
        learning_rates: one per step, drawn as a thin line from 0 to its own largest value.
        width, height: in pixels.
    """
    figure = theme.new_figure(width, height)
    left, top, right, bottom = 64, 48, width - 64, height - 46
    axes = theme.new_axes(figure, left, top, right, bottom)
    values = np.array([v if abs(v) < _LARGEST_LOSS else math.nan for v in map(float, losses)])
    means = np.array(smooth(values.tolist(), smoothing))
    finite = np.flatnonzero(np.isfinite(means))
    facts = ""
    if finite.size:
        facts = f"{len(values):,} step{'' if len(values) == 1 else 's'}, loss {number(means[finite[-1]])}"
    theme.write(figure, width - 16, 24, facts, 14, theme.ACCENT, "right")
    free = width - left - 40 - theme.text_width(figure, facts, 14)
    theme.write(figure, left, 24, theme.fit(figure, title, free, 16), 16)
    if not finite.size:
        said = "no finite loss" if len(values) else "no steps yet"
        theme.write(figure, (left + right) / 2, (top + bottom) / 2, said, 16, theme.MUTED, "center")
        return figure
    steps = np.arange(1, len(values) + 1)
    _curve(axes, steps, values, "loss", theme.FAINT, 1.0)
    _curve(axes, *_column_means(steps, means, right - left), "running mean", theme.ACCENT, 2.2)
    _axes(axes, values, means)
    _learning_rate(axes, steps, np.array([*map(float, learning_rates or ())])[: len(values)])
    _last(axes, float(steps[finite[-1]]), float(means[finite[-1]]))
    theme.legend(figure, axes, left, bottom + 35, handlelength=1.5)
    return figure


def _axes(axes: Axes, values: np.ndarray, means: np.ndarray) -> None:
    """Ranges, ticks and their labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, ScalarFormatter

    theme.grid(axes)
    axes.tick_params("both", pad=8)
    shown, smoothed = values[np.isfinite(values)], means[np.isfinite(means)]
    size = float(np.abs(shown).max())
    axes.margins(0, 0.06)
    if smoothed.min() > 0 and smoothed.max() / smoothed.min() > _LOG_FROM:
        axes.set_yscale("log", nonpositive="mask")
        low, high = axes.get_ylim()
        few = math.log10(high / low) < 2.5
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=9))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.minorticks_off()
    else:
        if np.ptp(shown) <= 1e-6 * size:  # rounding is no news
            middle, around = float(shown.mean()), 0.1 * size or 1.0
            axes.set_ylim(middle - around, middle + around)
        formatter = ScalarFormatter(useOffset=False, useMathText=False)
        formatter.set_powerlimits((-3, 6))
        axes.yaxis.set_major_formatter(formatter)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=theme.TICK_STEPS))
        # a power of ten for all labels stands above them, beside the title
        axes.yaxis.get_offset_text().set(color=theme.MUTED, x=-56 / axes.bbox.width, **theme.text_style(12))
    count = len(values)
    axes.set_xlim((1, count) if count > 1 else (0.5, 1.5))
    ticks = MaxNLocator(7, integer=True, steps=(1, 2, 5, 10)).tick_values(1, count) if count > 1 else ()
    labelled = [1, *(round(step) for step in ticks if 1 < step <= count)]
    theme.tick_labels(axes, "x", labelled, (f"{step:,}" for step in labelled))
    axes.set_xlabel("step", loc="right", labelpad=10, color=theme.MUTED, **theme.text_style(12))


def _curve(axes: Axes, steps: np.ndarray, values: np.ndarray, label: str, colour: str, stroke: float) -> None:
    """A line with a gap where a value is NaN; a lone point is a dot."""
    missing = np.pad(np.isnan(values), 1, constant_values=True)
    lone = missing[:-2] & ~missing[1:-1] & missing[2:]
    axes.plot(steps, values, color=colour, linewidth=stroke, linestyle="-", marker="", label=label,
              solid_joinstyle="round", solid_capstyle="butt")  # fmt: skip
    axes.plot(steps[lone], values[lone], color=colour, linestyle="", marker="o", markersize=2 + stroke,
              markeredgewidth=0)  # fmt: skip


def _column_means(steps: np.ndarray, values: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps and the mean of at most each pixel column; a line drawn twice over itself would be a band."""
    if len(values) <= 4 * columns:
        return steps, values
    starts = np.arange(0, len(values), math.ceil(len(values) / columns))
    counts = np.add.reduceat(np.isfinite(values).astype(float), starts)
    sums = np.add.reduceat(np.nan_to_num(values, nan=0.0), starts)
    middles = np.minimum(starts + (starts[1] - starts[0]) // 2, len(values) - 1)
    return steps[middles], np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _learning_rate(axes: Axes, steps: np.ndarray, rates: np.ndarray) -> None:
    """On a scale of its own, which the legend tells."""
    rates = np.where(np.isfinite(rates), rates, np.nan)
    largest = float(np.nanmax(rates, initial=0.0))
    if largest > 0:
        axes.plot(steps[: len(rates)], 0.94 * rates / largest, color=theme.SECOND, linewidth=1.2, linestyle="-",
                  marker="", solid_capstyle="butt", transform=axes.get_xaxis_transform(),
                  label=f"learning rate (0 to {number(largest)})")  # fmt: skip


def _last(axes: Axes, step: float, mean: float) -> None:
    """A dot at the curve's end, and its value beside the plot."""
    axes.plot([step], [mean], color=theme.ACCENT, linestyle="", marker="o", markersize=7, markeredgewidth=0,
              clip_on=False, zorder=4)  # fmt: skip
    axes.annotate(number(mean), (1, mean), (8, 0), ("axes fraction", "data"), "offset points", annotation_clip=False,
                  color=theme.ACCENT, va="center", **theme.text_style(12))  # fmt: skip

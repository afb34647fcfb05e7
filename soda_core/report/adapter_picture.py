# SPDX-License-Identifier: GPL-3.0-or-later
"""The portrait of an adapter: what it does to every layer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from . import theme
from .theme import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

_HEADER, _FOOTER, _NAMES, _GAP = 92, 52, 290, 16
_MARGIN, _PARAMETERS = 16, 84  #: beside everything, and from the bars to the right edge
_BETWEEN = 3  #: pixels between two rows that are high enough for it
#: Below 1, so that one outlier does not leave all other layers dark.
_HEAT_GAMMA = 0.7
#: More layers than this are labelled by block.
_LABELLED_ROWS = 60
_BLOCK = re.compile(r"(.*(?:block|layer)s?(?:\.\d+)+)\.")


@dataclass(frozen=True)
class LayerRow:
    """One line of an adapter's portrait."""

    name: str
    shift: Tensor | None  #: ``(r,)``
    angles: Tensor | None  #: rotation angles in degrees, 1-D, >= 0
    parameters: int
    shape: tuple[int, ...] | None

    @property
    def broken(self) -> bool:
        """Whether it holds NaN or infinite values."""
        return any(values is not None and not bool(values.isfinite().all()) for values in (self.shift, self.angles))


def adapter_picture(rows: Sequence[LayerRow], *, title: str, subtitle: str = "", width: int = 1024) -> Figure:
    """An adapter at a glance: per layer the shift along its spectrum, the rotation angles and the size.

    ``width`` pixels wide and never higher than 2000; above 60 layers the labels and parameter counts are those of
    blocks.
    """
    row_height = min(20.0, 1800 / max(1, len(rows)))
    figure = theme.new_figure(width, math.ceil(_HEADER + row_height * len(rows) + _FOOTER))
    shifts = [_finite(row.shift) for row in rows]
    angles = [_finite(row.angles) for row in rows]
    largest_shift, largest_angle = _largest(shifts), _largest(angles)
    _header(figure, rows, title, subtitle, largest_shift, largest_angle)
    if not rows:
        return figure
    bottom, middle = _HEADER + row_height * len(rows), round(0.6 * width)
    strip = theme.new_axes(figure, _NAMES + _GAP, _HEADER, middle, bottom)
    bars = theme.new_axes(figure, middle + _GAP, _HEADER, width - _PARAMETERS, bottom)
    for axes in (strip, bars):
        axes.set_ylim(len(rows), 0)
    _names(figure, strip, bars, rows, row_height)
    gap = _BETWEEN if row_height > 8 else 0
    if largest_shift is None:
        _absent(strip, "no shift")
    else:
        _heat(figure, strip, shifts, largest_shift, gap)
    if largest_angle is None:
        _absent(bars, "no rotation")
    else:
        _bars(figure, bars, angles, largest_angle, 1 - gap / row_height)
    return figure


def _finite(values: Tensor | None) -> np.ndarray | None:
    """``(n,)``; what is not finite counts as 0 here and is named in the header."""
    if values is None:
        return None
    return np.nan_to_num(values.detach().double().cpu().numpy(), nan=0.0, posinf=0.0, neginf=0.0)


def _largest(of: Iterable[np.ndarray | None]) -> float | None:
    """The largest absolute value; None where the adapter has no shift, or no rotation."""
    return max((float(np.abs(values).max(initial=0.0)) for values in of if values is not None), default=None)


def _header(
    figure: Figure,
    rows: Sequence[LayerRow],
    title: str,
    subtitle: str,
    largest_shift: float | None,
    largest_angle: float | None,
) -> None:
    """Title and totals."""
    width = theme.size_of(figure)[0]
    total = sum(row.parameters for row in rows)
    counts = f"{_layers(len(rows))}   {total:,} parameters"
    facts = "no shift" if largest_shift is None else f"largest shift {number(largest_shift)}"
    facts += "   no rotation" if largest_angle is None else f"   largest angle {number(largest_angle)}°"
    facts += "   (untrained)" if rows and not largest_shift and not largest_angle else ""
    broken = sum(row.broken for row in rows)
    if broken:
        facts = f"{_layers(broken)} with NaN or infinite values   {facts}"
    for y, left, size, colour, right, right_size, right_colour in (
        (26, title, 20, theme.TEXT, counts, 14, theme.TEXT),
        (50, subtitle, 13, theme.MUTED, facts, 13, theme.POSITIVE if broken else theme.MUTED),
    ):
        theme.write(figure, width - _MARGIN, y, right, right_size, right_colour, "right")
        free = width - 4 * _MARGIN - theme.text_width(figure, right, right_size)
        theme.write(figure, _MARGIN, y, theme.fit(figure, left, free, size), size, colour)


def _layers(count: int) -> str:
    return f"{count:,} layer{'' if count == 1 else 's'}"


def _absent(axes: Axes, what: str) -> None:
    axes.text(0.5, 0.5, what, ha="center", va="center", color=theme.MUTED, transform=axes.transAxes,
              **theme.text_style(12))  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- names


def _names(figure: Figure, strip: Axes, bars: Axes, rows: Sequence[LayerRow], row_height: float) -> None:
    """On the left, and parameter counts on the right: per layer, or per block of layers as far as there is room."""
    width = theme.size_of(figure)[0]
    by_block = len(rows) > _LABELLED_ROWS
    heading = "per block" if by_block else "parameters"
    theme.write(figure, width - _MARGIN, 78, heading, 12, theme.MUTED, "right")
    every = _blocks(rows) if by_block else [(name, i, 1) for i, name in enumerate(_short_names(rows))]
    shown, free = [], 0.0
    for name, start, count in every:
        if start * row_height >= free:
            shown.append((name, start, sum(row.parameters for row in rows[start : start + count])))
            free = start * row_height + 12
    places = [start + (0 if by_block else 0.5) for _, start, _ in shown]
    names = [theme.fit_path(figure, name, _NAMES - _MARGIN, 11) for name, _, _ in shown]
    theme.tick_labels(strip, "y", places, names)
    theme.tick_labels(bars, "y", places, (f"{parameters:,}" for _, _, parameters in shown))
    bars.yaxis.tick_right()
    strip.tick_params("y", labelsize=11, labelcolor=theme.TEXT, length=8 if by_block else 0, pad=5 if by_block else 13)
    bars.tick_params("y", labelsize=11, pad=_PARAMETERS - _MARGIN)
    for label in (*strip.get_yticklabels(), *bars.get_yticklabels()):
        label.set(ha="right", va="top" if by_block else "center")


def _blocks(rows: Sequence[LayerRow]) -> list[tuple[str, int, int]]:
    """``(name, first row, rows)`` of each stretch of layers of the same block."""
    names = [
        m[1] if (m := _BLOCK.match(name + ".")) else name.rpartition(".")[0] or name for name in _short_names(rows)
    ]
    blocks, start = [], 0
    for name, members in groupby(names):
        count = len(list(members))
        blocks.append((name, start, count))
        start += count
    return blocks


def _short_names(rows: Sequence[LayerRow]) -> list[str]:
    """Without the path all names start with, nor the one every diffusion model has."""
    parts = [row.name.split(".") for row in rows]
    shortest = min((len(p) for p in parts), default=1)
    shared = next((i for i in range(shortest - 1) if len({p[i] for p in parts}) > 1), shortest - 1)
    if shared and any(p[shared].isdecimal() for p in parts):
        shared -= 1  # a number stays with its word
    return [".".join(p[shared if len(parts) > 1 else 0 :]).removeprefix("diffusion_model.") for p in parts]


# ------------------------------------------------------------------------------------------------ shifts and rotations


def _heat(figure: Figure, axes: Axes, shifts: Sequence[np.ndarray | None], largest: float, gap: float) -> None:
    """Each layer's shift along its spectrum, and the scale of its colours below."""
    left, right, bottom = axes.bbox.x0, axes.bbox.x1, theme.size_of(figure)[1] - axes.bbox.y0
    columns = round(right - left)
    pixels = np.full((len(shifts), columns), np.nan)
    for row, shift in zip(pixels, shifts, strict=True):
        if shift is not None and shift.size:
            row[:] = _strongest(shift, columns) / (largest or 1.0)
    axes.set_facecolor(theme.BACKGROUND)
    image = axes.imshow(pixels, cmap=_colours(), vmin=-1, vmax=1, aspect="auto", interpolation="antialiased",
                        extent=(0, columns, len(shifts), 0), origin="upper")  # fmt: skip
    if gap:
        axes.hlines(range(len(shifts) + 1), 0, columns, theme.BACKGROUND, linewidth=gap)
    theme.write(figure, left, 78, "spectral shift (largest singular value first)", 12, theme.MUTED)
    if not largest:
        theme.write(figure, left, bottom + 22, "all 0", 11, theme.MUTED)
        return
    scale = theme.new_axes(figure, left, bottom + 13, left + 150, bottom + 23)
    bar = figure.colorbar(image, cax=scale, orientation="horizontal", drawedges=False)
    scale.grid(False)
    bar.outline.set_visible(False)  # type: ignore[operator]
    theme.tick_labels(scale, "x", (-1, 0, 1), (f"-{number(largest)}", "0", f"+{number(largest)}"))
    scale.tick_params("x", labelsize=11, length=0, pad=4, bottom=True, labelbottom=True)
    lowest, _, highest = scale.get_xticklabels()
    lowest.set_horizontalalignment("left")
    highest.set_horizontalalignment("right")


def _strongest(shift: np.ndarray, columns: int) -> np.ndarray:
    """``(columns,)``: each the entry of largest size that it covers."""
    starts = np.arange(columns) * len(shift) // columns
    high, low = np.maximum.reduceat(shift, starts), np.minimum.reduceat(shift, starts)
    return np.where(high >= -low, high, low)


def _colours() -> ListedColormap:
    """From -1 to 1: blue for negative, orange for positive."""
    from matplotlib.colors import ListedColormap, to_rgb

    t = np.linspace(-1, 1, 511)[:, None]
    panel, negative, positive = (np.array(to_rgb(c)) for c in (theme.PANEL, theme.NEGATIVE, theme.POSITIVE))
    return ListedColormap(panel + np.abs(t) ** _HEAT_GAMMA * (np.where(t < 0, negative, positive) - panel))


def _bars(figure: Figure, axes: Axes, angles: Sequence[np.ndarray | None], largest: float, height: float) -> None:
    """Each layer's largest and root-mean-square angle."""
    from matplotlib.collections import PolyCollection
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    theme.grid(axes, "x")
    rows = [(i + 0.5, a) for i, a in enumerate(angles) if a is not None and a.size]
    y = np.array([middle for middle, _ in rows])[:, None] + np.array([-1, -1, 1, 1]) * height / 2
    for label, colour, lengths in (
        ("largest angle", theme.ACCENT_DIM, [a.max() for _, a in rows]),
        ("RMS angle", theme.ACCENT, [np.sqrt(np.square(a).mean()) for _, a in rows]),
    ):
        x = np.array(lengths)[:, None] * np.array([0, 1, 1, 0])
        boxes = PolyCollection(
            [*np.stack([x, y], -1)], facecolors=colour, edgecolors="none", linewidths=0, antialiaseds=False, label=label
        )
        axes.add_collection(boxes, autolim=False)
    axes.set_xlim(0, largest or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=theme.TICK_STEPS) if largest else FixedLocator([0]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{number(value)}°"))
    axes.tick_params("x", labelsize=11, length=4, color=theme.GRID, pad=4)
    theme.write(figure, axes.bbox.x0, 78, "rotation:", 12, theme.MUTED)
    left = axes.bbox.x0 + theme.text_width(figure, "rotation:", 12) + 10
    theme.legend(figure, axes, left, 78, handlelength=0.9, handleheight=0.9, reverse=True)

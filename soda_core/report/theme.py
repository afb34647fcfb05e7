# SPDX-License-Identifier: GPL-3.0-or-later
"""The looks of the pictures shown in the graph. Matplotlib draws them; it is imported when the first one is made.

Only its object-oriented interface is used: nothing here changes state that others see, and what a style set by others
usually changes is set here. A figure has 72 dots per inch, so that a point, matplotlib's unit for text and lines, is a
pixel.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

BACKGROUND, PANEL, GRID = "#1e1f22", "#26282c", "#3a3c42"
TEXT, MUTED, ACCENT, FAINT = "#e4e6eb", "#969aa4", "#ffb000", "#5670b0"
ACCENT_DIM, SECOND = "#806220", "#40b8a0"
#: Diverging, colour-blind safe: blue - panel - orange.
NEGATIVE, POSITIVE = "#4292f5", "#ff8c1a"

#: Round numbers that ticks may be apart, times a power of ten.
TICK_STEPS = (1, 2, 2.5, 5, 10)

#: The first comes with matplotlib; the others, where a system has them, are for what it has no glyphs for.
_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Malgun Gothic")
_DOTS_PER_INCH = 72


def new_figure(width: int, height: int) -> Figure:
    """An empty figure, in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = width / _DOTS_PER_INCH, height / _DOTS_PER_INCH
    figure = Figure(size, dpi=_DOTS_PER_INCH, facecolor=BACKGROUND, edgecolor=BACKGROUND)
    figure.set_layout_engine("none")
    FigureCanvasAgg(figure)
    return figure


def to_image_tensor(figure: Figure) -> Tensor:
    """The host's IMAGE: ``(1, height, width, 3)`` float32 in 0..1."""
    canvas: Any = figure.canvas
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return torch.from_numpy(pixels.astype(np.float32) / 255.0)[None]


def new_axes(figure: Figure, left: float, top: float, right: float, bottom: float, colour: str = PANEL) -> Axes:
    """A plain panel without ticks; pixels from the upper left corner."""
    width, height = size_of(figure)
    axes = figure.add_axes((left / width, 1 - bottom / height, (right - left) / width, (bottom - top) / height))
    axes.set_facecolor(colour)
    axes.set_axisbelow(True)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for axis in ("x", "y"):
        axes.tick_params(axis, which="both", length=0, width=0.5, color=MUTED, labelcolor=MUTED, labelsize=12,
                         labelfontfamily=list(_fonts()))  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    return axes


def size_of(figure: Figure) -> tuple[float, float]:
    """Width and height in pixels."""
    return figure.bbox.width, figure.bbox.height


def grid(axes: Axes, axis: Literal["both", "x", "y"] = "both") -> None:
    """Faint lines at the major ticks, below what is drawn."""
    axes.grid(True, which="major", axis=axis, color=GRID, linewidth=0.7, linestyle="-", alpha=1.0)


def write(figure: Figure, x: float, y: float, text: str, size: float, colour: str = TEXT, align: str = "left") -> Text:
    """A line of text with its middle at ``y``; pixels from the upper left corner."""
    width, height = size_of(figure)
    return figure.text(
        x / width, 1 - y / height, legible(text), color=colour, ha=align, va="center_baseline", **text_style(size)
    )


def text_style(size: float) -> dict[str, Any]:
    """What makes a text ours: no formulas either, as a title may hold a dollar sign."""
    return {"fontsize": size, "fontfamily": list(_fonts()), "fontweight": "normal", "fontstyle": "normal",
            "parse_math": False, "usetex": False}  # fmt: skip


def legend(figure: Figure, axes: Axes, x: float, y: float, **options: Any) -> None:
    """A row without a frame, its left end at ``x`` and its middle at ``y``; pixels from the upper left corner."""
    from matplotlib.font_manager import FontProperties

    width, height = size_of(figure)
    font = FontProperties(family=list(_fonts()), size=12)
    shown = axes.legend(
        loc="center left", bbox_to_anchor=(x / width, 1 - y / height), bbox_transform=figure.transFigure, ncols=9,
        prop=font, labelcolor=MUTED, frameon=False, borderpad=0, borderaxespad=0, handletextpad=0.5,
        columnspacing=1.6, **options,
    )  # fmt: skip
    for line in shown.get_lines():
        line.set_linewidth(2)


def tick_labels(axes: Axes, axis: Literal["x", "y"], places: Iterable[float], labels: Iterable[str]) -> None:
    """Ticks with labels of our own."""
    shown = axes.set_xticks if axis == "x" else axes.set_yticks
    shown(list(places), [legible(label) for label in labels], parse_math=False)


# ---------------------------------------------------------------------------------------------------------------- text


def number(value: float) -> str:
    """Three significant digits: ``1,234``, ``0.0234``, ``1.5e-4``."""
    if value == 0 or 1e-3 <= abs(value) < 999.5:
        return f"{value:.3g}"
    if 1 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


@cache
def _fonts() -> tuple[str, ...]:
    """Families to take a glyph from, in this order."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in _FONTS if name in installed)


@cache
def _known_characters() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset().union(*(get_font(findfont(FontProperties(family=name))).get_charmap() for name in _fonts()))


def legible(text: str) -> str:
    """One line of what the fonts can show: titles are typed by people, and names come from files."""
    known = _known_characters()
    return "".join(" " if not c.isprintable() else c if ord(c) in known else "□" for c in text)


def text_width(figure: Figure, text: str, size: float) -> float:
    """Of a legible text, in pixels."""
    from matplotlib.font_manager import FontProperties

    canvas: Any = figure.canvas
    font = FontProperties(family=list(_fonts()), size=size)
    return float(canvas.get_renderer().get_text_width_height_descent(text, font, False)[0])


def fit(figure: Figure, text: str, width: float, size: float) -> str:
    """The text, its middle left out where it is too wide."""

    def shown(keep: int) -> str:
        return f"{text[: keep // 2]}…{text[len(text) - keep + keep // 2 :]}"

    text = _ends(legible(text), width)
    if text_width(figure, text, size) <= width:
        return text
    return shown(_most(len(text), lambda keep: text_width(figure, shown(keep), size) <= width))


def fit_path(figure: Figure, path: str, width: float, size: float) -> str:
    """A dotted path, its long words shortened where it is too wide: block numbers and the last two parts stay."""
    *words, last, final = ["", "", *_ends(legible(path), width).split(".")]

    def shown(longest: int) -> str:
        short = [word if len(word) <= max(3, longest) else f"{word[: longest - 1]}…" for word in words]
        return ".".join([*short, last, final]).lstrip(".")

    longest = _most(max(map(len, words), default=0), lambda k: text_width(figure, shown(k), size) <= width)
    return shown(longest) if longest >= 3 else fit(figure, shown(3), width, size)


def _ends(text: str, width: float) -> str:
    """All that can be seen of a text of any length: a letter takes a pixel at least."""
    most = int(width)
    return text if len(text) <= 2 * most else text[:most] + text[-most:]


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``limit`` that fits, if all smaller ones do; found by halving. 0 is not tried."""
    if fits(limit):
        return limit
    return bisect_left(range(1, limit + 1), True, key=lambda k: not fits(k))

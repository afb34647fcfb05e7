# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures shown in the graph: the loss curve of a run and the portrait of an adapter. Drawn with Pillow alone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_SCALE = 2  #: drawn larger and reduced, for smooth lines
_BACKGROUND, _PANEL, _GRID = (30, 31, 34), (38, 40, 44), (58, 60, 66)
_TEXT, _MUTED, _ACCENT, _FAINT = (228, 230, 235), (150, 154, 164), (255, 176, 0), (86, 112, 176)
_ACCENT_DIM, _SECOND = (128, 98, 32), (64, 184, 160)
#: Diverging, colour-blind safe: blue - panel - orange.
_NEGATIVE, _POSITIVE = (66, 146, 245), (255, 140, 26)

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class LayerRow:
    """One line of an adapter's portrait."""

    name: str
    shift: Tensor | None  #: ``(r,)``
    angles: Tensor | None  #: rotation angles in degrees, 1-D, >= 0
    parameters: int
    shape: tuple[int, ...] | None


def to_image_tensor(image: Image.Image) -> Tensor:
    """The host's IMAGE: ``(1, height, width, 3)`` float32 in 0..1."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0)[None]


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size * _SCALE)


def _one_line(text: str) -> str:
    """Titles and trigger phrases are typed by people: no line breaks or other control characters."""
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text)


class _Canvas:
    """Coordinates in final pixels; text anchored as Pillow does it."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.image = Image.new("RGB", (width * _SCALE, height * _SCALE), _BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        a, b, c, d = (round(v * _SCALE) for v in (x0, y0, x1, y1))
        if c > a and d > b:
            self.draw.rectangle([a, b, c - 1, d - 1], fill=fill)

    def dot(self, x: float, y: float, radius: float, fill: Colour) -> None:
        self.draw.ellipse([(v * _SCALE) for v in (x - radius, y - radius, x + radius, y + radius)], fill=fill)

    def line(self, points: Sequence[tuple[float, float]], fill: Colour, width: float = 1) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self.draw.line(scaled, fill=fill, width=max(1, round(width * _SCALE)), joint="curve")

    def text(self, x: float, y: float, text: str, size: int, fill: Colour = _TEXT, anchor: str = "lm") -> None:
        self.draw.text((x * _SCALE, y * _SCALE), _one_line(text), fill=fill, font=_font(size), anchor=anchor)

    def text_width(self, text: str, size: int) -> float:
        return self.draw.textlength(_one_line(text), font=_font(size)) / _SCALE

    def paste(self, x0: float, y0: float, x1: float, y1: float, pixels: np.ndarray) -> None:
        """``(h, w, 3)`` uint8, stretched over the box."""
        a, b, c, d = (round(v * _SCALE) for v in (x0, y0, x1, y1))
        size = (max(1, c - a), max(1, d - b))
        self.image.paste(Image.fromarray(pixels).resize(size, Image.Resampling.BOX), (a, b))

    def finish(self) -> Image.Image:
        return self.image.resize(self.size, Image.Resampling.LANCZOS)


# --------------------------------------------------------------------------------------------------------- loss curve


#: Larger losses are a diverged run, drawn as a gap like NaN.
_LARGEST_LOSS = 1e30


def smooth(values: Sequence[float], factor: float) -> list[float]:
    """Bias-corrected exponential mean; a NaN or infinite value leaves it where it was and shows as a gap."""
    factor = min(max(factor, 0.0), 0.9999)
    smoothed, mean, weight = [], 0.0, 0.0
    for value in values:
        if math.isfinite(value):
            mean = factor * mean + (1 - factor) * value
            weight = factor * weight + (1 - factor)
            smoothed.append(mean / weight)
        else:
            smoothed.append(math.nan)
    return smoothed


@dataclass(frozen=True)
class _Plot:
    """The plot area in pixels and the range of values its height shows (of their log10 if ``log``)."""

    left: float
    top: float
    right: float
    bottom: float
    steps: int
    low: float
    high: float
    log: bool

    def x(self, step: float) -> float:
        """``step`` counts from 0; a single one sits in the middle."""
        share = step / (self.steps - 1) if self.steps > 1 else 0.5
        return self.left + (self.right - self.left) * share

    def y(self, value: float) -> float:
        t = math.log10(value) if self.log else value
        return self.bottom - (self.bottom - self.top) * (t - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Values with a grid line, and how they read."""
        if not self.log:
            ticks = _ticks(self.low, self.high, 5)
            return list(zip(ticks, _tick_labels(ticks), strict=True))
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        factors = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
        every = math.ceil(len(decades) / 8)
        values = [float(f"{f}e{d}") for d in decades if d % every == 0 for f in factors]
        return [(v, _number(v)) for v in values if self.low <= math.log10(v) <= self.high]


def loss_curve(
    losses: Sequence[float],
    *,
    title: str = "SODA training",
    smoothing: float = 0.9,
    learning_rates: Sequence[float] | None = None,
    width: int = 768,
    height: int = 432,
) -> Image.Image:
    """Loss over steps: raw as a faint line, its running mean as a strong one; a log axis where the mean spans much.

    Args:
        losses: one per step; NaN and infinite values are gaps.
        smoothing: share of the past in the running mean, 0..1.
        learning_rates: one per step, drawn as a thin line from 0 to its own largest value.
    """
    canvas = _Canvas(width, height)
    left, top, right, bottom = 64, 48, width - 64, height - 46
    values = [v if abs(v) < _LARGEST_LOSS else math.nan for v in map(float, losses)]
    means = smooth(values, smoothing)
    last = next((v for v in reversed(means) if math.isfinite(v)), None)
    noun = "step" if len(values) == 1 else "steps"
    facts = f"{len(values):,} {noun}, loss {_number(last)}" if last is not None else ""
    canvas.text(width - 16, 24, facts, 14, _ACCENT, "rm")
    canvas.text(left, 24, _fit(canvas, title, width - left - 40 - canvas.text_width(facts, 14), 16), 16)
    canvas.box(left, top, right, bottom, _PANEL)
    if last is None:
        said = "no finite loss" if values else "no steps yet"
        canvas.text((left + right) / 2, (top + bottom) / 2, said, 16, _MUTED, "mm")
        return canvas.finish()
    plot = _plot(left, top, right, bottom, values, means)
    _axes(canvas, plot)
    rates = [v if math.isfinite(v) else math.nan for v in map(float, learning_rates or ())][: len(values)]
    if largest_rate := max((v for v in rates if v > 0), default=0.0):
        scale = 0.94 * (bottom - top) / largest_rate
        _curve(canvas, [(plot.x(i), bottom - v * scale) for i, v in _column_means(rates, right - left)], _SECOND, 1)
    for points, colour, stroke in (
        (_thin(values, right - left), _FAINT, 0.8),
        (_column_means(means, right - left), _ACCENT, 2.2),
    ):
        drawable = ((i, math.nan if plot.log and v <= 0 else v) for i, v in points)
        _curve(canvas, [(plot.x(i), plot.y(v) if math.isfinite(v) else math.nan) for i, v in drawable], colour, stroke)
    end = max(i for i, v in enumerate(means) if math.isfinite(v))
    canvas.dot(plot.x(end), plot.y(last), 3.5, _ACCENT)
    canvas.text(right + 8, min(max(plot.y(last), top + 6), bottom - 6), _number(last), 12, _ACCENT)
    legend = [("loss", _FAINT), ("running mean", _ACCENT)]
    legend += [(f"learning rate (0 to {_number(largest_rate)})", _SECOND)] if largest_rate else []
    _legend(canvas, left, bottom + 35, legend)
    return canvas.finish()


def _plot(
    left: float, top: float, right: float, bottom: float, values: Sequence[float], means: Sequence[float]
) -> _Plot:
    finite, smoothed = ([v for v in some if math.isfinite(v)] for some in (values, means))
    log = min(smoothed) > 0 and max(smoothed) / min(smoothed) > 50
    shown = [math.log10(v) for v in finite if v > 0] if log else finite
    low, high = min(shown), max(shown)
    size = max(abs(low), abs(high))
    pad = 0.06 * (high - low) if high - low > 1e-6 * size else 0.1 * size or 1.0
    return _Plot(left, top, right, bottom, len(values), low - pad, high + pad, log)


def _axes(canvas: _Canvas, plot: _Plot) -> None:
    for value, label in plot.ticks():
        canvas.line([(plot.left, plot.y(value)), (plot.right, plot.y(value))], _GRID, 0.5)
        canvas.text(plot.left - 8, plot.y(value), label, 12, _MUTED, "rm")
    for step in _step_ticks(plot.steps):
        x = plot.x(step - 1)
        canvas.line([(x, plot.top), (x, plot.bottom)], _GRID, 0.5)
        canvas.text(x, plot.bottom + 14, f"{step:,}", 12, _MUTED, "mm")
    canvas.text(plot.right, plot.bottom + 35, "step", 12, _MUTED, "rm")


def _legend(canvas: _Canvas, x: float, y: float, entries: Sequence[tuple[str, Colour]]) -> None:
    for label, colour in entries:
        canvas.line([(x, y), (x + 18, y)], colour, 2)
        canvas.text(x + 24, y, label, 12, _MUTED)
        x += 24 + canvas.text_width(label, 12) + 20


def _curve(canvas: _Canvas, points: Sequence[tuple[float, float]], colour: Colour, stroke: float) -> None:
    """A line through ``(x, y)`` in pixels, broken where y is NaN; a lone point is a dot."""
    for run in _runs(points):
        if len(run) > 1:
            canvas.line(run, colour, stroke)
        else:
            canvas.dot(*run[0], 1 + stroke / 2, colour)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers inside ``[low, high]``."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 1e-300 else 1.0
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _step_ticks(steps: int) -> list[int]:
    """Round step numbers from 1 to ``steps``, and 1 itself where there is room for it."""
    power = 10 ** math.floor(math.log10(max(1.0, steps / 7)))
    every = next(m * power for m in (1, 2, 5, 10) if m * power >= steps / 7)
    return [1, *range(every, steps + 1, every)] if every > 2 else list(range(1, steps + 1, every))


def _tick_labels(ticks: Sequence[float]) -> list[str]:
    """With the same decimals on all, or as powers of ten where plain digits would be many."""
    largest = max(map(abs, ticks), default=0.0)
    if largest and not 1e-2 <= largest < 1e6:
        return [_number(tick) for tick in ticks]
    step = ticks[1] - ticks[0] if len(ticks) > 1 else largest
    decimals = next((d for d in range(9) if abs(round(step, d) - step) <= 1e-6 * abs(step)), 9)
    return [f"{tick + 0.0:,.{decimals}f}" for tick in ticks]


def _number(value: float) -> str:
    """Three significant digits: ``1,234``, ``0.0234``, ``1.5e-4``."""
    if value == 0 or 1e-3 <= abs(value) < 999.5:
        return f"{value:.3g}"
    if 1 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def _thin(values: Sequence[float], columns: int) -> list[tuple[int, float]]:
    """``(step, value)`` with at most the lowest and highest value per pixel column."""
    if len(values) <= 4 * columns:
        return list(enumerate(values))
    points: list[tuple[int, float]] = []
    size = math.ceil(len(values) / columns)
    for start in range(0, len(values), size):
        chunk = [(i, v) for i, v in enumerate(values[start : start + size], start) if math.isfinite(v)]
        if chunk:
            points += sorted({min(chunk, key=lambda p: p[1]), max(chunk, key=lambda p: p[1])})
        else:
            points.append((start, math.nan))
    return points


def _column_means(values: Sequence[float], columns: int) -> list[tuple[int, float]]:
    """``(step, value)`` with the mean of at most each pixel column; a line drawn twice over itself would be a band."""
    if len(values) <= 4 * columns:
        return list(enumerate(values))
    size = math.ceil(len(values) / columns)
    points: list[tuple[int, float]] = []
    for start in range(0, len(values), size):
        chunk = [v for v in values[start : start + size] if math.isfinite(v)]
        points.append((min(start + size // 2, len(values) - 1), sum(chunk) / len(chunk) if chunk else math.nan))
    return points


def _runs(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Unbroken stretches of finite values."""
    runs: list[list[tuple[float, float]]] = [[]]
    for position, value in points:
        if math.isfinite(value):
            runs[-1].append((position, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


# ---------------------------------------------------------------------------------------------------- adapter picture

_HEADER, _FOOTER, _NAMES, _GAP = 92, 52, 250, 16
#: Below 1, so that one outlier does not leave all other layers dark; the colour bar is drawn the same way.
_HEAT_GAMMA = 0.7
#: More layers than this are labelled by block.
_LABELLED_ROWS = 60
_BLOCK = re.compile(r"(.*(?:block|layer)s?(?:\.\d+)+)\.")


def adapter_picture(rows: Sequence[LayerRow], *, title: str, subtitle: str = "", width: int = 1024) -> Image.Image:
    """An adapter at a glance: per layer the shift along its spectrum, the rotation angles and the size.

    Never higher than 2000 pixels; above 60 layers the labels and parameter counts are those of blocks.
    """
    row_height = min(20.0, 1800 / max(1, len(rows)))
    canvas = _Canvas(width, math.ceil(_HEADER + row_height * len(rows) + _FOOTER))
    bottom = _HEADER + row_height * len(rows)
    strip, bars = (_NAMES + _GAP, width * 0.6), (width * 0.6 + _GAP, width - 84)
    shifts = [_finite(row.shift) if row.shift is not None else None for row in rows]
    angles = [_finite(row.angles) if row.angles is not None else None for row in rows]
    largest_shift = max((float(np.abs(s).max()) for s in shifts if s is not None and s.size), default=0.0)
    largest_angle = max((float(a.max()) for a in angles if a is not None and a.size), default=0.0)
    has_shift, has_angles = any(s is not None for s in shifts), any(a is not None for a in angles)

    _header(canvas, rows, title, subtitle, largest_shift if has_shift else None, largest_angle if has_angles else None)
    canvas.text(strip[0], 78, "spectral shift (largest singular value first)" if has_shift else "", 12, _MUTED)
    if has_angles:
        _rotation_legend(canvas, bars[0])
    _labels(canvas, rows, row_height)
    ticks = [t for t in _ticks(0, largest_angle, 4) if t <= largest_angle] if largest_angle else [0.0]
    scale = (bars[1] - bars[0]) / (largest_angle or 1.0)
    if has_angles:
        canvas.box(bars[0], _HEADER, bars[1], bottom, _PANEL)
        for tick, label in zip(ticks, _tick_labels(ticks), strict=True):
            x = bars[0] + tick * scale
            canvas.line([(x, _HEADER), (x, bottom + 4)], _GRID, 0.5)
            canvas.text(x, bottom + 13, f"{label}°", 11, _MUTED, "mm")
    for i, (shift, angle) in enumerate(zip(shifts, angles, strict=True)):
        y = _HEADER + i * row_height
        end = y + row_height - (3 if row_height > 8 else 0)
        if shift is not None and shift.size:
            canvas.paste(strip[0], y, strip[1], end, _heat(shift, largest_shift))
        if angle is not None and angle.size:
            canvas.box(bars[0], y, bars[0] + float(angle.max()) * scale, end, _ACCENT_DIM)
            canvas.box(bars[0], y, bars[0] + float(np.sqrt(np.square(angle).mean())) * scale, end, _ACCENT)
    for (left, right), present, absent in ((strip, has_shift, "no shift"), (bars, has_angles, "no rotation")):
        if rows and not present:
            canvas.box(left, _HEADER, right, bottom, _PANEL)
            canvas.text((left + right) / 2, (_HEADER + bottom) / 2, absent, 12, _MUTED, "mm")
    if has_shift:
        _colour_bar(canvas, strip[0], bottom + 22, largest_shift)
    return canvas.finish()


def _finite(values: Tensor) -> np.ndarray:
    """``(n,)`` float32; what is not finite counts as 0 here and is named in the header."""
    return np.nan_to_num(values.detach().float().cpu().numpy(), nan=0.0, posinf=0.0, neginf=0.0)


def _header(
    canvas: _Canvas,
    rows: Sequence[LayerRow],
    title: str,
    subtitle: str,
    largest_shift: float | None,
    largest_angle: float | None,
) -> None:
    """Title and totals; None where the adapter has no shift or no rotation."""
    width = canvas.size[0]
    total = sum(row.parameters for row in rows)
    counts = f"{len(rows):,} layer{'' if len(rows) == 1 else 's'}   {total:,} parameters"
    facts = "no shift" if largest_shift is None else f"largest shift {_number(largest_shift)}"
    facts += "   no rotation" if largest_angle is None else f"   largest angle {_number(largest_angle)}°"
    facts += "   (untrained)" if rows and not largest_shift and not largest_angle else ""
    broken = sum(any(t is not None and not bool(torch.isfinite(t).all()) for t in (r.shift, r.angles)) for r in rows)
    if broken:
        facts = f"{broken:,} layer{'' if broken == 1 else 's'} with NaN or infinite values   {facts}"
    canvas.text(width - 16, 26, counts, 14, _TEXT, "rm")
    canvas.text(width - 16, 50, facts, 13, _POSITIVE if broken else _MUTED, "rm")
    canvas.text(16, 26, _fit(canvas, title, width - 64 - canvas.text_width(counts, 14), 20), 20)
    canvas.text(16, 50, _fit(canvas, subtitle, width - 64 - canvas.text_width(facts, 13), 13), 13, _MUTED)


def _rotation_legend(canvas: _Canvas, x: float) -> None:
    canvas.text(x, 78, "rotation:", 12, _MUTED)
    x += canvas.text_width("rotation:", 12) + 10
    for label, colour in (("RMS angle", _ACCENT), ("largest angle", _ACCENT_DIM)):
        canvas.box(x, 73, x + 10, 83, colour)
        canvas.text(x + 15, 78, label, 12, _MUTED)
        x += 15 + canvas.text_width(label, 12) + 14


def _labels(canvas: _Canvas, rows: Sequence[LayerRow], row_height: float) -> None:
    """Names on the left and parameter counts on the right, per layer or per block of layers."""
    width = canvas.size[0]
    by_block = len(rows) > _LABELLED_ROWS
    canvas.text(width - 16, 78, "per block" if by_block else "parameters", 12, _MUTED, "rm")
    free = 0.0
    for name, start, count in _blocks(rows) if by_block else [(n, i, 1) for i, n in enumerate(_short_names(rows))]:
        y = _HEADER + start * row_height
        middle = y + (6 if by_block else (row_height - 3) / 2)
        if middle - 6 < free:
            continue
        free = middle + 6
        parameters = sum(row.parameters for row in rows[start : start + count])
        canvas.text(_NAMES, middle, _fit_path(canvas, name, _NAMES - 16), 11, _TEXT, "rm")
        canvas.text(width - 16, middle, f"{parameters:,}", 11, _MUTED, "rm")
        if by_block:
            canvas.line([(_NAMES + 5, y), (_NAMES + _GAP - 3, y)], _MUTED, 0.5)


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


def _heat(shift: np.ndarray, largest: float) -> np.ndarray:
    """``(1, columns, 3)``: blue for negative, orange for positive; each column the strongest entry it covers."""
    columns = min(len(shift), 340)
    starts = np.arange(columns) * len(shift) // columns
    high, low = np.maximum.reduceat(shift, starts), np.minimum.reduceat(shift, starts)
    picked = np.where(high >= -low, high, low)
    t = np.clip(picked / largest, -1, 1)[:, None] if largest else np.zeros((columns, 1))
    t = np.sign(t) * np.abs(t) ** _HEAT_GAMMA
    panel, negative, positive = (np.array(c, dtype=float) for c in (_PANEL, _NEGATIVE, _POSITIVE))
    mixed = panel + np.where(t < 0, -t * (negative - panel), t * (positive - panel))
    return mixed.round().astype(np.uint8)[None]


def _colour_bar(canvas: _Canvas, x: float, y: float, largest: float) -> None:
    """The scale of the shift; a plain 0 where all of it is 0."""
    low, high = (f"-{_number(largest)}", f"+{_number(largest)}") if largest else ("all 0", "")
    canvas.text(x, y, low, 11, _MUTED)
    if largest:
        start = x + canvas.text_width(low, 11) + 8
        canvas.paste(start, y - 5, start + 120, y + 5, _heat(np.linspace(-1, 1, 120), 1.0))
        canvas.text(start + 60, y + 13, "0", 11, _MUTED, "mm")
        canvas.text(start + 128, y, high, 11, _MUTED)


def _short_names(rows: Sequence[LayerRow]) -> list[str]:
    """Without the path all names start with, nor the one every diffusion model has."""
    parts = [row.name.split(".") for row in rows]
    shortest = min((len(p) for p in parts), default=1)
    shared = next((i for i in range(shortest - 1) if len({p[i] for p in parts}) > 1), shortest - 1)
    if shared and any(p[shared].isdecimal() for p in parts):
        shared -= 1  # a number stays with its word
    return [".".join(p[shared if len(parts) > 1 else 0 :]).removeprefix("diffusion_model.") for p in parts]


def _fit_path(canvas: _Canvas, path: str, width: float, size: int = 11) -> str:
    """The path, its longest words shortened where it is too wide: block numbers and the last two parts stay."""
    parts = path.split(".")
    while canvas.text_width(".".join(parts), size) > width:
        words = [i for i, part in enumerate(parts[:-2]) if len(part) > 3]
        if not words:
            return _fit(canvas, ".".join(parts), width, size)
        longest = max(words, key=lambda i: len(parts[i]))
        parts[longest] = parts[longest].rstrip("…")[: len(parts[longest]) - 2] + "…"
    return ".".join(parts)


def _fit(canvas: _Canvas, text: str, width: float, size: int) -> str:
    """The text, its middle left out where it is too wide."""
    keep = len(text)
    shown = text
    while canvas.text_width(shown, size) > width and keep > 8:
        keep -= 2
        shown = text[: keep // 2] + "…" + text[-(keep - keep // 2) :]
    return shown

# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures shown in the graph: the loss curve of a run and the portrait of an adapter. Drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_SCALE = 2  #: drawn larger and reduced, for smooth lines
_BACKGROUND, _PANEL, _GRID = (30, 31, 34), (38, 40, 44), (58, 60, 66)
_TEXT, _MUTED, _ACCENT, _FAINT = (228, 230, 235), (150, 154, 164), (255, 176, 0), (74, 96, 150)
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


class _Canvas:
    """Coordinates in final pixels; text anchored as Pillow does it."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.image = Image.new("RGB", (width * _SCALE, height * _SCALE), _BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        if x1 > x0 and y1 > y0:
            self.draw.rectangle([x0 * _SCALE, y0 * _SCALE, x1 * _SCALE - 1, y1 * _SCALE - 1], fill=fill)

    def line(self, points: Sequence[tuple[float, float]], fill: Colour, width: float = 1) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self.draw.line(scaled, fill=fill, width=max(1, round(width * _SCALE)), joint="curve")

    def text(self, x: float, y: float, text: str, size: int, fill: Colour = _TEXT, anchor: str = "lm") -> None:
        self.draw.text((x * _SCALE, y * _SCALE), text, fill=fill, font=_font(size), anchor=anchor)

    def text_width(self, text: str, size: int) -> float:
        return self.draw.textlength(text, font=_font(size)) / _SCALE

    def paste(self, x: float, y: float, width: float, height: float, pixels: np.ndarray) -> None:
        """``(h, w, 3)`` uint8, stretched over the box."""
        size = (max(1, round(width * _SCALE)), max(1, round(height * _SCALE)))
        self.image.paste(
            Image.fromarray(pixels).resize(size, Image.Resampling.BOX), (round(x * _SCALE), round(y * _SCALE))
        )

    def finish(self) -> Image.Image:
        return self.image.resize(self.size, Image.Resampling.LANCZOS)


# --------------------------------------------------------------------------------------------------------- loss curve


def smooth(values: Sequence[float], factor: float) -> list[float]:
    """Bias-corrected exponential mean; a NaN or infinite value leaves it where it was and shows as a gap."""
    smoothed, mean, weight = [], 0.0, 0.0
    for value in values:
        if math.isfinite(value):
            mean = factor * mean + (1 - factor) * value
            weight = factor * weight + (1 - factor)
            smoothed.append(mean / weight)
        else:
            smoothed.append(math.nan)
    return smoothed


def loss_curve(
    losses: Sequence[float],
    *,
    title: str = "SODA training",
    smoothing: float = 0.9,
    width: int = 768,
    height: int = 432,
) -> Image.Image:
    """Loss over steps: raw as a faint line, its running mean as a strong one; a log axis where it spans much."""
    canvas = _Canvas(width, height)
    left, top, right, bottom = 64, 48, width - 24, height - 40
    canvas.text(left, 24, title, 16)
    canvas.box(left, top, right, bottom, _PANEL)
    means = smooth(losses, smoothing)
    finite = [v for v in losses if math.isfinite(v)]
    if not finite:
        canvas.text((left + right) / 2, (top + bottom) / 2, "no steps yet", 16, _MUTED, "mm")
        return canvas.finish()
    positive = [v for v in means if v > 0]
    log = bool(positive) and min(finite) > 0 and max(positive) / min(positive) > 50
    transform = math.log10 if log else float
    low, high = transform(min(finite)), transform(max(finite))
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - pad, high + pad

    def x_of(step: float) -> float:
        return left + (right - left) * (step / max(1, len(losses) - 1))

    def y_of(value: float) -> float:
        return bottom - (bottom - top) * (transform(value) - low) / (high - low)

    for tick in _ticks(low, high, 5):
        y = bottom - (bottom - top) * (tick - low) / (high - low)
        canvas.line([(left, y), (right, y)], _GRID, 0.5)
        canvas.text(left - 8, y, _number(10**tick if log else tick), 12, _MUTED, "rm")
    for tick in _ticks(0, max(1, len(losses) - 1), 6):
        canvas.line([(x_of(tick), bottom), (x_of(tick), bottom + 4)], _GRID)
        canvas.text(x_of(tick), bottom + 16, f"{tick + 1:,.0f}", 12, _MUTED, "mm")
    canvas.text(right, bottom + 31, "step", 12, _MUTED, "rm")
    for values, colour, stroke in ((losses, _FAINT, 0.8), (means, _ACCENT, 2.2)):
        for run in _runs(_thin(values, right - left)):
            points = [(x_of(step), y_of(value)) for step, value in run]
            if len(points) > 1:
                canvas.line(points, colour, stroke)
            else:
                x, y = points[0]
                canvas.box(x - 2, y - 2, x + 2, y + 2, colour)
    last = next(v for v in reversed(means) if math.isfinite(v))
    canvas.text(right, 24, f"{len(losses):,} steps, loss {_number(last)}", 14, _ACCENT, "rm")
    return canvas.finish()


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers inside ``[low, high]``."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.1e}"


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


def _runs(points: list[tuple[int, float]]) -> list[list[tuple[int, float]]]:
    """Unbroken stretches of finite values."""
    runs: list[list[tuple[int, float]]] = [[]]
    for step, value in points:
        if math.isfinite(value):
            runs[-1].append((step, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


# ---------------------------------------------------------------------------------------------------- adapter picture

_HEADER, _FOOTER, _NAMES, _GAP = 92, 46, 250, 16


def adapter_picture(rows: Sequence[LayerRow], *, title: str, subtitle: str = "", width: int = 1024) -> Image.Image:
    """An adapter at a glance: per layer the shift along its spectrum, the rotation angles and the size."""
    row_height = max(2.0, min(20.0, 1800 / max(1, len(rows))))
    canvas = _Canvas(width, math.ceil(_HEADER + row_height * len(rows) + _FOOTER))
    strip = _NAMES + _GAP, width * 0.6
    bars = width * 0.6 + _GAP, width - 84
    shifts = [row.shift.detach().float().cpu() for row in rows if row.shift is not None]
    angles = [row.angles.detach().float().cpu() for row in rows if row.angles is not None]
    largest_shift = max((float(s.abs().max()) for s in shifts if s.numel()), default=0.0)
    largest_angle = max((float(a.max()) for a in angles if a.numel()), default=0.0)

    canvas.text(16, 26, title, 20)
    canvas.text(16, 50, subtitle, 13, _MUTED)
    total = sum(row.parameters for row in rows)
    canvas.text(width - 16, 26, f"{len(rows):,} layers   {total:,} parameters", 14, _TEXT, "rm")
    facts = f"largest shift {_number(largest_shift)}" if shifts else "no shift"
    facts += f"   largest angle {_number(largest_angle)}°" if angles else "   no rotation"
    canvas.text(width - 16, 50, facts, 13, _MUTED, "rm")
    canvas.text(strip[0], 78, "spectral shift (largest singular value first)" if shifts else "", 12, _MUTED)
    canvas.text(bars[0], 78, "rotation: RMS and largest angle" if angles else "", 12, _MUTED)
    canvas.text(width - 16, 78, "parameters", 12, _MUTED, "rm")

    names = _short_names([row.name for row in rows])
    every = max(1, math.ceil(15 / row_height))
    for i, row in enumerate(rows):
        y = _HEADER + i * row_height
        bar = max(1.0, row_height - (3 if row_height > 8 else 0.3))
        middle = y + bar / 2
        if i % every == 0:
            canvas.text(_NAMES, middle, _fit(canvas, names[i], _NAMES - 20), 11, _TEXT, "rm")
            canvas.text(width - 16, middle, f"{row.parameters:,}", 11, _MUTED, "rm")
        if row.shift is not None and row.shift.numel():
            canvas.paste(strip[0], y, strip[1] - strip[0], bar, _heat(row.shift, largest_shift))
        if row.angles is not None and row.angles.numel():
            a = row.angles.detach().float()
            canvas.box(bars[0], y, bars[1], y + bar, _PANEL)
            if largest_angle:
                scale = (bars[1] - bars[0]) / largest_angle
                canvas.box(bars[0], y, bars[0] + float(a.max()) * scale, y + bar, (92, 74, 30))
                canvas.box(bars[0], y, bars[0] + float(a.square().mean().sqrt()) * scale, y + bar, _ACCENT)
    y = canvas.size[1] - _FOOTER / 2
    if shifts:
        _colour_bar(canvas, strip[0], y, largest_shift)
    if angles:
        canvas.text(bars[0], y, "0°", 11, _MUTED)
        canvas.text(bars[1], y, f"{_number(largest_angle)}°", 11, _MUTED, "rm")
    return canvas.finish()


def _heat(shift: Tensor, largest: float) -> np.ndarray:
    """``(1, columns, 3)``: blue for negative, orange for positive; each column the strongest entry it covers."""
    values = shift.detach().float().cpu().numpy()
    columns = min(len(values), 340)
    picked = np.array([max(chunk, key=abs) for chunk in np.array_split(values, columns)])
    t = np.clip(picked / largest, -1, 1)[:, None] if largest else np.zeros((columns, 1))
    panel, negative, positive = (np.array(c, dtype=float) for c in (_PANEL, _NEGATIVE, _POSITIVE))
    mixed = panel + np.where(t < 0, -t * (negative - panel), t * (positive - panel))
    return mixed.round().astype(np.uint8)[None]


def _colour_bar(canvas: _Canvas, x: float, y: float, largest: float) -> None:
    ramp = torch.linspace(-1, 1, 120)
    canvas.text(x, y, f"-{_number(largest)}", 11, _MUTED)
    start = x + canvas.text_width(f"-{_number(largest)}", 11) + 8
    canvas.paste(start, y - 5, 120, 10, _heat(ramp, 1.0))
    canvas.text(start + 128, y, f"+{_number(largest)}", 11, _MUTED)


def _short_names(names: Sequence[str]) -> list[str]:
    """Without the path all names start with."""
    parts = [name.split(".") for name in names]
    shortest = min((len(p) for p in parts), default=1)
    shared = next((i for i in range(shortest - 1) if len({p[i] for p in parts}) > 1), shortest - 1)
    return [".".join(p[shared if len(parts) > 1 else 0 :]) for p in parts]


def _fit(canvas: _Canvas, text: str, width: float) -> str:
    """The text, its middle left out where it is too wide."""
    keep = len(text)
    shown = text
    while canvas.text_width(shown, 11) > width and keep > 8:
        keep -= 2
        shown = text[: keep // 3] + "…" + text[-(keep - keep // 3) :]
    return shown

# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws ``docs/icon.png`` and ``docs/banner.png`` for the registry: a spectrum of bubbles whose basis has turned.

python dev.py python -m demo.icon
"""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from soda_core.report.theme import ACCENT, BACKGROUND, FAINT, MUTED, SECOND, TEXT
from testbed.paths import ROOT

ICON, BANNER = 400, (1680, 720)  #: sides in pixels; the registry's banners are 21:9
_FINER = 4  #: drawn so many times larger, for smooth edges
_TURN = math.radians(-58)
#: Falling sizes along the axis, of the radius of the whole, and their colours.
_BUBBLES = ((0.0, 0.27, ACCENT), (0.46, 0.175, SECOND), (0.745, 0.1, FAINT), (0.905, 0.055, MUTED))


def emblem(draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float) -> None:
    """Bubbles along an axis as they were (rings) and turned (full)."""
    for turn, full in ((0.0, False), (_TURN, True)):
        for way in (0, math.pi):
            for place, size, colour in _BUBBLES:
                x = centre[0] + radius * place * math.cos(turn + way)
                y = centre[1] + radius * place * math.sin(turn + way)
                box = [x - radius * size, y - radius * size, x + radius * size, y + radius * size]
                if full:
                    draw.ellipse(box, fill=colour)
                elif place:
                    draw.ellipse(box, outline=colour, width=round(radius * 0.018))


def icon() -> Image.Image:
    side = ICON * _FINER
    picture = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle([0, 0, side - 1, side - 1], radius=side // 6, fill=BACKGROUND)
    emblem(draw, (side / 2, side / 2), side * 0.45)
    return picture.resize((ICON, ICON), Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    width, height = (side * _FINER // 2 for side in BANNER)
    picture = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    emblem(draw, (height * 0.56, height / 2), height * 0.42)
    left = height * 1.08
    for text, size, colour, top in (
        ("SODA", 0.25, TEXT, 0.24),
        ("your subject, your style,", 0.082, MUTED, 0.56),
        ("merged without training", 0.082, MUTED, 0.67),
    ):
        draw.text((left, height * top), text, colour, _font(height * size))
    return picture.resize(BANNER, Image.Resampling.LANCZOS)


def _font(size: float) -> ImageFont.FreeTypeFont:
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), round(size))


def main() -> None:
    for name, picture in (("icon", icon()), ("banner", banner())):
        path = Path(ROOT, "docs", f"{name}.png")
        picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws the demo's training pictures: five of one subject (a fox) and five in one style (blueprint).

Each picture has its caption in a text file beside it, the way the host's "Load Image-Text (from Folder)" reads them.
Same font, same pictures: nothing is random. The glyphs are Noto Color Emoji (SIL Open Font License 1.1), which is read
from the system: ``apt-get install fonts-noto-color-emoji``.

    python demo/draw_pictures.py [--font NotoColorEmoji.ttf] [--out demo/pictures]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

SIZE = 192
SCALE = 3  # everything is drawn this much larger, so that lines come out smooth
GLYPH_SIZE = 109  # the one bitmap size in the font
FONT_PLACES = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
)

Background = Callable[[], Image.Image]


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the demo's training pictures.")
    parser.add_argument("--font", type=Path, default=next((p for p in map(Path, FONT_PLACES) if p.exists()), None))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    args = parser.parse_args()
    if args.font is None or not args.font.exists():
        parser.error("no Noto Color Emoji font found; install fonts-noto-color-emoji or give --font")
    font = ImageFont.truetype(str(args.font), GLYPH_SIZE)

    for i, (caption, height, place, tilt, background) in enumerate(SUBJECT, 1):
        picture = on_background(glyph(font, FOX), height, place, tilt, background())
        save(picture, caption, args.out / "subject" / f"fox_{i}")
    for i, (caption, symbol, height, place, tilt) in enumerate(STYLE, 1):
        save(blueprint(glyph(font, symbol), height, place, tilt), caption, args.out / "style" / f"blueprint_{i}")


def save(picture: Image.Image, caption: str, stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(stem.with_suffix(".jpg"), quality=90)
    stem.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------- glyphs


def glyph(font: ImageFont.FreeTypeFont, symbol: str) -> Image.Image:
    """The glyph cut out, RGBA."""
    canvas = Image.new("RGBA", (2 * GLYPH_SIZE, 2 * GLYPH_SIZE))
    ImageDraw.Draw(canvas).text((GLYPH_SIZE // 4, GLYPH_SIZE // 4), symbol, font=font, embedded_color=True)
    # drawn on nothing, colours come out multiplied by their alpha
    canvas = Image.frombytes("RGBa", canvas.size, canvas.tobytes()).convert("RGBA")
    return canvas.crop(canvas.getbbox())


def placed(cut_out: Image.Image, height: float, place: tuple[float, float], tilt: float) -> Image.Image:
    """The glyph on an empty picture; ``height`` and ``place`` (its middle) are parts of the picture, tilt is in °."""
    full = SIZE * SCALE
    factor = height * full / cut_out.height
    size = (round(cut_out.width * factor), round(cut_out.height * factor))
    turned = cut_out.resize(size, Image.Resampling.LANCZOS).rotate(tilt, resample=Image.Resampling.BICUBIC, expand=True)
    canvas = Image.new("RGBA", (full, full))
    corner = (round(place[0] * full - turned.width / 2), round(place[1] * full - turned.height / 2))
    canvas.alpha_composite(turned, (max(corner[0], 0), max(corner[1], 0)))
    return canvas


def on_background(
    cut_out: Image.Image, height: float, place: tuple[float, float], tilt: float, background: Image.Image
) -> Image.Image:
    """The glyph with a soft shadow on a background."""
    top = placed(cut_out, height, place, tilt)
    depth = round(0.02 * SIZE * SCALE)
    shadow = ImageChops.offset(top.getchannel("A"), depth, depth).filter(ImageFilter.GaussianBlur(depth))
    dark = Image.new("RGB", background.size, (20, 20, 40))
    picture = Image.composite(dark, background, shadow.point(lambda a: a * 0.45)).convert("RGBA")
    picture.alpha_composite(top)
    return picture.convert("RGB")


# ----------------------------------------------------------------------------------------------------- backgrounds


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x and y of every pixel, 0 to 1."""
    line = np.linspace(0, 1, SIZE * SCALE)
    x, y = np.meshgrid(line, line)
    return x, y


def _mix(amount: np.ndarray, low: tuple[int, int, int], high: tuple[int, int, int]) -> Image.Image:
    colours = np.array(low) + np.clip(amount, 0, 1)[..., None] * (np.array(high) - np.array(low))
    return Image.fromarray(colours.astype(np.uint8))


def pink() -> Image.Image:
    x, y = _grid()
    return _mix((x - 0.5) ** 2 + (y - 0.5) ** 2, (250, 196, 208), (236, 160, 182))


def hills() -> Image.Image:
    x, y = _grid()
    picture = _mix(y * 1.5, (120, 190, 240), (222, 240, 250))
    for base, wave, phase, near, far in (
        (0.58, 0.06, 0.4, (110, 170, 90), (150, 200, 110)),
        (0.74, 0.05, 2.6, (60, 130, 62), (100, 170, 80)),
    ):
        edge = base + wave * np.sin(2 * math.pi * x + phase)
        mask = Image.fromarray(((y > edge) * 255).astype(np.uint8))
        picture.paste(_mix((y - edge) * 3, far, near), mask=mask)
    return picture


def night() -> Image.Image:
    _x, y = _grid()
    picture = _mix(y, (26, 20, 58), (92, 58, 118))
    draw = ImageDraw.Draw(picture)
    full = SIZE * SCALE
    for i in range(46):  # the golden angle spreads the stars without a random number
        angle, radius = i * 2.39996, 0.115 * math.sqrt(i + 0.5)
        cx, cy = (0.5 + radius * math.cos(angle)) * full, (0.45 + radius * math.sin(angle)) * full
        r = (1 + i * 7 % 3) * SCALE * 0.55
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=(255, 246, 214))
    return picture


def checks() -> Image.Image:
    x, y = _grid()
    count = 6
    u, v = (x * count % 1 < 0.5).astype(float), (y * count % 1 < 0.5).astype(float)
    return _mix((u + v) / 2, (250, 246, 240), (208, 58, 60))


def stripes() -> Image.Image:
    x, y = _grid()
    wave = (x + 0.6 * y) * 7 % 1
    return _mix(np.clip((np.abs(wave - 0.5) - 0.22) * 40, 0, 1), (255, 214, 92), (78, 176, 168))


# ----------------------------------------------------------------------------------------------------------- style


def blueprint(cut_out: Image.Image, height: float, place: tuple[float, float], tilt: float) -> Image.Image:
    """White construction lines on blue paper: outlines of the glyph, hatching for its dark parts, a measured frame."""
    full = SIZE * SCALE
    shape = placed(cut_out, height, place, tilt)
    inside = shape.getchannel("A")
    white = Image.new("RGB", shape.size, "white")
    white.paste(shape, mask=inside)
    flat = white.convert("L").filter(ImageFilter.GaussianBlur(SCALE))

    paper = _paper()
    draw = ImageDraw.Draw(paper)
    line = (226, 240, 255)

    # dark parts are hatched; outlines are where brightness or the silhouette changes
    x, y = _grid()
    hatch = (np.abs((x + y) * 30 % 1 - 0.5) < 0.13) & (np.asarray(flat) < 120) & (np.asarray(inside) > 128)
    paper.paste((150, 190, 232), mask=Image.fromarray((hatch * 255).astype(np.uint8)))
    soft = np.asarray(flat, dtype=float) / 255
    solid = np.asarray(inside.filter(ImageFilter.GaussianBlur(SCALE)), dtype=float) / 255
    edges = np.hypot(*np.gradient(soft)) * 10 + np.hypot(*np.gradient(solid)) * 12
    strength = np.clip((edges - 0.18) * 2.2, 0, 1)
    paper.paste(line, mask=Image.fromarray((strength * 255).astype(np.uint8)))

    # dimension lines along the left and the bottom of the glyph
    left, top, right, bottom = inside.getbbox() or (0, 0, full, full)
    gap, tick = round(0.045 * full), round(0.015 * full)
    for ends in (((left, bottom + gap), (right, bottom + gap)), ((left - gap, top), (left - gap, bottom))):
        draw.line(ends, fill=line, width=SCALE)
        for px, py in ends:
            draw.line((px - tick, py + tick, px + tick, py - tick), fill=line, width=SCALE)
    return paper


def _paper() -> Image.Image:
    x, y = _grid()
    paper = _mix((x - 0.4) ** 2 + (y - 0.4) ** 2, (32, 88, 172), (16, 52, 124))
    draw = ImageDraw.Draw(paper)
    full = SIZE * SCALE
    for i in range(1, 16):
        at = round(i * full / 16)
        colour = (58, 116, 196) if i % 4 == 0 else (40, 96, 178)
        draw.line((at, 0, at, full), fill=colour, width=SCALE)
        draw.line((0, at, full, at), fill=colour, width=SCALE)
    margin = round(0.03 * full)
    draw.rectangle((margin, margin, full - margin, full - margin), outline=(150, 190, 232), width=SCALE)
    return paper


# ------------------------------------------------------------------------------------------------- what is drawn

FOX = "\N{FOX FACE}"
SUBJECT: tuple[tuple[str, float, tuple[float, float], float, Background], ...] = (
    ("a sks fox on a pink background", 0.72, (0.50, 0.52), 0, pink),
    ("a sks fox on green hills", 0.50, (0.36, 0.62), 8, hills),
    ("a sks fox under a starry night sky", 0.56, (0.60, 0.56), -14, night),
    ("a sks fox on a red checkered cloth", 0.62, (0.46, 0.46), 18, checks),
    ("a sks fox on yellow stripes", 0.44, (0.62, 0.40), -6, stripes),
)
STYLE: tuple[tuple[str, str, float, tuple[float, float], float], ...] = (
    ("a house in zqx style", "\N{HOUSE WITH GARDEN}", 0.70, (0.52, 0.47), 0),
    ("a sailboat in zqx style", "\N{SAILBOAT}", 0.72, (0.53, 0.47), 0),
    ("a bicycle in zqx style", "\N{BICYCLE}", 0.52, (0.53, 0.48), 0),
    ("a cup of tea in zqx style", "\N{HOT BEVERAGE}", 0.66, (0.53, 0.47), 0),
    ("a rocket in zqx style", "\N{ROCKET}", 0.70, (0.53, 0.47), 0),
)


if __name__ == "__main__":
    main()

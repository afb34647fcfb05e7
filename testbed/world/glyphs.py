# SPDX-License-Identifier: GPL-3.0-or-later
"""The glyphs' bitmaps, from Noto Color Emoji (SIL Open Font License 1.1).

The world's own glyphs lie beside this file in ``glyphs.png``, so that pictures are the same everywhere and no font is
needed. Other glyphs of the font are drawn on to train the autoencoder, which should know more than the world.

    python -m testbed.world.glyphs     draws glyphs.png anew from the system's font (fonts-noto-color-emoji)
"""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from testbed.world.vocabulary import GLYPHS

SHEET = Path(__file__).with_name("glyphs.png")
CELL = 136  #: side of a cell of the sheet, the width of the font's bitmaps: no detail is lost
COLUMNS = 10
STRIKE = 109  #: the one bitmap size in the font
FONT_PLACES = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
)


@cache
def world_glyphs() -> dict[str, Image.Image]:
    """Name -> cut-out RGBA bitmap, of every glyph of the vocabulary."""
    sheet = Image.open(SHEET).convert("RGBA")
    glyphs = {}
    for i, name in enumerate(GLYPHS):
        left, top = i % COLUMNS * CELL, i // COLUMNS * CELL
        cell = sheet.crop((left, top, left + CELL, top + CELL))
        glyphs[name] = cell.crop(cell.getbbox())
    return glyphs


def other_glyphs() -> dict[str, Image.Image]:
    """Every single-character emoji of the font that is not in the vocabulary, by its Unicode name."""
    font, known = _font(), {emoji for _, emoji in GLYPHS.values()}
    glyphs = {}
    for code in (*range(0x2600, 0x27C0), *range(0x1F300, 0x1FB00)):
        symbol = chr(code)
        # flags' letters and skin tones are not pictures of their own
        if symbol in known or 0x1F3FB <= code <= 0x1F3FF or not (name := unicodedata.name(symbol, "")):
            continue
        bitmap = _cut_out(font, symbol)
        if bitmap is not None and min(bitmap.size) > 50:
            glyphs[name.lower()] = bitmap
    return glyphs


def draw_sheet() -> None:
    font = _font()
    rows = -(-len(GLYPHS) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for i, (name, (_, emoji)) in enumerate(GLYPHS.items()):
        bitmap = _cut_out(font, emoji)
        if bitmap is None:
            raise SystemExit(f"the font has no glyph for {name} ({emoji})")
        bitmap.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
        sheet.paste(bitmap, (i % COLUMNS * CELL, i // COLUMNS * CELL))
    sheet.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(SHEET, optimize=True)


def _font() -> ImageFont.FreeTypeFont:
    place = next((place for place in FONT_PLACES if Path(place).exists()), None)
    if place is None:
        raise SystemExit("Noto Color Emoji was not found; install the package fonts-noto-color-emoji")
    return ImageFont.truetype(place, STRIKE)


def _cut_out(font: ImageFont.FreeTypeFont, symbol: str) -> Image.Image | None:
    canvas = Image.new("RGBA", (2 * STRIKE, 2 * STRIKE))
    ImageDraw.Draw(canvas).text((STRIKE // 4, STRIKE // 4), symbol, font=font, embedded_color=True)
    # drawn on nothing, colours come out multiplied by their alpha
    canvas = Image.frombytes("RGBa", canvas.size, canvas.tobytes()).convert("RGBA")
    box = canvas.getbbox()
    return canvas.crop(box) if box else None


if __name__ == "__main__":
    draw_sheet()

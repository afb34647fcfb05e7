# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of runs: a strip of each run, and a sheet of strips for people, whom a classifier's mistakes do not fool."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from soda_core.files import replacing

SIDE = 96  #: of a picture in a strip, in pixels
SHOWN = 4  #: pictures of a strip on a sheet
GAP, LINE, LABELS = 8, 16, 130  #: in pixels, the last the width of the column of names
MOST_BYTES = 390_000


def write_strip(pictures: Tensor, path: Path) -> None:
    """Pictures (n, 3, side, side) in 0..1, side by side and smaller."""
    small = F.interpolate(pictures.float().cpu(), size=(SIDE, SIDE), mode="area").clamp(0, 1)
    row = (torch.cat([*small], 2) * 255).round().to(torch.uint8).permute(1, 2, 0)
    with replacing(path) as unfinished:
        Image.fromarray(row.numpy()).save(unfinished, format="JPEG", quality=90)


@dataclass(frozen=True)
class Shown:
    """A strip on a sheet, and what stands above it."""

    title: str
    strip: Path


def write_sheet(lines: Sequence[tuple[str, Sequence[Shown | None]]], heads: Sequence[str], path: Path) -> None:
    """A line for each name, a column for each head; columns have :data:`SHOWN` pictures."""
    wide, high = SHOWN * SIDE, LINE + SIDE + GAP
    sheet = Image.new("RGB", (LABELS + len(heads) * (wide + GAP), 2 * LINE + len(lines) * high), "white")
    draw, small, large = ImageDraw.Draw(sheet), ImageFont.load_default(11), ImageFont.load_default(14)
    for column, head in enumerate(heads):
        draw.text((LABELS + column * (wide + GAP), GAP), head, fill="black", font=large)
    for row, (name, shown) in enumerate(lines):
        top = 2 * LINE + row * high
        draw.multiline_text((GAP, top + LINE), name, fill="black", font=large)
        for column, one in enumerate(shown):
            if one is not None:
                left = LABELS + column * (wide + GAP)
                draw.text((left, top), one.title, fill="#444", font=small)
                with Image.open(one.strip) as strip:
                    sheet.paste(strip.crop((0, 0, wide, SIDE)), (left, top + LINE))
    with replacing(path) as unfinished:
        unfinished.write_bytes(_small_enough(sheet))


def _small_enough(sheet: Image.Image) -> bytes:
    for quality in range(90, 20, -5):
        data = io.BytesIO()
        sheet.save(data, "JPEG", quality=quality, optimize=True)
        if data.tell() <= MOST_BYTES:
            break
    return data.getvalue()

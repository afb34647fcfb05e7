# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's contact sheet, and the pictures that say in the template browser what each workflow does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from demo.build_workflows import workflow_file
from demo.results import BASE, SUBJECT, Results, Row, Training
from testbed.world.render import SIDE

# pixels: between cells, between training pictures and their size, from a title to them, and a heading's height
GAP, SMALL_GAP, SMALL, PICTURES, HEAD = 14, 4, 61, 62, 78
GROUND, BRIGHT, DIM, ACCENT = (24, 25, 28), (236, 238, 242), (158, 162, 172), (255, 176, 0)
HEADER = HEAD + 2 * SMALL + SMALL_GAP  #: height of the row of column titles
STEP = SIDE + GAP
TITLE, SUBTITLE = 23, 16  #: sizes of the letters
ALONE = ("another class", "with the style alone")

Colour = tuple[int, int, int]


def write_sheet(path: Path, results: Results) -> None:
    """Columns are the base, the subject alone and the subject in each style, rows are subjects.

    What each was learnt from stands at the margin: a subject's pictures beside its row, a style's above its column.
    """
    lora_top = HEADER + 2 * GAP + len(results.rows) * STEP + GAP // 2
    height = lora_top + (HEAD + GAP + len(results.lora_rows) * STEP if results.lora_rows else 0)
    sheet = Image.new("RGB", (GAP + (1 + len(results.columns)) * STEP, height), GROUND)
    draw = ImageDraw.Draw(sheet)
    _titles(sheet, draw, results)
    learnt = {training.task: training for training in results.subjects}
    for i, row in enumerate(results.rows):
        top = HEADER + 2 * GAP + i * STEP
        if row.subject:
            _words(draw, (GAP, top), row.subject.name, "five pictures of my subject")
            _learnt_from(sheet, (GAP, top + PICTURES), learnt[row.subject])
        else:
            _words(draw, (GAP, top), *ALONE)
        _cells(sheet, draw, top, row, results.columns, ACCENT)
    if results.lora_rows:
        draw.line((GAP, lora_top, sheet.width - GAP, lora_top), DIM)
        same = "of the same pictures, on the same layers, with as many steps; the two added up; same noise"
        _words(draw, (GAP, lora_top + GAP), "For comparison: LoRAs", same)
    for i, row in enumerate(results.lora_rows):
        top = lora_top + HEAD + GAP + i * STEP
        _words(draw, (GAP, top), *((row.subject.name,) if row.subject else ALONE))
        _cells(sheet, draw, top, row, results.columns, DIM)
    sheet.save(path, optimize=True)


def _cells(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int, row: Row, columns: Sequence[str], frame: Colour
) -> None:
    """A row's pictures, with a frame around those of a subject in a style: what it is all about."""
    for column, picture in row.cells.items():
        left = GAP + (1 + columns.index(column)) * STEP
        sheet.paste(picture, (left, top))
        if row.subject and column not in (BASE, SUBJECT):
            draw.rectangle((left - 3, top - 3, left + SIDE + 2, top + SIDE + 2), outline=frame, width=3)


def _titles(sheet: Image.Image, draw: ImageDraw.ImageDraw, results: Results) -> None:
    bottom = GAP + HEADER - HEAD
    _words(draw, (GAP, GAP), "My subject", "in my style, merged", "without any training", colour=ACCENT)
    _words(draw, (GAP + STEP, bottom), "base model", "has seen neither")
    _words(draw, (GAP + 2 * STEP, bottom), "my subject", "after training on it")
    for i, style in enumerate(results.styles, 3):
        _words(draw, (GAP + i * STEP, GAP), style.task.name, "five pictures of my style", colour=ACCENT)
        _learnt_from(sheet, (GAP + i * STEP, GAP + PICTURES), style)


def _words(draw: ImageDraw.ImageDraw, at: tuple[int, int], title: str, *lines: str, colour: Colour = BRIGHT) -> None:
    draw.text(at, title, colour, ImageFont.load_default(size=TITLE))
    for i, line in enumerate(lines):
        draw.text((at[0], at[1] + TITLE + 8 + i * (SUBTITLE + 4)), line, DIM, ImageFont.load_default(size=SUBTITLE))


def _learnt_from(sheet: Image.Image, at: tuple[int, int], training: Training) -> None:
    """Three and two pictures, as wide as a cell."""
    for i, (picture, _) in enumerate(training.pictures):
        place = at[0] + i % 3 * (SMALL + SMALL_GAP), at[1] + i // 3 * (SMALL + SMALL_GAP)
        sheet.paste(_resized(picture, SMALL), place)


def _resized(picture: Image.Image, side: int) -> Image.Image:
    return picture.resize((side, side), Image.Resampling.LANCZOS)


# ----------------------------------------------------------------------------------------------------- thumbnails

_CARD = (600, 400)


def write_thumbnails(results: Results, scheduled: Image.Image) -> None:
    """What each shipped workflow does, by the first subject and the first style.

    Args:
        scheduled: what the subject early and the style late give.
    """
    style = results.styles[0].task.name
    first, alone = results.rows[0].cells, results.rows[-1].cells
    for training, sample in ((results.subjects[0], first[SUBJECT]), (results.styles[0], alone[style])):
        card, draw = _card()
        for k, (picture, _) in enumerate(training.pictures[:4]):
            card.paste(_resized(picture, 116), (22 + k % 2 * 126, 79 + k // 2 * 126))
        _sign(draw, (306, 200), "→")
        card.paste(_resized(sample, 242), (336, 79))
        _save(card, f"train_{training.task.kind}")
    _save(_chain((first[SUBJECT], alone[style], first[style]), "+="), "merge_subject_and_style")
    _save(_chain((first[BASE], first[SUBJECT]), "→"), "load_and_sample")
    _save(_chain((first[SUBJECT], first[SUBJECT]), "="), "save_merged_checkpoint")  # the checkpoint paints the same
    _save(_chain((first[SUBJECT], scheduled, first[style]), "→→"), "subject_early_style_late")


def _chain(pictures: Sequence[Image.Image], signs: str) -> Image.Image:
    """Pictures in a row, with signs between them."""
    card, draw = _card()
    side, step = (256, 296) if len(pictures) == 2 else (160, 196)
    for i, picture in enumerate(pictures):
        card.paste(_resized(picture, side), (24 + i * step, (_CARD[1] - side) // 2))
    for i, sign in enumerate(signs):
        _sign(draw, (24 + i * step + (side + step) // 2, _CARD[1] // 2), sign)
    return card


def _card() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    card = Image.new("RGB", _CARD, GROUND)
    return card, ImageDraw.Draw(card)


def _sign(draw: ImageDraw.ImageDraw, at: tuple[int, int], sign: str) -> None:
    if sign == "→":  # the default font has none
        x, y = at
        draw.line((x - 14, y, x + 10, y), ACCENT, 4)
        draw.polygon(((x + 6, y - 9), (x + 18, y), (x + 6, y + 9)), ACCENT)
    else:
        draw.text(at, sign, ACCENT, ImageFont.load_default(size=34), anchor="mm")


def _save(card: Image.Image, workflow: str) -> None:
    card.save(workflow_file(workflow).with_suffix(".jpg"), quality=90)

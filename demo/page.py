# SPDX-License-Identifier: GPL-3.0-or-later
"""What the demo shows at its end: a page in one file, and a contact sheet."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from demo.build_workflows import workflow_file

Samples = dict[str, dict[str, Image.Image]]  #: prompt -> column -> picture, all from the same noise

TITLES = {
    "base": ("base", "no adapter"),
    "subject": ("subject", "SODA, 5 pictures"),
    "style": ("style", "SODA, 5 pictures"),
    "merged": ("merged", "SODA, no training"),
    "loras": ("two LoRAs", "plain sum"),
}
SHOWN_SETTINGS = (
    "steps", "batch_size", "rotation_lr", "shift_lr", "decomposition", "train", "factor_preset", "layers", "loss",
    "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Training:
    """One finished training run."""

    what: str
    pictures: list[tuple[Image.Image, str]]  #: with captions
    curve: Image.Image
    portrait: Image.Image
    file: str
    kilobytes: float
    settings: dict[str, Any]
    seconds: float


# ---------------------------------------------------------------------------------------------------------- sheet

_CELL, _GAP, _SMALL, _TEXT = 192, 10, 92, 34
_GROUND, _BRIGHT, _DIM, _ACCENT = (24, 25, 28), (236, 238, 242), (150, 154, 164), (255, 176, 0)


def write_sheet(path: Path, trainings: Sequence[Training], samples: Samples) -> None:
    """What was learnt from, on top; then a row for each prompt, a column for each model."""
    columns = list(TITLES)
    width = _GAP + len(columns) * (_CELL + _GAP)
    top = 2 * _GAP + _TEXT + _SMALL
    height = top + 70 + len(samples) * (_TEXT + _CELL + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), _GROUND)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(size=22), ImageFont.load_default(size=15)
    for training, left in zip(trainings, (_GAP, width // 2 + _GAP // 2), strict=True):
        words = training.pictures[0][1]
        draw.text((left, _GAP + 6), f'{training.what}: "{words}", ...', _DIM, small)
        for k, (picture, _) in enumerate(training.pictures):
            sheet.paste(_enlarged(picture, _SMALL), (left + k * (_SMALL + 6), _GAP + _TEXT))
    for i, column in enumerate(columns):
        left = _GAP + i * (_CELL + _GAP)
        title, subtitle = TITLES[column]
        draw.text((left + _CELL // 2, top + 22), title, _ACCENT if column == "merged" else _BRIGHT, large, anchor="mm")
        draw.text((left + _CELL // 2, top + 46), subtitle, _DIM, small, anchor="mm")
        for j, row in enumerate(samples.values()):
            sheet.paste(_enlarged(row[column], _CELL), (left, top + 70 + _TEXT + j * (_TEXT + _CELL + _GAP)))
    for j, prompt in enumerate(samples):
        draw.text((_GAP, top + 70 + 8 + j * (_TEXT + _CELL + _GAP)), f'"{prompt}"', _BRIGHT, small)
    sheet.save(path, optimize=True)


def _enlarged(picture: Image.Image, side: int) -> Image.Image:
    return picture.resize((side, side), Image.Resampling.BICUBIC)


# ----------------------------------------------------------------------------------------------------- thumbnails

_THUMB = (600, 400)


def write_thumbnails(trainings: Sequence[Training], samples: Samples, scheduled: Image.Image) -> None:
    """What each shipped workflow does, as a picture for the template browser.

    Args:
        scheduled: what the subject early and the style late give.
    """
    rows = list(samples.values())
    first, last = rows[0], rows[-1]
    for training, sample in zip(trainings, (first["subject"], last["style"]), strict=True):
        card, draw = _card()
        for k, (picture, _) in enumerate(training.pictures[:4]):
            card.paste(_enlarged(picture, 116), (22 + k % 2 * 126, 79 + k // 2 * 126))
        _sign(draw, (306, 200), "→")
        card.paste(_enlarged(sample, 242), (336, 79))
        _save(card, f"train_{training.what}")
    card, draw = _card()
    for i, (column, sign) in enumerate((("subject", "+"), ("style", "="), ("merged", ""))):
        card.paste(_enlarged(first[column], 160), (24 + i * 196, 120))
        _sign(draw, (24 + i * 196 + 178, 200), sign)
    _save(card, "merge_subject_and_style")
    card, draw = _card()
    for i, column in enumerate(("base", "subject")):
        card.paste(_enlarged(first[column], 256), (24 + i * 296, 72))
    _sign(draw, (300, 200), "→")
    _save(card, "load_and_sample")
    card, draw = _card()
    for i in range(2):  # with the adapter, and of the merged checkpoint: the same
        card.paste(_enlarged(first["subject"], 256), (24 + i * 296, 72))
    _sign(draw, (300, 200), "=")
    _save(card, "save_merged_checkpoint")
    write_schedule(first["subject"], scheduled, first["style"])


def write_schedule(*pictures: Image.Image) -> None:
    """The subject's, the scheduled and the style's picture, which lead into each other."""
    card, draw = _card()
    for i, picture in enumerate(pictures):
        card.paste(_enlarged(picture, 160), (24 + i * 196, 120))
    for i in (1, 2):
        _sign(draw, (6 + i * 196, 200), "→")
    _save(card, "subject_early_style_late")


def _card() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    card = Image.new("RGB", _THUMB, _GROUND)
    return card, ImageDraw.Draw(card)


def _sign(draw: ImageDraw.ImageDraw, at: tuple[int, int], sign: str) -> None:
    if sign == "→":  # the default font has none
        x, y = at
        draw.line((x - 14, y, x + 10, y), _ACCENT, 4)
        draw.polygon(((x + 6, y - 9), (x + 18, y), (x + 6, y + 9)), _ACCENT)
    else:
        draw.text(at, sign, _ACCENT, ImageFont.load_default(size=34), anchor="mm")


def _save(card: Image.Image, workflow: str) -> None:
    card.save(workflow_file(workflow).with_suffix(".jpg"), quality=90)


# ----------------------------------------------------------------------------------------------------------- page


def write_page(
    path: Path,
    trainings: Sequence[Training],
    samples: Samples,
    report: str,
    timings: Sequence[tuple[str, float]],
    machine: dict[str, str],
) -> None:
    seconds = timings[-1][1]
    content = "\n".join((
        f"""<header><h1>SODA in ComfyUI</h1>
        <p>A subject and a style, each learned from five pictures, then merged without any training:
        everything on this page was made in {seconds / 60:.1f} minutes by the workflows that come with the pack.</p>
        <p class="note">The base model is a small Stable Diffusion of the 1.5 family that knows a world of
        emoji. It has never seen the subject or the style. The last column adds up two LoRAs, trained
        on the same pictures and layers for as many steps.</p></header>""",
        f"<section><h2>Same prompt, same noise</h2>{_grid(samples)}</section>",
        *(_training(training) for training in trainings),
        f"""<section><h2>Merge</h2><p>How much subject and style get in each other's way, as the merge node
        reports it.</p><details open><summary>Report</summary><pre>{_text(report)}</pre></details></section>""",
        f"""<section class="two"><div><h2>Time</h2>{_table([(what, _duration(s)) for what, s in timings])}</div>
        <div><h2>Machine</h2>{_table(machine.items())}</div></section>""",
    ))  # fmt: skip
    path.write_text(_PAGE.replace("CONTENT", content), encoding="utf-8")


def _grid(samples: Samples) -> str:
    heads = "".join(f"<div class='head'><b>{t}</b><small>{s}</small></div>" for t, s in TITLES.values())
    rows = "".join(
        f"<div class='prompt'>“{_text(prompt)}”</div>" + "".join(_picture(row[c], f"{c}: {prompt}") for c in TITLES)
        for prompt, row in samples.items()
    )
    return f"<div class='grid'>{heads}{rows}</div>"


def _training(training: Training) -> str:
    pictures = "".join(
        f"<figure>{_picture(picture, caption)}<figcaption>{_text(caption)}</figcaption></figure>"
        for picture, caption in training.pictures
    )
    settings = ", ".join(f"{name} {training.settings[name]}" for name in SHOWN_SETTINGS if name in training.settings)
    facts = " · ".join(
        [
            _text(training.file),
            f"{training.kilobytes:.0f} kB",
            _duration(training.seconds),
            _text(settings),
        ]
    )
    return f"""<section><h2>Train the {training.what}</h2><div class="pictures">{pictures}</div>
    <div class="two charts"><figure>{_picture(training.curve, "loss curve")}<figcaption>Loss over steps</figcaption>
    </figure><figure><div class="tall">{_picture(training.portrait, "spectral shift and rotation per layer")}</div>
    <figcaption>What it learned: spectral shift and rotation of every layer</figcaption></figure></div>
    <p class="facts">{facts}</p></section>"""


def _picture(image: Image.Image, description: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img src='data:image/png;base64,{data}' alt='{_text(description)}'>"


def _table(rows: Any) -> str:
    return "<table>" + "".join(f"<tr><th>{_text(a)}</th><td>{_text(b)}</td></tr>" for a, b in rows) + "</table>"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>SODA in ComfyUI</title>
<style>
:root { --ground: #18191c; --panel: #212327; --line: #34373d; --text: #e6e8ec; --dim: #9a9fa9; --accent: #ffb000; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 32px 24px 64px; background: var(--ground); color: var(--text);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 34px; margin: 0 0 8px; } h2 { font-size: 20px; margin: 0 0 12px; }
header p { max-width: 62em; margin: 6px 0; } .note { color: var(--dim); border-left: 3px solid var(--accent);
  padding-left: 12px; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 12px; padding: 22px;
  margin-top: 24px; }
img { display: block; width: 100%; border-radius: 6px; } figure { margin: 0; }
figcaption, small, .facts { color: var(--dim); font-size: 13px; } figcaption { margin-top: 6px; }
.grid { display: grid; grid-template-columns: repeat(5, 1fr); gap: 10px; align-items: center; }
.grid img { image-rendering: auto; } .prompt { grid-column: 1 / -1; margin-top: 8px; }
.head { text-align: center; } .head b { font-size: 17px; } .head small { display: block; }
.pictures { display: grid; grid-template-columns: repeat(5, 1fr); gap: 12px; margin-bottom: 18px; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 22px; align-items: start; }
.charts { grid-template-columns: 2fr 3fr; } .tall { max-height: 520px; overflow-y: auto; } .facts { margin: 14px 0 0; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; font-weight: normal; color: var(--dim); }
th, td { padding: 5px 8px 5px 0; border-bottom: 1px solid var(--line); } td { text-align: right; }
pre { overflow-x: auto; font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; margin: 10px 0 0; }
summary { cursor: pointer; color: var(--accent); }
@media (max-width: 720px) { .two, .charts { grid-template-columns: 1fr; }
  .pictures { grid-template-columns: repeat(2, 1fr); }
  .grid { grid-template-columns: repeat(2, 1fr); } }
</style></head><body>
CONTENT
</body></html>
"""

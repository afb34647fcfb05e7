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

Samples = dict[int, dict[str, Image.Image]]  #: seed -> column -> picture

TITLES = {
    "base": ("base", "no adapter"),
    "subject": ("subject", "the fox"),
    "style": ("style", "blueprint"),
    "merged": ("merged", "both, no training"),
}
SHOWN_SETTINGS = ("steps", "batch_size", "rotation_lr", "shift_lr", "decomposition", "train", "layers", "loss", "seed")


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
    loss: tuple[float, float]  #: at the first step, and the mean of the last twenty


# ---------------------------------------------------------------------------------------------------------- sheet

_CELL, _GAP, _LEFT, _TOP = 256, 12, 100, 110


def write_sheet(path: Path, samples: Samples, prompt: str) -> None:
    """Columns base, subject, style, merged; a row for each seed."""
    columns = list(TITLES)
    width = _LEFT + len(columns) * (_CELL + _GAP) + _GAP
    height = _TOP + len(samples) * (_CELL + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), (24, 25, 28))
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(size=24), ImageFont.load_default(size=15)
    bright, dim = (236, 238, 242), (150, 154, 164)
    draw.text((_LEFT, 14), f'"{prompt}"', bright, small)
    for i, column in enumerate(columns):
        middle = _LEFT + i * (_CELL + _GAP) + _CELL // 2
        title, subtitle = TITLES[column]
        draw.text((middle, 62), title, bright, large, anchor="mm")
        draw.text((middle, 88), subtitle, dim, small, anchor="mm")
        for j, row in enumerate(samples.values()):
            enlarged = row[column].resize((_CELL, _CELL), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (middle - _CELL // 2, _TOP + j * (_CELL + _GAP)))
    for j, seed in enumerate(samples):
        draw.text((_LEFT // 2, _TOP + j * (_CELL + _GAP) + _CELL // 2), f"seed {seed}", dim, small, anchor="mm")
    sheet.save(path, optimize=True)


# ----------------------------------------------------------------------------------------------------------- page


def write_page(
    path: Path,
    trainings: Sequence[Training],
    samples: Samples,
    prompt: str,
    report: str,
    timings: Sequence[tuple[str, float]],
    machine: dict[str, str],
    base: str,
) -> None:
    seconds = timings[-1][1]
    content = "\n".join((
        f"""<header><h1>SODA in ComfyUI</h1>
        <p>A subject and a style, each learned from five pictures, then merged without any training:
        everything on this page was made in {seconds / 60:.1f} minutes by the workflows that come with the pack.</p>
        <p class="honest">The base model here ({_text(base)}) is tiny and its weights are random, so what it paints is
        abstract: look at how the adapters change it, not at what it shows.</p></header>""",
        f"<section><h2>Same prompt, same seeds</h2><p>“{_text(prompt)}”</p>{_grid(samples)}</section>",
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
        f"<div class='seed'>seed {seed}</div>" + "".join(_picture(row[c], f"{c}, seed {seed}") for c in TITLES)
        for seed, row in samples.items()
    )
    return f"<div class='grid'><div></div>{heads}{rows}</div>"


def _training(training: Training) -> str:
    pictures = "".join(
        f"<figure>{_picture(picture, caption)}<figcaption>{_text(caption)}</figcaption></figure>"
        for picture, caption in training.pictures
    )
    settings = ", ".join(f"{name} {training.settings[name]}" for name in SHOWN_SETTINGS if name in training.settings)
    facts = " · ".join(
        [
            f"loss {training.loss[0]:.2f} → {training.loss[1]:.2f}",
            _text(training.file),
            f"{training.kilobytes:.0f} kB",
            _duration(training.seconds),
            _text(settings),
        ]
    )
    return f"""<section><h2>Train the {training.what}</h2><div class="pictures">{pictures}</div>
    <div class="two charts"><figure>{_picture(training.curve, "loss curve")}<figcaption>Loss over steps</figcaption>
    </figure><figure>{_picture(training.portrait, "spectral shift and rotation per layer")}
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
header p { max-width: 62em; margin: 6px 0; } .honest { color: var(--dim); border-left: 3px solid var(--accent);
  padding-left: 12px; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 12px; padding: 22px;
  margin-top: 24px; }
img { display: block; width: 100%; border-radius: 6px; } figure { margin: 0; }
figcaption, small, .facts { color: var(--dim); font-size: 13px; } figcaption { margin-top: 6px; }
.grid { display: grid; grid-template-columns: 64px repeat(4, 1fr); gap: 10px; align-items: center; }
.head { text-align: center; } .head b { font-size: 17px; } .head small { display: block; }
.seed { color: var(--dim); font-size: 13px; text-align: center; }
.pictures { display: grid; grid-template-columns: repeat(5, 1fr); gap: 12px; margin-bottom: 18px; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 22px; align-items: start; }
.charts { grid-template-columns: 2fr 3fr; } .facts { margin: 14px 0 0; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; font-weight: normal; color: var(--dim); }
th, td { padding: 5px 8px 5px 0; border-bottom: 1px solid var(--line); } td { text-align: right; }
pre { overflow-x: auto; font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; margin: 10px 0 0; }
summary { cursor: pointer; color: var(--accent); }
@media (max-width: 720px) { .two, .charts { grid-template-columns: 1fr; }
  .pictures { grid-template-columns: repeat(2, 1fr); }
  .grid { grid-template-columns: repeat(2, 1fr); } .grid > .seed, .grid > div:first-child { grid-column: 1 / -1; } }
</style></head><body>
CONTENT
</body></html>
"""

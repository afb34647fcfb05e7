# SPDX-License-Identifier: GPL-3.0-or-later
"""The page that the demo writes at its end: one file, pictures inside."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

from PIL import Image

from demo.results import BASE, SUBJECT, Results, Row, Training
from demo.settings import STYLE_WORDS

SHOWN_SETTINGS = (
    "steps", "batch_size", "rotation_lr", "shift_lr", "decomposition", "train", "factor_preset", "layers", "loss",
    "schedule", "seed",
)  # fmt: skip


def write_page(path: Path, results: Results) -> None:
    seconds = results.timings[-1][1]
    loras = (
        f"<section><h2>For comparison: LoRAs added up</h2><p>Trained on the same pictures and layers for as many "
        f"steps, with the same batches; the same noise as above.</p>{_grid(results, results.lora_rows)}</section>"
        if results.lora_rows
        else ""
    )
    reports = "".join(
        f"<details{'' if i else ' open'}><summary>{_text(what)}</summary><pre>{_text(report)}</pre></details>"
        for i, (what, report) in enumerate(results.reports.items())
    )
    content = "\n".join((
        f"""<header><h1>My subject in my style</h1>
        <p>Subject and style were each learned from five pictures, then merged without any training:
        everything on this page was made in {seconds / 60:.1f} minutes by the workflows that come with the pack.</p>
        <p class="note">The base model is a small Stable Diffusion 3 that knows a world of emoji. Among its pictures
        was no {_listed(" and no ", results.subjects)}, and none in the style of {_listed(" or ", results.styles)}.</p>
        </header>""",
        f"<section><h2>Same prompt, same noise along a row</h2>{_grid(results, results.rows)}</section>",
        loras,
        *(_training(training) for training in (*results.subjects, *results.styles)),
        f"""<section><h2>Merge</h2><p>How much subject and style get in each other's way, as the merge node
        reports it.</p>{reports}</section>""",
        f"""<section class="two"><div><h2>Time</h2>
        {_table([(what, _duration(s)) for what, s in results.timings])}</div>
        <div><h2>Machine</h2>{_table(results.machine.items())}</div></section>""",
    ))  # fmt: skip
    path.write_text(_PAGE.replace("CONTENT", content), encoding="utf-8")


def _listed(between: str, trainings: list[Training]) -> str:
    return between.join(f"<i>{_text(training.task.name)}</i>" for training in trainings)


def _grid(results: Results, rows: list[Row]) -> str:
    titles = {
        BASE: ("base", "no adapter"),
        SUBJECT: ("subject", "SODA, 5 pictures" if rows is results.rows else "LoRA, 5 pictures"),
    }
    heads = "".join(
        f"<div class='head'><b>{_text(title)}</b><small>{_text(note)}</small></div>"
        for title, note in (titles.get(c, (c, f"the prompt goes on: “{STYLE_WORDS}”")) for c in results.columns)
    )
    body = "".join(
        f"<div class='prompt'>“{_text(row.scene.text)}”</div>"
        + "".join(_picture(row.cells[c], c) if c in row.cells else "<i></i>" for c in results.columns)
        for row in rows
    )
    columns = f"grid-template-columns: repeat({len(results.columns)}, 1fr)"
    return f"<div class='grid' style='{columns}'>{heads}{body}</div>"


def _training(training: Training) -> str:
    pictures = "".join(
        f"<figure>{_picture(picture, caption)}<figcaption>{_text(caption)}</figcaption></figure>"
        for picture, caption in training.pictures
    )
    settings = ", ".join(f"{name} {training.settings[name]}" for name in SHOWN_SETTINGS if name in training.settings)
    facts = " · ".join((
        _text(training.file), f"{training.kilobytes:.0f} kB", _duration(training.seconds), _text(settings),
    ))  # fmt: skip
    return f"""<section><h2>Train the {training.task.kind}: {training.task.name}</h2>
    <div class="pictures">{pictures}</div>
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
.grid { display: grid; gap: 10px; align-items: center; }
.prompt { grid-column: 1 / -1; margin-top: 8px; }
.head { text-align: center; } .head b { font-size: 17px; } .head small { display: block; }
.pictures { display: grid; grid-template-columns: repeat(5, 1fr); gap: 12px; margin-bottom: 18px; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 22px; align-items: start; }
.charts { grid-template-columns: 2fr 3fr; } .tall { max-height: 520px; overflow-y: auto; } .facts { margin: 14px 0 0; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; font-weight: normal; color: var(--dim); }
th, td { padding: 5px 8px 5px 0; border-bottom: 1px solid var(--line); } td { text-align: right; }
pre { overflow-x: auto; font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; margin: 10px 0 0; }
summary { cursor: pointer; color: var(--accent); }
@media (max-width: 720px) { .two, .charts { grid-template-columns: 1fr; }
  .pictures { grid-template-columns: repeat(2, 1fr); } }
</style></head><body>
CONTENT
</body></html>
"""

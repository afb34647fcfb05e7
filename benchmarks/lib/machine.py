# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a benchmark ran, and where its results go."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from demo.machine import core_count, processor

RESULTS = Path(__file__).resolve().parents[1] / "results"


def label() -> str:
    """The machine in few words, for a row of results."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor()}, {core_count()} cores{gpu}, torch {torch.__version__}"


def kept_rows(name: str) -> list[dict[str, Any]]:
    """What an earlier run left in ``results/<name>.json``."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else []


def write_rows(name: str, rows: Iterable[dict[str, Any]], tables: str = "", folder: Path = RESULTS) -> None:
    """``<name>.json``: a list of flat rows, one a line, each with the machine; and tables in ``<name>.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"machine": label(), **row}) for row in rows]
    (folder / f"{name}.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")
    if tables:
        head = f"Written by `python dev.py bench {name}` on {label()}."
        (folder / f"{name}.md").write_text(f"{head}\n\n{tables}\n", "utf-8")

# SPDX-License-Identifier: GPL-3.0-or-later
"""What a benchmark measured: flat rows, kept as JSON, and tables of them in Markdown."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from soda_core.files import replacing
from testbed.machine import label

Row = dict[str, Any]
RESULTS = Path(__file__).resolve().parents[1] / "results"
STARTED = time.monotonic()
WHOLE = "whole"  #: the row that says how long a whole benchmark took


def pivot(rows: Iterable[Row], corner: str, line: str, column: str, cell: Callable[[Row], str]) -> str:
    """A Markdown table: a line for each value of one field, a column for each value of another."""
    rows = list(rows)
    columns = [*dict.fromkeys(row[column] for row in rows)]
    table = [f"| {corner} | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for value in dict.fromkeys(row[line] for row in rows):
        cells = {row[column]: cell(row) for row in rows if row[line] == value}
        table.append(f"| {value} | {' | '.join(cells.get(name, '') for name in columns)} |")
    return "\n".join(table)


def write_run(
    name: str,
    rows: list[Row],
    tables: Callable[[list[Row]], str] = lambda _: "",
    part: bool = False,
    folder: Path = RESULTS,
) -> None:
    """What this process measured, to ``results/<name>.json`` and ``.md``.

    Args:
        tables: of all rows, in Markdown.
        part: of the benchmark only: what it did not measure keeps its rows, and how long the whole takes stays too.
    """
    if part:
        measured = {row["bench"] for row in rows}
        rows = [row for row in _kept(folder / f"{name}.json") if row["bench"] not in measured] + rows
    else:
        rows = [*rows, {"bench": WHOLE, "variant": "all of it", "seconds": round(time.monotonic() - STARTED)}]
    write_rows(name, rows, tables([row for row in rows if row["bench"] != WHOLE]), folder)


def _kept(path: Path) -> list[Row]:
    rows: list[Row] = json.loads(path.read_text("utf-8")) if path.exists() else []
    return rows


def write_rows(name: str, rows: Iterable[Row], tables: str = "", folder: Path = RESULTS) -> None:
    """``<name>.json``: a list of flat rows, one a line, each with the machine; and tables in ``<name>.md``."""
    rows = [{"machine": label(), **row} for row in rows]
    with replacing(folder / f"{name}.json") as unfinished:
        unfinished.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", "utf-8")
    if tables:
        machines = dict.fromkeys(row["machine"] for row in rows)
        head = f"Written by `python dev.py bench {name}` on {'; '.join(machines)}."
        head += "".join(f" It took {row['seconds'] / 60:.0f} minutes." for row in rows if row.get("bench") == WHOLE)
        with replacing(folder / f"{name}.md") as unfinished:
            unfinished.write_text(f"{head}\n\n{tables}\n", "utf-8")

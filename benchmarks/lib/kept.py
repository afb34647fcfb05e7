# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``bench quality`` keeps of every run: a row, and files beside it, so that a stopped benchmark goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lib.results import Row
from testbed.machine import label


@dataclass(frozen=True)
class Files:
    """What a run leaves beside its row."""

    stem: Path

    @property
    def deltas(self) -> Path:
        """The change of every layer's weight, in half precision."""
        return self.stem.with_suffix(".deltas.safetensors")

    @property
    def adapter(self) -> Path:
        """Of our own methods."""
        return self.stem.with_suffix(".soda.safetensors")

    @property
    def strip(self) -> Path:
        """The pictures side by side, at half their size."""
        return self.stem.with_suffix(".jpg")

    def forget_weights(self) -> None:
        self.deltas.unlink(missing_ok=True)
        self.adapter.unlink(missing_ok=True)


class Kept:
    """Rows by what they measure, in a file that only grows.

    Args:
        of: what was measured on; rows of an earlier report that say the same are taken over.
        reported: the JSON of that report.
    """

    def __init__(self, folder: Path, of: str, reported: Path) -> None:
        (folder / "files").mkdir(parents=True, exist_ok=True)
        self.folder, self.of, self.path = folder, of, folder / "rows.jsonl"
        self.rows: dict[str, Row] = {}
        for row in json.loads(reported.read_text("utf-8")) if reported.exists() else []:
            if row.pop("of", None) == of:
                self.rows[row.pop("key")] = row
        text = self.path.read_text("utf-8") if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # it was stopped within a line
        if whole != text:
            self.path.write_text(whole, "utf-8")
        for line in whole.splitlines():
            entry = json.loads(line)
            self.rows[entry["key"]] = entry["row"]

    def add(self, key: str, row: Row) -> None:
        self.rows[key] = {**{name: _rounded(value) for name, value in row.items()}, "machine": label()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "row": self.rows[key]}) + "\n")

    def __iter__(self) -> Iterator[Row]:
        """All rows, each with what another machine needs to go on from them."""
        return ({**row, "of": self.of, "key": key} for key, row in self.rows.items())

    def files(self, key: str) -> Files:
        return Files(self.folder / "files" / hashlib.sha256(key.encode()).hexdigest()[:24])

    def lacks_weights(self, key: str) -> bool:
        """Whether a training is to run, or run again, before its weights can be used; one that diverged left none."""
        row = self.rows.get(key)
        return row is None or not (row.get("diverged") or self.files(key).deltas.exists())


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value

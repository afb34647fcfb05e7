# SPDX-License-Identifier: GPL-3.0-or-later
"""How benchmarks keep what they measured."""

from __future__ import annotations

import json

from benchmarks.lib.results import Row, pivot, write_run


def said(rows: list[Row]) -> str:
    return pivot(rows, "", "bench", "variant", lambda row: str(row["x"]))


def kept(folder) -> list[Row]:
    return json.loads((folder / "some.json").read_text("utf-8"))


def test_a_part_keeps_the_rest_and_how_long_the_whole_takes(tmp_path) -> None:
    write_run("some", [{"bench": bench, "variant": "ours", "x": 1} for bench in "ab"], said, folder=tmp_path)
    (whole,) = (row for row in kept(tmp_path) if row["bench"] == "whole")
    write_run("some", [{"bench": "b", "variant": "ours", "x": 2}], said, part=True, folder=tmp_path)
    rows = kept(tmp_path)
    assert {row["bench"]: row.get("x") for row in rows} == {"a": 1, "b": 2, "whole": None}
    assert whole in rows and all(row["machine"] for row in rows)
    table = (tmp_path / "some.md").read_text("utf-8")
    assert "| a | 1 |" in table and "| b | 2 |" in table and "whole" not in table


def test_a_whole_run_leaves_nothing_of_an_earlier_one(tmp_path) -> None:
    for bench in "ab":
        write_run("some", [{"bench": bench, "variant": "ours", "x": 1}], said, folder=tmp_path)
    assert [row["bench"] for row in kept(tmp_path)] == ["b", "whole"]


def test_a_table_leaves_empty_what_was_not_measured() -> None:
    rows = [{"model": "x", "way": "p", "s": 1}, {"model": "y", "way": "q", "s": 2}]
    assert pivot(rows, "way", "way", "model", lambda row: f"{row['s']} s").splitlines() == [
        "| way | x | y |",
        "| --- | --- | --- |",
        "| p | 1 s |  |",
        "| q |  | 2 s |",
    ]

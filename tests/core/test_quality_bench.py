# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of ``bench quality`` that decide what is reported: chosen rates, and results that outlast a stop."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.lib.report import mean_and_spread, table
from benchmarks.lib.results import write_rows
from benchmarks.quality import Results, score

NO_REPORT = Path("no report")


def test_a_run_that_diverged_is_never_chosen() -> None:
    assert score({"task": "subject", "diverged": True}) < score(
        {"task": "subject", "gain": -0.2, "prompt_accuracy": 0.5}
    )


def test_likeness_alone_does_not_choose_a_rate() -> None:
    shows_only_the_subject = {"task": "subject", "gain": 0.9, "prompt_accuracy": 0.1}
    does_both = {"task": "subject", "gain": 0.5, "prompt_accuracy": 0.9}
    learnt_nothing = {"task": "subject", "gain": 0.0, "prompt_accuracy": 1.0}
    less_like_it = {"task": "subject", "gain": -0.1, "prompt_accuracy": 0.1}
    assert score(does_both) > score(shows_only_the_subject) > score(learnt_nothing) > score(less_like_it)


def test_results_outlast_a_stop_within_a_line(tmp_path) -> None:
    first = Results(tmp_path, "base", NO_REPORT)
    first.add("a", [{"x": 1}])
    first.add("b", [{"x": 2}])
    with open(first.path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"key": "c", "rows": []})[:9])
    again = Results(tmp_path, "base", NO_REPORT)
    assert {key: rows[0]["x"] for key, rows in again.rows.items()} == {"a": 1, "b": 2}
    again.add("c", [{"x": 3}])
    assert Results(tmp_path, "base", NO_REPORT).rows["c"][0]["x"] == 3


def test_results_go_on_from_a_report_of_the_same_model_only(tmp_path) -> None:
    there = Results(tmp_path / "there", "base", NO_REPORT)
    there.add("a", [{"task": "subject", "x": 1 / 3}, {"task": "drift", "x": 2}])
    there.add("b", [{"task": "style", "x": 3}])
    write_rows("quality", there, folder=tmp_path)
    here = Results(tmp_path / "here", "base", tmp_path / "quality.json")
    assert here.rows == there.rows
    assert not Results(tmp_path / "here", "another base", tmp_path / "quality.json").rows


def test_a_table_counts_diverged_runs_but_does_not_average_them() -> None:
    rows = [
        {"method": "LoRA", "budget": "large", "params": 10, "similarity": 0.25},
        {"method": "LoRA", "budget": "large", "params": 10, "similarity": 0.75},
        {"method": "LoRA", "budget": "large", "diverged": True},
    ]
    line = table(rows, ["similarity"]).splitlines()[-1]
    assert "2 of 3" in line and "0.500 ± 0.354" in line
    assert mean_and_spread([1.0, 3.0]) == (2.0, 2**0.5)

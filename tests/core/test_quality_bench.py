# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of ``bench quality`` that decide what is reported: rates, strengths, errors, and what outlasts a stop."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import rates as bench_rates
from benchmarks.lib import automatic, prediction, report
from benchmarks.lib.errors import cells, difference, mean
from benchmarks.lib.kept import Kept
from benchmarks.lib.merges import ALONE, WAYS, recipes
from benchmarks.lib.plan import KINDS, Job, Plan
from benchmarks.lib.rates import LADDER, MIDDLE, Rates, best, next_tries, parts
from benchmarks.lib.results import write_rows
from benchmarks.lib.sheet import MOST_BYTES, Shown, write_sheet, write_strip
from benchmarks.quality import ALL, FULL, QUICK, SMALL
from soda_core.adapter import SodaAdapter
from soda_core.layer import SodaLayer
from soda_core.merge import merge
from testbed.methods import METHODS

NO_REPORT = Path("no report")


# ------------------------------------------------------------------------------------------------------------- rates


def searched(score: Callable[[Rates], float], lines, **options) -> dict[Rates, float]:
    scores: dict[Rates, float] = {}
    while tries := next_tries(scores, lines, **options):
        assert not scores.keys() & set(tries)
        scores |= {rates: score(rates) for rates in tries}
    return scores


@pytest.mark.parametrize("peak", [-8, -7, -3, 0, 1, 5, 6])
def test_one_rate_is_found_wherever_it_is_and_has_been_tried_on_both_sides(peak) -> None:
    scores = searched(lambda rates: -abs(rates.rotation - peak), ["both"])
    assert best(scores) == (peak, peak)
    assert {Rates(n, n) for n in (peak - 1, peak + 1)} <= scores.keys()
    assert len(scores) < 11


@pytest.mark.parametrize("peak", [(-4, 3), (2, -1), (0, 0), (-6, 5)])
def test_rotation_and_shift_find_rates_of_their_own(peak) -> None:
    def score(rates: Rates) -> float:
        return -abs(rates.rotation - peak[0]) - 0.4 * abs(rates.shift - peak[1])

    scores = searched(score, ["both", "shift", "rotation"])
    assert best(scores) == peak
    assert len(scores) < 30


def test_a_search_that_is_limited_ends() -> None:
    scores = searched(lambda rates: rates.rotation, ["both"], start=(-2, 0), most=2)
    assert set(scores) == {(-2, -2), (0, 0)}


def test_where_nothing_is_learnt_the_ladder_ends_the_search() -> None:
    scores = searched(lambda rates: 0.0, ["both", "shift", "rotation"])
    assert best(scores) == min(scores)
    assert len(scores) < 3 * len(LADDER)


# ------------------------------------------------------------------------------------------------------------ errors


def row(value: float, subject: str, style: str, seed: int = 0) -> dict:
    return {"subject": subject, "style": style, "seed": seed, "both": value}


def test_more_seeds_of_the_same_subjects_make_no_error_smaller() -> None:
    rows = [row(value, name, "x") for name, value in zip("abc", (0.2, 0.5, 0.8), strict=True)]
    once, thrice = mean(cells(rows, "both")), mean(cells(rows * 3, "both"))
    assert once == pytest.approx(thrice)
    assert once.error == pytest.approx(0.3 / math.sqrt(3))


def test_crossed_errors_come_from_what_differs() -> None:
    """Where only subjects differ, their spread over the root of their number; where styles do too, both."""
    subjects, styles = {"a": 0.1, "b": 0.4, "c": 0.7, "d": 0.2}, {"x": 0.0, "y": 0.3, "z": 0.1}
    of_subjects = statistics.stdev(subjects.values()) / 2
    of_styles = statistics.stdev(styles.values()) / math.sqrt(3)
    alike = mean({(s, t): a for s, a in subjects.items() for t in styles})
    added = mean({(s, t): a + b for s, a in subjects.items() for t, b in styles.items()})
    assert alike.error == pytest.approx(of_subjects)
    assert added.error == pytest.approx(math.hypot(of_subjects, of_styles))


def test_crossed_errors_are_as_large_as_means_of_new_subjects_and_styles_differ() -> None:
    draw = random.Random(1)

    def table() -> dict:
        a, b = ([draw.gauss(0, 0.2) for _ in range(n)] for n in (4, 3))
        return {(str(s), str(t)): a[s] + b[t] + draw.gauss(0, 0.1) for s in range(4) for t in range(3)}

    means = [mean(table()) for _ in range(2000)]
    said = statistics.fmean(m.error**2 for m in means if m.error is not None) ** 0.5
    assert said == pytest.approx(statistics.stdev(m.value for m in means), rel=0.07)


def test_differences_are_paired() -> None:
    other = {("a", "x"): 0.1, ("b", "x"): 0.9, ("c", "x"): 0.5}
    gap = difference({key: value + 0.05 for key, value in other.items()} | {("d", "x"): 0.0}, other)
    assert gap is not None and gap.value == pytest.approx(0.05) and gap.error == pytest.approx(0, abs=1e-9)
    assert difference({("e", "x"): 1.0}, other) is None


def test_of_a_stopped_benchmark_only_subjects_with_all_styles_count() -> None:
    whole = {(s, t): v for s, v in (("a", 0.2), ("b", 0.4)) for t in "xy"}
    assert mean(whole | {("c", "x"): 0.9}) == mean(whole)


# -------------------------------------------------------------------------------------------------------------- kept


def test_results_outlast_a_stop_within_a_line(tmp_path) -> None:
    first = Kept(tmp_path, "base", NO_REPORT)
    first.add("a", {"x": 1})
    first.add("b", {"x": 2})
    with open(first.path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"key": "c", "row": {}})[:9])
    again = Kept(tmp_path, "base", NO_REPORT)
    assert {key: row["x"] for key, row in again.rows.items()} == {"a": 1, "b": 2}
    again.add("c", {"x": 3})
    assert Kept(tmp_path, "base", NO_REPORT).rows["c"]["x"] == 3


def test_results_go_on_from_a_report_of_the_same_model_only(tmp_path) -> None:
    there = Kept(tmp_path / "there", "base", NO_REPORT)
    there.add("a", {"task": "subject", "x": 1 / 3})
    there.add("b", {"task": "style", "x": 3})
    write_rows("quality", there, folder=tmp_path)
    here = Kept(tmp_path / "here", "base", tmp_path / "quality.json")
    assert here.rows == there.rows
    assert here.lacks_weights("a")
    assert not Kept(tmp_path / "here", "another base", tmp_path / "quality.json").rows


# -------------------------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize("scope", [FULL, SMALL, QUICK])
def test_a_scope_names_methods_and_keeps_what_is_reported_apart(scope) -> None:
    assert {key for key, _ in scope.parts} <= METHODS.keys()
    if scope is not QUICK:
        for kind in KINDS:
            assert not {name for name, _ in scope.tuned_on[kind]} & set(getattr(scope, f"{kind}s"))
        assert scope.exactly() == FULL.exactly()  # so that the full one goes on from the small one


def pretend(job: Job) -> dict:
    """A row as a run would give it: rates matter, a subject or style alone scores little when both are asked for."""
    off = [0.0]
    if job.call[0] == "train" and "lr" in job.row:
        rates = zip(("lr", "shift_lr"), parts(job.call[1]), strict=True)
        off = [math.log(job.row[name] / MIDDLE[part]) for name, part in rates]
    likes = {"LoRA": 0.7, "LoKr": 0.6}.get(job.row["method"], 0.8)
    score = likes / (1 + sum(map(abs, off)))
    if job.row["task"] == "merge":
        a, b = job.row.get("strengths", (0, 0))
        score = likes / (1 + abs(a - 0.7) + abs(b - 1)) if a and b else 0.05
    shown = {"thing": score**0.5, "styled": score**0.5, "both": score, "changed": 0.1}
    shown |= dict.fromkeys(("class_accuracy", "background_accuracy"), 0.9)
    return {**job.row, **shown, "params": 10, "seconds_per_step": 0.1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Plan:
    """The small benchmark as if it had been run."""
    kept = Kept(tmp_path_factory.mktemp("kept"), "base", NO_REPORT)
    plan = Plan(SMALL, kept)

    def do(jobs) -> None:
        for job in jobs:
            assert all(need.key in kept.rows for need in job.needs)
            if job.key not in kept.rows:
                kept.add(job.key, pretend(job))

    while tries := [job for key, kind in SMALL.parts for job in plan.next_tries(METHODS[key], kind)]:
        do(tries)
    for seed in SMALL.seeds:
        trainings = [*plan.trainings(seed)]
        do([*plan.references(seed), *trainings, *map(plan.drift, trainings)])
        do([j for recipe in plan.recipes() for s in SMALL.strengths for j in plan.strength_tries(recipe, s)])
        do(plan.merges(seed))
    return plan


def test_rates_and_strengths_are_those_that_scored_best_on_tuning_tasks(finished) -> None:
    for key, kind in SMALL.parts:
        assert finished.rates(METHODS[key], kind) == (0, 0)
    for recipe in finished.recipes():
        assert finished.strengths(recipe) == (0.7, 1.0)


def test_every_subject_meets_every_style_under_every_recipe_with_what_its_parts_do_alone(finished) -> None:
    jobs = [*finished.merges(0)]
    seen = {(j.row["method"], j.row["way"], j.row["subject"], j.row["style"]) for j in jobs}
    ways = {(recipe.method, recipe.way) for recipe in finished.recipes()}
    ways |= {(recipe.method, alone) for recipe in finished.recipes() for alone in ALONE}
    assert seen == {(*way, s, t) for way in ways for s in SMALL.subjects for t in SMALL.styles}
    alone = next(job for job in jobs if job.row["way"] == "style alone")
    assert alone.row["strengths"] == [0.0, 1.0] and alone.call[2] == "sum"


def test_others_are_merged_by_sums_only_and_ours_in_every_way() -> None:
    found = [*recipes([(key, kind) for key in ALL for kind in KINDS])]
    assert {recipe.way for recipe in found if not recipe.ours} == {"sum"}
    assert {recipe.way for recipe in found if recipe.ours} == WAYS.keys()
    assert {recipe.subject for recipe in found} == set(ALL)


@pytest.mark.parametrize("way", [way for way, told in WAYS.items() if told is not None])
def test_every_way_is_one_that_the_pack_merges_by(way) -> None:
    subject, style = (
        SodaAdapter({"layer": SodaLayer(**part, shape=(6, 4))})
        for part in ({"factors": [torch.eye(4)]}, {"factors": [], "shift": torch.full((4,), 0.1)})
    )
    both = merge(subject, style, 0.7, 1.0, **(WAYS[way] or {}))
    assert both.layers["layer"].delta(torch.eye(6, 4)).any()


def test_rates_of_a_method_that_is_not_tuned_are_refused(tmp_path) -> None:
    plan = Plan(SMALL, Kept(tmp_path, "base", NO_REPORT))
    assert plan.tuned() == [] and plan.recipes() == [] and [*plan.trainings(0)] == []
    with pytest.raises(SystemExit, match="LoRA-large, style: run the stage tune"):
        plan.rates(METHODS["LoRA-large"], "style")


# --------------------------------------------------------------------------------------------------- automatic rates


@pytest.mark.parametrize(("part", "holds"), [(1.1, True), (1.0, True), (0.9, False), (0.45, False)])
def test_automatic_rates_are_compared_with_the_best_that_were_found(tmp_path, part, holds) -> None:
    """In every run they score as much of what the best rates do."""
    plan = Plan(bench_rates.QUICK, Kept(tmp_path, "base", NO_REPORT))
    assert [*automatic.comparisons(plan)] == []
    while tries := [job for key, kind in plan.scope.parts for job in plan.next_tries(METHODS[key], kind)]:
        for job in tries:
            plan.kept.add(job.key, pretend(job))
    for job in automatic.all_jobs(plan):
        assert job.call[1].settings["rates"] == "automatic" and "lr" not in job.row
        row = pretend(job)
        plan.kept.add(job.key, {**row, "both": part * row["both"], "automatic rotation rate": 0.02})
    compared = [*automatic.comparisons(plan)]
    assert [of.kind for of in compared] == [*KINDS]
    for of in compared:
        assert of.rates == (MIDDLE["rotation"], MIDDLE["shift"])
        assert of.worst == pytest.approx(part, rel=1e-3) and of.holds == holds
        assert of.difference.value == pytest.approx((part - 1) * of.by_hand[0]["both"], abs=1e-4)
    text = automatic.table(plan)
    assert text.count("| 0.02 |") == 2 * len(KINDS) and text.count(f"| {'yes' if holds else 'no'} |") == len(KINDS)


# ------------------------------------------------------------------------------------------------------------ report


def test_the_report_says_all_and_compares_what_was_chosen_beforehand(finished, tmp_path) -> None:
    for key in list(finished.kept.rows)[::7]:
        write_strip(torch.rand(SMALL.prompts, 3, 24, 24), finished.kept.files(key).strip)
    report.write(finished, tmp_path)
    text = (tmp_path / "quality.md").read_text("utf-8")
    lines: dict[str, str] = {}
    for line in text.splitlines():
        lines.setdefault(line.split(" | ")[0].removeprefix("| "), line)
    heads = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert heads == ["Subjects", "Styles", "Merged", "Rates", "Strengths"]
    assert "0.7 / 1" in lines["LoRA, sum"] and "| 12 | 24 |" in lines["LoRA, sum"]
    assert "| 0 / 1 |" in lines["LoRA, style alone"]
    assert lines["base"] and lines["real pictures"]
    assert "**+0.100" in text and "*SODA-SVD curve, sum, large*" in text
    assert {path.name for path in tmp_path.iterdir()} == {
        "quality.json", "quality.md", "quality-subject.png", "quality-style.png", "quality-merge.png",
        "quality-rates.png", "quality-sheet.jpg",
    }  # fmt: skip


def test_a_run_that_diverged_scores_nothing_and_is_counted(tmp_path) -> None:
    plan = Plan(QUICK, Kept(tmp_path, "base", NO_REPORT))
    parts = [(METHODS[key], kind) for key, kind in QUICK.parts]
    while tries := [job for method, kind in parts for job in plan.next_tries(method, kind)]:
        for job in tries:
            plan.kept.add(job.key, {**job.row, "thing": 0.0, "styled": 0.0, "both": 0.0, "diverged": True})
    assert all(not plan.kept.lacks_weights(job.key) for job in plan.trainings(0))
    report.write(plan, tmp_path / "report")
    text = (tmp_path / "report" / "quality.md").read_text("utf-8")
    assert "1, 1 diverged" in text and "0.000" in text


def test_the_largest_sheet_stays_small(tmp_path) -> None:
    strip = tmp_path / "strip.jpg"
    write_strip(torch.rand(8, 3, 192, 192), strip)  # noise is what compresses worst
    write_sheet([("name\nlarge", [Shown("what: 0.50", strip)] * 3)] * 13, ("a", "b", "c"), tmp_path / "sheet.jpg")
    assert 20_000 < (tmp_path / "sheet.jpg").stat().st_size <= MOST_BYTES


# -------------------------------------------------------------------------------------------------------- prediction


def test_of_two_changes_is_measured_what_the_merge_report_says() -> None:
    subject = {"a": torch.tensor([[3.0, 0.0]]), "b": torch.tensor([[0.0, 4.0]]), "c": torch.ones(1, 2)}
    style = {"a": torch.tensor([[6.0, 0.0]]), "b": torch.tensor([[8.0, 0.0]])}
    merged = {"a": torch.tensor([[9.0, 0.0]]), "b": torch.tensor([[8.0, 4.0]]), "c": torch.ones(1, 2)}
    found = prediction.measures(subject, style, merged)  # of sizes 5 and 10, whose product is 18
    assert found["cosine"] == pytest.approx(18 / 50) and found["imbalance"] == pytest.approx(2)
    assert found["growth"] == pytest.approx((81 + 80) ** 0.5 / 10) and found["shared"] == pytest.approx(1)
    assert prediction.measures(subject, {"a": torch.zeros(1, 2)}, merged) == {}


def test_what_is_kept_is_of_what_the_parts_show_alone_and_is_correlated() -> None:
    def row(way: str, subject: str, **values: float) -> dict:
        return {"method": "LoRA", "budget": "large", "way": way, "subject": subject, "style": "s", "seed": 0, **values}

    pairs = [(f"subject {n}", 1 + n / 10, 0.5 - n / 20) for n in range(6)]
    groups = {
        ("LoRA, sum", "large"): [
            row("sum", name, both=score * 0.8, growth=growth, cosine=score, shared=0.5 + growth, imbalance=2 + score)
            for name, growth, score in pairs
        ],
        ("LoRA, subject alone", "large"): [row("subject alone", name, thing=0.8, styled=0.1) for name, *_ in pairs],
        ("LoRA, style alone", "large"): [row("style alone", name, thing=0.0, styled=1.0) for name, *_ in pairs],
    }
    shares = prediction.kept_shares(groups["LoRA, sum", "large"], groups)
    assert [share for _, share in shares] == pytest.approx([score for *_, score in pairs])
    *_, table = prediction.section(groups)
    assert "| LoRA, sum | large | 6 | 0.38 | -1.00 | +1.00 | -1.00 | +1.00 |" in table
    assert prediction.section({}) == []

# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of ``bench quality``: tables, plots and a sheet that a reader understands without the code."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.lib import plots, prediction, tables
from benchmarks.lib.errors import cells, difference, mean
from benchmarks.lib.measured import BOTH, Groups, Measured, in_order
from benchmarks.lib.merges import ALONE, SUM, Recipe
from benchmarks.lib.plan import ABLATIONS, KINDS, Plan
from benchmarks.lib.plots import Point
from benchmarks.lib.rates import LADDER, MIDDLE, STEP, best
from benchmarks.lib.results import Row, write_rows
from benchmarks.lib.sheet import Shown, write_sheet
from testbed.methods import METHODS


def write(plan: Plan, folder: Path) -> None:
    """``quality.json``, ``quality.md``, plots and the sheet, of all that is measured."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = Measured(plan)
    parts = [
        about(measured),
        *methods(measured, "subject", folder),
        *methods(measured, "style", folder),
        *merges(measured, folder),
        *prediction.section(measured.recipes()),
        *rates(measured, folder),
        *strengths(measured),
        *ablations(measured),
    ]
    sheet(measured, folder / "quality-sheet.jpg")
    write_rows("quality", plan.kept, "\n\n".join(parts), folder)


def about(measured: Measured) -> str:
    scope = measured.scope
    return (
        f"Subjects {scope.subject_steps} steps, styles {scope.style_steps}, batches of {scope.batch}, training seeds: "
        f"{len(scope.seeds)}. A score is the mean over pictures of the probability of the *thing* (a subject's glyph; "
        "where a style is trained alone, the class) times that of the *style*. ± is a standard error over subjects and "
        "styles, of means over seeds; differences are paired. A run that diverged and a merge that is refused score 0."
    )


def methods(measured: Measured, kind: str, folder: Path) -> list[str]:
    """What is trained, alone."""
    groups = measured.methods(kind)
    if not groups:
        return []

    def drift(rows: list[Row]) -> str:
        changed = [measured.drift[row["key"]] for row in rows if row["key"] in measured.drift]
        return f"{statistics.fmean(changed):.2f}" if changed else ""

    # a style of one colour leaves nothing of a background's
    background = [("background right", tables.averaged("background_accuracy"))] if kind == "subject" else []
    columns = [
        ("parameters", tables.parameters), ("runs", tables.runs), ("rates", tables.rates), *tables.shown(),
        *tables.against_baselines(groups), *background,
        ("drift", drift), ("s a step", tables.seconds_per_step),
    ]  # fmt: skip
    groups |= measured.references(kind)
    title, thing = ("Subjects", "the subject") if kind == "subject" else ("Styles", "the class")
    points = _points(groups)
    labels = "probability of the style", f"probability of {thing}"
    plots.scatter(points, f"{title}; hollow: the small budget", folder / f"quality-{kind}.png", labels)
    return [f"## {title}", tables.table("method", groups, columns)]


def _points(groups: Groups) -> list[Point]:
    return [
        Point(
            rows[0]["method"],
            f"{name}, {budget}" if budget else name,
            mean(cells(rows, "styled")),
            mean(cells(rows, "thing")),
            "none" if budget == "small" else "full",
        )
        for (name, budget), rows in groups.items()
    ]


def merges(measured: Measured, folder: Path) -> list[str]:
    """Every recipe at the strengths that were best on other pairs, and what its parts do alone."""
    groups = measured.recipes()
    if not groups:
        return []

    def strengths(rows: list[Row]) -> str:
        return " / ".join(f"{s:g}" for s in rows[0].get("strengths", []))

    columns = [
        ("strengths", strengths), ("pairs", lambda rows: str(len(cells(rows, BOTH)))), ("runs", tables.runs),
        *tables.shown(), *tables.against_baselines(groups, f", {SUM}"),
        ("class right", tables.averaged("class_accuracy")),
    ]  # fmt: skip
    said = _verdict(measured, groups)
    groups |= measured.references("merge")
    title, labels = "Merged without training", ("probability of the style", "probability of the subject")
    points = _merge_points(measured, groups)
    plots.scatter(points, f"{title}; hollow: one part alone", folder / "quality-merge.png", labels)
    return ["## Merged", *said, tables.table("merge", groups, columns)]


def _merge_points(measured: Measured, groups: Groups) -> list[Point]:
    """Of the large budget each method's sum and, half filled, what was better on the tuning pairs."""
    better = {_key(recipe) for recipe in measured.best_recipes().values()}
    points = []
    for (name, budget), rows in groups.items():
        way = rows[0].get("way", SUM)
        if budget == "small" or not (way == SUM or way in ALONE or (name, budget) in better):
            continue
        x, y = (mean(cells(rows, metric)) for metric in ("styled", "thing"))
        fill = "none" if way in ALONE else "full" if way == SUM else "left"
        points.append(Point(rows[0]["method"], "" if way in ALONE else name, x, y, fill))
    return points


def _verdict(measured: Measured, groups: Groups) -> list[str]:
    """SODA's best against the others' best, both chosen on the tuning pairs, so that none is picked in hindsight."""
    one, other = measured.best(ours=True), measured.best(ours=False)
    if one is None or other is None or not {_key(one), _key(other)} <= groups.keys():
        return []
    gap = difference(*(cells(groups[_key(recipe)], BOTH) for recipe in (one, other)))
    if gap is None:
        return []
    errors = f", {gap.value / gap.error:+.1f} standard errors" if gap.error else ""
    names = [", ".join(_key(recipe)) for recipe in (one, other)]
    return [
        f"On the tuning pairs *{names[0]}* was best of SODA's merges and *{names[1]}* best of the others. The "
        f"difference of their scores on the pairs below is **{gap.said('+')}**{errors}."
    ]


def _key(recipe: Recipe) -> tuple[str, str]:
    return f"{recipe.method}, {recipe.way}", recipe.budget


def rates(measured: Measured, folder: Path) -> list[str]:
    """What was tried, in full where one rate is for all parts."""
    plan = measured.plan
    tried = {part: plan.tried(METHODS[part[0]], part[1]) for part in plan.scope.parts}
    tried = {part: scores for part, scores in tried.items() if scores}
    if not tried:
        return []
    even = {
        part: {rates.rotation: score for rates, score in scores.items() if rates.rotation == rates.shift}
        for part, scores in tried.items()
    }
    rungs = [n for n in LADDER if any(n in scores for scores in even.values())]
    lines = []
    for (key, kind), scores in tried.items():
        said = [f"{even[key, kind][n]:.3f}" if n in even[key, kind] else "" for n in rungs]
        chosen = best(scores)
        method = METHODS[key]
        values = " / ".join(f"{lr:g}" for lr in dict.fromkeys(chosen.values(method)))
        lines.append([method.name, method.budget, kind, *said, values, f"{scores[chosen]:.3f}", str(len(scores))])
    drawn: dict[str, dict[tuple[str, bool], dict[float, float]]] = {kind: {} for kind in KINDS}
    for (key, kind), scores in even.items():
        method = METHODS[key]
        drawn[kind][method.name, method.budget == "small"] = {STEP**n: score for n, score in scores.items()}
    plots.rates(drawn, "How much the learning rate matters", folder / "quality-rates.png")
    return [
        "## Rates",
        "Mean scores on subjects and a style that are not reported, by learning rate where all parts have the same "
        f"multiple of {MIDDLE['rotation']:g} (rotations, in radians), {MIDDLE['shift']:g} (shifts, relative to the "
        f"singular values) and {MIDDLE['other']:g} (other methods); then the rates that were taken (rotation / shift), "
        "their score, and how many were tried.",
        tables.markdown(["method", "budget", "task", *(f"{STEP**n:.2g}" for n in rungs), "taken", "", "tries"], lines),
    ]


def strengths(measured: Measured) -> list[str]:
    """What was tried."""
    plan, lines = measured.plan, []
    for recipe in plan.recipes():
        tried = plan.tried_strengths(recipe)
        top = measured.tuning_score(recipe)
        said = {of: f"**{score:.3f}**" if score == top else f"{score:.3f}" for of, score in tried.items()}
        lines.append([*_key(recipe), *(said.get(of, "") for of in plan.scope.strengths)])
    if not lines:
        return []
    heads = ["merge", "budget", *(f"{a:g} / {b:g}" for a, b in plan.scope.strengths)]
    said = "Mean scores on pairs that are not reported, by strengths of subject / style. The best are taken."
    return ["## Strengths", said, tables.markdown(heads, lines)]


def ablations(measured: Measured) -> list[str]:
    rows = measured.rows(measured.plan.ablations())
    lines = []
    for name in ABLATIONS:
        if group := [row for row in rows if row["method"] == name]:
            scores = ([row[BOTH] for row in group if row["task"] == kind] for kind in KINDS)
            lines.append([name, tables.parameters(group), *map(tables.over_seeds, scores)])
    if not lines:
        return []
    said = (
        "One thing changed at a time, on a subject and a style that are not reported, at the rates that were chosen "
        "for the method as it is. Mean score ± standard deviation over training seeds."
    )
    return ["## Ablations", said, tables.markdown(["variant", "parameters", *KINDS], lines)]


def sheet(measured: Measured, path: Path) -> None:
    """The median run of each method on subjects and on styles, and the median pair of its best merge."""
    recipes, best_recipes = measured.recipes(), measured.best_recipes()
    columns: list[Groups] = [measured.methods(kind) for kind in KINDS]
    columns.append({of: recipes[_key(recipe)] for of, recipe in best_recipes.items() if _key(recipe) in recipes})
    for column, task in zip(columns, (*KINDS, "merge"), strict=True):
        column |= measured.references(task)
    names = sorted({name for column in columns for name in column}, key=in_order)
    lines = [
        ("\n".join(name).replace(" + ", " +\n"), [_strip(measured, column.get(name, [])) for column in columns])
        for name in names
    ]
    if lines:
        write_sheet(lines, ("subject: the median run", "style: the median run", "merged: the median pair"), path)


def _strip(measured: Measured, rows: list[Row]) -> Shown | None:
    row = measured.median(rows)
    if row is None:
        return None
    names = " + ".join(row[kind] for kind in KINDS if kind in row)
    way = f", {row['way']}" if "way" in row else ""
    return Shown(f"{names}{way}: {row[BOTH]:.2f}", measured.plan.kept.files(row["key"]).strip)

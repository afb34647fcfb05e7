# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows into tables and plots that a reader understands without the code."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib.results import Row, write_rows

#: One colour and marker per method in every plot; ours in warm colours.
LOOKS = {
    "SODA-SVD": ("#c2185b", "o"),
    "SODA-SVD curve": ("#f57c00", "D"),
    "SODA-QR": ("#7b1fa2", "s"),
    "rotation only": ("#f06292", "^"),
    "shift only": ("#ba68c8", "v"),
    "LoRA": ("#1976d2", "P"),
    "LoKr": ("#0097a7", "X"),
    "OFT": ("#388e3c", "<"),
    "BOFT": ("#9e9d24", ">"),
}
BUDGETS = ("small", "large")


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; the latter is zero where there is one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    mean, spread = mean_and_spread(values)
    return mean, spread / len(values) ** 0.5


def _said(values: Sequence[float]) -> str:
    mean, spread = mean_and_spread(values)
    return f"{mean:.3f}" + (f" ± {spread:.3f}" if len(values) > 1 else "")


def groups(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by method and budget, in the order of :data:`LOOKS`, small budget first."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["method"], row["budget"]), []).append(row)
    names = list(LOOKS)
    order = sorted(found, key=lambda key: (BUDGETS.index(key[1]), names.index(_plain(key[0])), key[0]))
    return {key: found[key] for key in order}


def _lasting(rows: Iterable[Row]) -> list[Row]:
    """Without the runs that diverged."""
    return [row for row in rows if not row.get("diverged")]


def _plain(method: str) -> str:
    """A method's name without how it was merged: "LoRA" of "LoRA, sum"."""
    return method.split(",")[0]


def table(
    rows: Iterable[Row], metrics: Sequence[str], extra: Callable[[list[Row]], dict[str, str]] | None = None
) -> str:
    """A Markdown table: a line for each method and budget, mean ± standard deviation over subjects, styles, seeds."""
    lines, heads = [], ["method", "budget", "degrees of freedom", "runs", *(m.replace("_", " ") for m in metrics)]
    for (method, budget), group in groups(rows).items():
        lasting = _lasting(group)
        cells = [
            method,
            budget,
            f"{lasting[0]['params']:,}" if lasting and "params" in lasting[0] else "",
            str(len(group)) if len(lasting) == len(group) else f"{len(lasting)} of {len(group)}",
        ]
        for metric in metrics:
            if not lasting:
                cells.append("diverged")
                continue
            cells.append(_said([row[metric] for row in lasting]))
        if extra:
            more = extra(group)
            cells += more.values()
            if not lines:
                heads += more.keys()
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |", *lines])


def scatter(rows: Sequence[Row], x: str, y: str, title: str, path: Path, labels: tuple[str, str]) -> None:
    """Runs as dots, means as crosses of a standard error, a panel for each budget; up and to the right is better."""
    figure, axes = _panels(1, 2, (12, 4.8))
    for panel, budget in zip(axes, BUDGETS, strict=True):
        for (method, of), group in groups(rows).items():
            lasting = _lasting(group)
            if of != budget or not lasting:
                continue
            colour, marker = LOOKS[_plain(method)]
            inside = "white" if "geodesic" in method else colour
            (mx, sx), (my, sy) = (mean_and_error([row[name] for row in lasting]) for name in (x, y))
            panel.scatter([r[x] for r in lasting], [r[y] for r in lasting], s=12, color=colour, alpha=0.3, linewidths=0)
            panel.errorbar(
                mx, my, sy, sx, color=colour, marker=marker, mfc=inside, markersize=9, capsize=0, lw=1.2, label=method
            )
        panel.set_title(f"{budget} budget", loc="left", fontsize=10)
        panel.set_xlabel(labels[0])
        panel.grid(alpha=0.25)
    axes[0].set_ylabel(labels[1])
    _legend(figure, axes)
    _save(figure, title, path)


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    """One for all panels, to their right."""
    shown: dict[str, Any] = {}
    for panel in axes:
        handles, names = panel.get_legend_handles_labels()
        shown |= dict(zip(names, handles, strict=True))
    if shown:
        figure.legend(
            shown.values(), shown.keys(), fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)
        )


def bars(rows: Sequence[Row], metric: str, title: str, path: Path, label: str) -> None:
    """A bar for each method and budget, with its spread, in a panel for what was trained."""
    figure, axes = _panels(2, 1, (9, 7))
    found = groups(_lasting(rows))
    for axis, kind in zip(axes, ("subject", "style"), strict=True):
        for position, ((method, budget), group) in enumerate(found.items()):
            if values := [row[metric] for row in group if row["after"] == kind]:
                mean, spread = mean_and_spread(values)
                alpha = 0.9 if budget == "small" else 0.55
                axis.bar(position, mean, yerr=spread, color=LOOKS[method][0], alpha=alpha, ecolor="#555")
        axis.set_axisbelow(True)
        axis.grid(axis="y", alpha=0.25)
        axis.set_title(f"after training a {kind}", loc="left", fontsize=10)
    names = [f"{method}\n{budget}" for method, budget in found]
    figure.supylabel(label, fontsize=10)
    axes[-1].set_xticks(range(len(names)), names, fontsize=7, rotation=45, ha="right")
    _save(figure, title, path)


def lines(rows: Sequence[Row], score: Callable[[Row], float], title: str, path: Path) -> None:
    """Score against learning rate, a panel for each budget: how much the choice matters."""
    figure, axes = _panels(1, 2, (11, 4.2))
    for panel, budget in zip(axes, BUDGETS, strict=True):
        for (method, of), group in groups(rows).items():
            if of != budget:
                continue
            by_rate: dict[float, list[float]] = {}
            for row in group:
                by_rate.setdefault(row["lr"], []).append(score(row))
            rates = sorted(by_rate)
            colour, marker = LOOKS[method]
            panel.plot(rates, [statistics.fmean(by_rate[r]) for r in rates], color=colour, marker=marker, label=method)
        panel.set_xscale("log")
        panel.set_xlabel("learning rate")
        panel.set_title(f"{budget} budget", loc="left", fontsize=10)
        panel.grid(alpha=0.25)
    axes[0].set_ylabel("score")
    _legend(figure, axes)
    _save(figure, title, path)


def write(
    rows: Sequence[Row], score: Callable[[Row], float], folder: Path, scope: dict[str, Any], variants: Sequence[str]
) -> None:
    """``quality.json``, ``quality.md`` (tables) and plots into ``folder``.

    Args:
        score: of a subject's or a style's row.
        variants: of the ablations, in their order.
    """

    def of(task: str, note: str = "") -> list[Row]:
        return [row for row in rows if row["task"] == task and row["note"] == note]

    parts = [
        f"Subjects {scope['subject_steps']} steps, styles {scope['style_steps']}, batches of {scope['batch']}. Mean ± "
        "standard deviation over subjects or styles, and seeds, which differ more than methods do; so the last column "
        "has the mean difference to LoRA of the same budget, over the same subjects, styles and seeds, ± its standard "
        "error. *Degrees of freedom* are the trained ones; an orthogonal k x k matrix has k (k - 1) / 2.",
        "Diverged runs, and merges that *geodesic* refuses, are counted in the number of runs, not in the means.",
    ]
    parts += reference_lines([row for row in rows if row.get("note") == "base"])
    if subjects := of("subject"):
        extra = _and(_rate, _against_lora(subjects, score))
        parts += ["## Subjects", "Score: gain times prompt accuracy."]
        parts += [table(subjects, ("similarity", "gain", "prompt_accuracy", "class_accuracy"), extra)]
        scatter(subjects, "prompt_accuracy", "similarity", "Subject: likeness against the rest of the prompt",
                folder / "quality-subject.png", ("prompt accuracy", "similarity to the real pictures"))  # fmt: skip
    if styles := of("style"):
        extra = _and(_rate, _against_lora(styles, score))
        parts += ["## Styles", "Score: style probability times class accuracy."]
        parts += [table(styles, ("style_probability", "style_accuracy", "class_accuracy"), extra)]
        scatter(styles, "class_accuracy", "style_accuracy", "Style: on classes that no training picture showed",
                folder / "quality-style.png", ("class accuracy", "style accuracy"))  # fmt: skip
    if merges := of("merge"):
        merges = [{**row, "method": f"{row['method']}, {row['merge_method']}"} for row in merges]
        even = [row for row in merges if row["strengths"] == [1.0, 1.0]]
        parts += ["## Merged, both at strength 1", "Score: *both*."]
        parts += [table(even, MERGE_METRICS, _against_lora(even, _both))]
        best = _best(row for row in merges if row["seed"] == 0)
        parts += [f"## Merged with seed 0, the best of {len(scope['strengths'])} strengths of each pair in hindsight"]
        parts += [table(best, MERGE_METRICS, _against_lora(best, _both))]
        labels = "probability of the style", "similarity to real ones in the style"
        title = "Merged without training: subject and style at once"
        scatter(even, "style_probability", "styled_similarity", title, folder / "quality-merge.png", labels)
    if drift := of("drift"):
        for kind in ("subject", "style"):
            parts += [f"## Drift on prompts without the placeholder, after training a {kind}"]
            parts += [table([row for row in drift if row["after"] == kind], DRIFT_METRICS)]
        bars(drift, "changed", "Drift on prompts without the placeholder", folder / "quality-drift.png",
             "share of what the classifier sees that changed")  # fmt: skip
    for kind in ("subject", "style"):
        if tuning := of(kind, "tuning"):
            parts += [f"## Learning rates, {kind}s", f"Mean score on {kind}s that are not reported; the best is taken."]
            parts += [rate_table(tuning, score)]
            title = f"How much the learning rate matters for a {kind}"
            lines(tuning, score, title, folder / f"quality-rates-{kind}.png")
    if ablations := [row for task in ("subject", "style") for row in of(task, "ablation")]:
        parts += [
            "## Ablations",
            "On a subject and a style that are not reported, at the rates chosen for the method as it is where none is "
            "said (the style is the one on which they were chosen). Mean score ± standard deviation over seeds.",
            ablation_table(ablations, of("drift", "ablation"), score, variants),
        ]
    write_rows("quality", rows, "\n\n".join(parts), folder)


DRIFT_METRICS = ("changed", "pixel_change", "class_accuracy", "style_accuracy", "background_accuracy")
MERGE_METRICS = ("similarity", "styled_similarity", "style_probability", "class_accuracy", "both")


def _rate(group: list[Row]) -> dict[str, str]:
    return {"learning rate": f"{group[0]['lr']:g}"}


def _both(row: Row) -> float:
    return float(row["both"])


def _and(*extras: Callable[[list[Row]], dict[str, str]]) -> Callable[[list[Row]], dict[str, str]]:
    return lambda group: {name: cell for extra in extras for name, cell in extra(group).items()}


def _against_lora(rows: Iterable[Row], score: Callable[[Row], float]) -> Callable[[list[Row]], dict[str, str]]:
    """A cell with the paired difference of the score to LoRA's of the same budget."""

    def what(row: Row) -> tuple[Any, ...]:
        return row["budget"], row.get("subject"), row.get("style"), row["seed"]

    baseline = {what(row): score(row) for row in _lasting(rows) if _plain(row["method"]) == "LoRA"}

    def cell(group: list[Row]) -> dict[str, str]:
        pairs = [(score(row), baseline[what(row)]) for row in _lasting(group) if what(row) in baseline]
        said = ""
        if len(pairs) > 1 and _plain(group[0]["method"]) != "LoRA":
            mean, error = mean_and_error([ours - other for ours, other in pairs])
            said = f"{mean:+.3f} ± {error:.3f}"
        return {"score minus LoRA's": said}

    return cell


def _best(merges: Iterable[Row]) -> list[Row]:
    """Of each method, pair and seed the row with most of both."""
    best: dict[tuple[str, ...], Row] = {}
    for row in merges:
        if row.get("diverged"):
            continue
        key = (row["method"], row["budget"], row["subject"], row["style"], str(row["seed"]))
        if key not in best or row["both"] > best[key]["both"]:
            best[key] = row
    return list(best.values())


def reference_lines(rows: Sequence[Row]) -> list[str]:
    """What the model does without any adapter, in words."""
    lines = []
    for task, metrics in (("subject", ("similarity", "prompt_accuracy")), ("style", ("style_accuracy",))):
        if of := [row for row in rows if row["task"] == task]:
            means = ", ".join(f"{m.replace('_', ' ')} {statistics.fmean(row[m] for row in of):.3f}" for m in metrics)
            lines.append(f"The base without an adapter, on the {task}s' prompts: {means}.")
    return lines


def rate_table(rows: Sequence[Row], score: Callable[[Row], float]) -> str:
    """A line for each method and budget, a column for each learning rate, the best in bold."""
    rates = sorted({row["lr"] for row in rows})
    table = [f"| method | budget | {' | '.join(f'{rate:g}' for rate in rates)} |", "| --- " * (len(rates) + 2) + "|"]
    for (method, budget), group in groups(rows).items():
        scores = {rate: [score(row) for row in group if row["lr"] == rate] for rate in rates}
        means = {rate: statistics.fmean(values) for rate, values in scores.items() if values}
        best = max(means, key=lambda rate: means[rate])
        said = {rate: f"**{mean:.3f}**" if rate == best else f"{mean:.3f}" for rate, mean in means.items()}
        table.append(f"| {method} | {budget} | {' | '.join(said.get(rate, '') for rate in rates)} |")
    return "\n".join(table)


def ablation_table(
    rows: Iterable[Row], drift: Iterable[Row], score: Callable[[Row], float], variants: Sequence[str]
) -> str:
    """A line for each variant: its score on the subject and on the style, and what else it changed."""
    by_name: dict[str, list[Row]] = {name: [] for name in variants}
    for row in rows:
        by_name[row["method"]].append(row)
    changed: dict[str, list[float]] = {}
    for row in _lasting(drift):
        changed.setdefault(row["method"], []).append(row["changed"])
    lines = ["| variant | degrees of freedom | subject | style | drift |", "| --- " * 5 + "|"]
    for name, of in by_name.items():
        lasting = _lasting(of)
        if not of:
            continue
        cells = []
        for task in ("subject", "style"):
            scores = [score(row) for row in lasting if row["task"] == task]
            lost = sum(row["task"] == task for row in of) - len(scores)
            cells.append((_said(scores) if scores else "") + (f" ({lost} diverged)" if lost else ""))
        cells.append(_said(changed[name]) if name in changed else "")
        trained = f"{lasting[0]['params']:,}" if lasting else ""
        lines.append(f"| {name} | {trained} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure of panels with the same axes, and an array of them; not one of pyplot's, which it would keep."""
    from matplotlib.figure import Figure

    figure = Figure(size)
    return figure, figure.subplots(rows, columns, sharex=True, sharey=True)


def _save(figure: Any, title: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")

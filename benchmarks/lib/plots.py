# SPDX-License-Identifier: GPL-3.0-or-later
"""Plots of ``bench quality``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.lib.errors import Mean

#: One colour and marker per method in every plot; ours in warm colours.
LOOKS = {
    "SODA-SVD curve": ("#f57c00", "D"),
    "SODA-SVD": ("#c2185b", "o"),
    "SODA-QR": ("#7b1fa2", "s"),
    "rotation only + shift only": ("#d32f2f", "p"),
    "SODA-SVD curve + shift only": ("#795548", "h"),
    "rotation only": ("#f06292", "^"),
    "shift only": ("#ba68c8", "v"),
    "LoRA": ("#1976d2", "P"),
    "LoKr": ("#0097a7", "X"),
    "OFT": ("#388e3c", "<"),
    "base": ("#757575", "*"),
    "real pictures": ("#212121", "*"),
}


@dataclass(frozen=True)
class Point:
    """What a method does, by two measures."""

    method: str
    label: str  #: in the legend; empty for none
    x: Mean
    y: Mean
    fill: Literal["full", "left", "none"] = "full"  #: of the marker, where its colour does not tell


def scatter(points: Iterable[Point], title: str, path: Path, labels: tuple[str, str]) -> None:
    """Means with their standard errors; up and to the right is better. Lines: equal products."""
    figure, axes = _panels(1, (7, 5.2))
    (panel,) = axes
    for product in (0.1, 0.2, 0.4, 0.6, 0.8):
        xs = [product + i * (1 - product) / 50 for i in range(51)]
        panel.plot(xs, [product / x for x in xs], color="#bbb", lw=0.7, zorder=0)
    for point in points:
        colour, marker = LOOKS[point.method]
        panel.errorbar(
            point.x.value, point.y.value, point.y.error, point.x.error, color=colour, marker=marker, markersize=9,
            fillstyle=point.fill, lw=1.1, ls="none", label=point.label or "_",
        )  # fmt: skip
    panel.set_xlim(-0.03, 1.03)
    panel.set_ylim(-0.03, 1.03)
    panel.set_xlabel(labels[0])
    panel.set_ylabel(labels[1])
    _finish(figure, axes, title, path)


def rates(tried: Mapping[str, Mapping[tuple[str, bool], Mapping[float, float]]], title: str, path: Path) -> None:
    """Score against what all parts' rates are multiplied by, a panel for each kind of task: how much it matters.

    Args:
        tried: by kind, then by method and whether the budget is the second, then by multiple.
    """
    figure, axes = _panels(len(tried), (5.5 * len(tried), 4.2))
    for panel, (kind, methods) in zip(axes, tried.items(), strict=True):
        for (method, second), scores in methods.items():
            colour, marker = LOOKS[method]
            found = sorted(scores.items())
            panel.plot(
                [lr for lr, _ in found], [score for _, score in found], color=colour, marker=marker, markersize=5,
                ls="--" if second else "-", mfc="white" if second else colour,
                label=method + (", small" if second else ""),
            )  # fmt: skip
        panel.set_xscale("log")
        panel.set_xlabel("learning rate, as a multiple")
        panel.set_title(f"{kind}s", loc="left", fontsize=10)
        panel.grid(alpha=0.25)
    axes[0].set_ylabel("score")
    _finish(figure, axes, title, path)


def _panels(columns: int, size: tuple[float, float]) -> tuple[Any, Sequence[Any]]:
    """A figure of panels with the same axes; not one of pyplot's, which it would keep."""
    from matplotlib.figure import Figure

    figure = Figure(size)
    return figure, figure.subplots(1, columns, sharex=True, sharey=True, squeeze=False)[0]


def _finish(figure: Any, axes: Sequence[Any], title: str, path: Path) -> None:
    """One legend for all panels, to their right."""
    shown: dict[str, Any] = {}
    for panel in axes:
        handles, names = panel.get_legend_handles_labels()
        shown |= dict(zip(names, handles, strict=True))
    if shown:
        figure.legend(
            shown.values(), shown.keys(), fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")

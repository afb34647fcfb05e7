# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether what can be measured of two changes, before any picture, tells what their merge loses."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from benchmarks.lib.measured import BOTH, Groups
from benchmarks.lib.results import Row
from benchmarks.lib.tables import markdown
from soda_core.interference import Interference, cosine_between
from soda_core.report.merge import overlap

#: What the pack's merge report measures, and what of it may predict a loss.
MEASURES = {
    "growth": "size of the merged change, of the larger part's",
    "cosine": "of the two changes",
    "shared": "how far they are in the same layers",
    "imbalance": "size of the larger part, of the smaller one's",
}
LEAST = 6  #: runs that a correlation is said of


def measures(subject: Mapping[str, Tensor], style: Mapping[str, Tensor], merged: Mapping[str, Tensor]) -> Row:
    """``MEASURES`` of two changes, as trained, and what they became; nothing where one of them is nothing."""
    rows = {}
    for name in subject.keys() & style.keys():
        a, b = subject[name].float(), style[name].float()
        sizes = float(a.norm()), float(b.norm())
        rows[name] = Interference(cosine_between(a, b), sizes, None, None, float(merged[name].float().norm()))
    ones = dict.fromkeys(rows, 1.0)
    found = overlap(rows, ones, ones)
    if found is None or not (found.subject and found.style):
        return {}
    larger, smaller = max(found.subject, found.style), min(found.subject, found.style)
    return {"growth": found.growth, "cosine": found.cosine, "shared": found.shared, "imbalance": larger / smaller}


def section(recipes: Groups) -> list[str]:
    """Rank correlations of each measure with what is kept, over pairs and seeds.

    Args:
        recipes: merges, and beside them their parts alone (:meth:`.measured.Measured.recipes`).
    """
    from scipy.stats import spearmanr

    lines = []
    for (name, budget), rows in recipes.items():
        shares = kept_shares(rows, recipes)
        if len(shares) < LEAST or not all(set(MEASURES) <= row.keys() for row, _ in shares):
            continue
        ranks = [spearmanr([row[of] for row, _ in shares], [share for _, share in shares]).statistic for of in MEASURES]
        mean = sum(share for _, share in shares) / len(shares)
        lines.append([name, budget, str(len(shares)), f"{mean:.2f}", *(f"{rank:+.2f}" for rank in ranks)])
    if not lines:
        return []
    said = (
        "*Kept*: a merge's score, of what its parts show alone (the probability of the thing under the subject, times "
        "that of the style under the style). Then the rank correlation over pairs and seeds, from -1 to 1, of what is "
        "kept with what the pack's merge report measures of the weights: "
        + "; ".join(f"*{of}*, {text}" for of, text in MEASURES.items())
        + "."
    )
    return ["## What predicts a loss", said, markdown(["merge", "budget", "runs", "kept", *MEASURES], lines)]


def kept_shares(rows: list[Row], recipes: Groups) -> list[tuple[Row, float]]:
    """Merges whose parts show something alone, and how much of that is left."""
    alone = {
        (row["way"], row["subject"], row["style"], row["seed"]): row
        for group in recipes.values()
        for row in group
        if rows and (row["method"], row["budget"]) == (rows[0]["method"], rows[0]["budget"])
    }
    found = []
    for row in rows:
        where = row["subject"], row["style"], row["seed"]
        subject, style = (alone.get((f"{role} alone", *where)) for role in ("subject", "style"))
        if subject and style and "growth" in row:
            whole = subject["thing"] * style["styled"]
            if whole > 0.01:
                found.append((row, row[BOTH] / whole))
    return found

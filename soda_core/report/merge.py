# SPDX-License-Identifier: GPL-3.0-or-later
"""What a merge's two parents do to each other, as Markdown that ends in a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..adapter import SodaAdapter
from ..blocks import block_strengths, groups, short_name
from ..interference import Interference

#: Layers that are listed one by one.
_LISTED = 8
#: Two changes that together are this many times as large as the larger of both leave the model's ground less often than
#: at 1.4, which two equal and independent ones come to.
_COMFORTABLE = 1.22
#: Cosines from here on are agreement, or its opposite.
_ALIGNED = 0.3
#: A parent this many times as large as the other is what one sees.
_DOMINANT = 2.0


@dataclass(frozen=True)
class Overlap:
    """Two changes as one vector each, over the layers that both adapters have, at the strengths of a merge."""

    subject: float  #: norms, as trained
    style: float
    dot: float  #: of the two, as trained
    merged: float  #: norm of the merged change
    shared: float  #: 0..1: share of their size that lies in the same layers
    scales: tuple[float, float]  #: norms at the strengths

    @property
    def cosine(self) -> float:
        scale = self.subject * self.style
        return self.dot / scale if scale else 0.0

    @property
    def growth(self) -> float:
        """How many times as large the merged change is as the larger parent's, as trained."""
        largest = max(self.subject, self.style)
        return self.merged / largest if largest else 0.0

    def subject_strength(self) -> float:
        """For a style at 1: at which the merged change grows comfortably, from 0.1 to 1 in steps of 0.05."""
        a, b, c = self.subject**2, 2 * self.dot, self.style**2 - (_COMFORTABLE * max(self.subject, self.style)) ** 2
        root = b * b - 4 * a * c
        best = (-b + math.sqrt(root)) / (2 * a) if a and root >= 0 else 0.0
        return min(1.0, max(0.1, round(best * 20) / 20))


def overlap(
    rows: Mapping[str, Interference], of_subject: Mapping[str, float], of_style: Mapping[str, float]
) -> Overlap | None:
    """None where the deltas were not measured.

    Args:
        of_subject, of_style: strengths by layer.
    """
    measured = {name: (row.sizes, row.cosine or 0.0) for name, row in rows.items() if row.sizes is not None}
    if not measured:
        return None
    squares = [0.0] * 5
    for name, ((subject, style), cosine) in measured.items():
        a, b, dot = of_subject[name], of_style[name], cosine * subject * style
        scaled = (a * subject) ** 2, (b * style) ** 2
        made = rows[name].merged
        merged = sum(scaled) + 2 * a * b * dot if made is None else made**2
        for i, value in enumerate((subject**2, style**2, merged, *scaled)):
            squares[i] += value
    subject, style, whole, *scales = (math.sqrt(max(0.0, value)) for value in squares)
    parts = [(s / subject if subject else 0.0, t / style if style else 0.0) for (s, t), _ in measured.values()]
    shared = sum(min(s * s, t * t) for s, t in parts)
    dot = sum(cosine * s * t for (s, t), cosine in measured.values())
    return Overlap(subject, style, dot, whole, shared, (scales[0], scales[1]))


def verdict(found: Overlap | None) -> str:
    """What the measured interference means, and which strengths to try."""
    if found is None:
        return "connect the base model: only then can be measured how much the two get in each other's way."
    a = found.subject_strength()
    larger, smaller = sorted(zip(found.scales, ("subject", "style"), strict=True), reverse=True)
    if not smaller[0]:
        return f"only the {larger[1]} changes anything at these strengths."
    grown = f"together they change the weights {found.growth:.2f} times as much as the stronger one alone"
    same = "in the same layers" if found.shared >= 0.5 else "mostly in different layers"
    if found.cosine <= -_ALIGNED:
        return (
            f"the two pull against each other ({same}, cosine {found.cosine:+.2f}), and what one adds the other takes "
            "away. Give each its own blocks, with subject_blocks and style_blocks; the table says where they meet."
        )
    if found.growth > _COMFORTABLE + 0.03 and a < 1:
        reason = "both change the same layers strongly" if found.shared >= 0.5 else "each changes layers of its own"
        if found.cosine >= _ALIGNED:
            reason = f"both push the same way ({same}, cosine {found.cosine:+.2f})"
        return f"{reason}; {grown}. Try {a:g} for the subject and 1 for the style."
    if larger[0] > _DOMINANT * smaller[0]:
        return (
            f"the {larger[1]} is {larger[0] / smaller[0]:.1f} times as strong as the {smaller[1]} and may drown it. "
            f"If it does, halve {larger[1]}_strength."
        )
    return f"they go together at these strengths: {grown}. Keep them, and judge by pictures."


def interference_report(
    subject: SodaAdapter, style: SodaAdapter, rows: Mapping[str, Interference], merged: SodaAdapter
) -> str:
    """The interference as Markdown: by blocks, then the layers that interfere most, then the verdict."""
    settings, parents = merged.metadata["settings"], [("subject", subject), ("style", style)]
    strengths = [parent["strength"] for parent in merged.metadata["parents"]]
    of_subject, of_style = (
        {name: strength * b for name, b in block_strengths(settings.get(f"{role}_blocks", ""), adapter.layers).items()}
        for (role, adapter), strength in zip(parents, strengths, strict=True)
    )
    lines = [f"**{settings['merge_method']} merge**", ""]
    for (role, adapter), strength in zip(parents, strengths, strict=True):
        blocks = settings.get(f"{role}_blocks")
        lines.append(f"- {role}: {strength:g} x {adapter.label}{f' ({blocks})' if blocks else ''}")
    if "balance" in settings:
        lines.append(f"- balance {settings['balance']:g}, magnitude {settings['magnitude']}")
    of_one = [f"{len(adapter.layers) - len(rows)} only in the {role}" for role, adapter in parents]
    lines.append(f"- layers: {len(merged.layers)} in the result, {len(rows)} in both, {', '.join(of_one)}")
    lines += [f"- careful: {note}" for note in notes(subject, merged)]
    hashes = [adapter.base_model.get("hash") for adapter in (subject, style)]
    if all(hashes) and hashes[0] != hashes[1]:
        lines.append(
            f"- careful: trained on two checkpoints, {subject.trained_on} and {style.trained_on}; loading says how far "
            "each shift is off"
        )
    lines += ["", *_table("blocks", _by_blocks(rows))]
    if len(rows) > 1:
        order = sorted(rows.items(), key=lambda item: -abs(item[1].cosine or item[1].shift_cosine or 0.0))
        head = f"layer ({_LISTED} of {len(rows)})" if len(rows) > _LISTED else "layer"
        lines += ["", *_table(head, [(short_name(name), [row]) for name, row in order[:_LISTED]])]
    lines += [
        "",
        "*Cosines*: 0 = the two changes do not meet, 1 = the same twice, -1 = they cancel. *Apart*: angle between the "
        "two rotations.",
        "",
        f"**Verdict**: {verdict(overlap(rows, of_subject, of_style))}",
    ]
    return "\n".join(lines)


def notes(subject: SodaAdapter, merged: SodaAdapter) -> list[str]:
    """What a merge did that its method's name does not say."""
    said, method = [], merged.metadata["settings"]["merge_method"]
    products = sum(layer.rule == "product" for layer in merged.layers.values())
    shifts = sum(layer.rank is not None for layer in subject.layers.values())
    if method == "parts" and shifts:
        said.append(f"the subject's shift ({shifts} of {len(subject.layers)} layers have one) is left out")
    if method == "geodesic" and products:
        said.append(
            f"factor sizes or decompositions differ in {products} of {len(merged.layers)} layers; there one rotation "
            "follows the other, and which is the subject's makes a small difference"
        )
    return said


def _by_blocks(rows: Mapping[str, Interference]) -> list[tuple[str, list[Interference]]]:
    """Wide groups of blocks and their rows."""
    return [(name, [rows[layer] for layer in of]) for name, of in groups(rows).items() if "." not in name]


_COLUMNS: tuple[tuple[str, Callable[[Interference], float | None], str], ...] = (
    ("change", lambda row: row.cosine, "+.3f"),
    ("shift", lambda row: row.shift_cosine, "+.3f"),
    ("apart", lambda row: row.rotation_distance, ".1f"),
)


def _table(head: str, rows: Sequence[tuple[str, Iterable[Interference]]]) -> list[str]:
    """A Markdown table that is aligned as plain text too; means over the rows of a line."""
    cells = [[head, *(name for name, _, _ in _COLUMNS)]]
    for name, of in rows:
        line = [name]
        for column, value_of, style in _COLUMNS:
            known = [value for row in of if (value := value_of(row)) is not None]
            unit = "°" if column == "apart" else ""
            line.append(f"{sum(known) / len(known):{style}}{unit}" if known else "-")
        cells.append(line)
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    cells.insert(1, ["-" * (w - 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)])
    padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in cells]
    return [f"| {' | '.join(line)} |" for line in padded]

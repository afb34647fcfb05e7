# SPDX-License-Identifier: GPL-3.0-or-later
"""What a merge's two parents do to each other, as text."""

from __future__ import annotations

from collections.abc import Mapping

from ..adapter import SodaAdapter
from ..merge import Interference


def interference_report(
    subject: SodaAdapter, style: SodaAdapter, rows: Mapping[str, Interference], merged: SodaAdapter
) -> str:
    """The interference as text a person reads: the summary first, then a line per layer, most interfering first."""
    settings = merged.metadata["settings"]
    lines = [
        f"{settings['merge_method']} merge: {settings['subject_strength']:g} x {subject.label}"
        f" + {settings['style_strength']:g} x {style.label}",
        f"layers: {len(merged.layers)} in the result, {len(rows)} in both, "
        f"{len(subject.layers) - len(rows)} only in the subject, {len(style.layers) - len(rows)} only in the style",
    ]
    hashes = [adapter.base_model.get("hash") for adapter in (subject, style)]
    if all(hashes) and hashes[0] != hashes[1]:
        lines.append(
            f"careful: trained on two checkpoints, {subject.trained_on} and {style.trained_on}; loading says how far "
            "each shift is off"
        )
    for label, unit, values in (
        ("cosine of the deltas", "", [r.cosine for r in rows.values()]),
        ("cosine of the shifts", "", [r.shift_cosine for r in rows.values()]),
        ("distance of the rotations", "°", [r.rotation_distance for r in rows.values()]),
    ):
        known = [v for v in values if v is not None]
        if known:
            mean = sum(known) / len(known)
            largest, sign = max(known, key=abs), "" if unit else "+"
            lines.append(f"{label}: mean {mean:{sign}.3f}{unit}, largest {largest:{sign}.3f}{unit}")
        elif label == "cosine of the deltas":
            lines.append("cosine of the deltas: connect the base model to measure it")
    lines.append("cosines: 0 = the two changes do not meet, 1 = the same twice (lower one strength), -1 = they cancel")
    lines.append("")
    lines.append(f"{'delta cos':>9}  {'shift cos':>9}  {'rotation':>9}  layer")
    order = sorted(rows.items(), key=lambda item: -abs(item[1].cosine or item[1].shift_cosine or 0.0))
    for name, row in order:
        cells = [
            format(value, style) + unit if value is not None else "-"
            for value, style, unit in (
                (row.cosine, "+.3f", ""),
                (row.shift_cosine, "+.3f", ""),
                (row.rotation_distance, ".2f", "°"),
            )
        ]
        lines.append("  ".join(f"{cell:>9}" for cell in cells) + f"  {name.removeprefix('diffusion_model.')}")
    return "\n".join(lines)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The base check as text."""

from __future__ import annotations

from ..adapter import SodaAdapter
from ..base_check import REFUSE_ABOVE, WARN_ABOVE, BaseReport


def summary(report: BaseReport) -> str:
    """One line for a log, more when the error is worth it."""
    if not report.layers:
        return "base check: nothing to compare"
    text = (
        f"base check: spectral part off by {report.spectral_error:.2%} overall, "
        f"base weights differ by {report.base_distance:.2%}"
    )
    if not report.spectral_error <= WARN_ABOVE:
        worst = ", ".join(f"{name} {check.spectral_error:.1%}" for name, check in report.worst()[:3])
        text += f"; worst layers: {worst}"
    return text


def unchecked(adapter: SodaAdapter) -> str:
    """Of an adapter that carries no base check: what that means."""
    return (
        f"its file carries no base check, so nothing tells a wrong base model: it was trained on {adapter.trained_on}; "
        "look at pictures with and without it"
    )


def table(report: BaseReport) -> str:
    """A line per layer, worst first."""
    lines = [f"{'spectral':>9}  {'base':>9}  layer"]
    for name, check in report.worst():
        lines.append(f"{check.spectral_error:>9.2%}  {check.base_distance:>9.2%}  {name}")
    return "\n".join(lines)


def refusal(report: BaseReport, adapter: SodaAdapter) -> str:
    """Why an adapter is not used on this base, and what to do."""
    return (
        f"{adapter.label} does not fit this base model: {summary(report)} (allowed {REFUSE_ABOVE:.0%}). It was "
        f"trained on {adapter.trained_on}: load that file in that precision, or turn on 'ignore_base_check' "
        "to use it all the same"
    )

# SPDX-License-Identifier: GPL-3.0-or-later
"""``soda check``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..base_weight import BaseWeight
from ..errors import BaseMismatchError
from ..interop.checkpoint import CheckpointWeights
from ..report.base_check import refusal, summary, table, unchecked
from .common import Answer, Command, load, progress


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", type=Path)
    parser.add_argument("base", type=Path, help="checkpoint of the base model (safetensors, as ComfyUI loads it)")


def _run(arguments: argparse.Namespace) -> Answer:
    adapter, base = load(arguments.adapter), CheckpointWeights(arguments.base)
    show = progress(arguments, "check")
    if not any(name in base for name in adapter.layers):
        raise BaseMismatchError(
            f"no layer of {adapter.title} is in {arguments.base.name}; it was trained on {adapter.trained_on}"
        )
    places = {name: done for done, name in enumerate(adapter.layers)}

    def weight(name: str) -> BaseWeight | None:
        show(places[name], len(places))
        return base.get(name)

    report = adapter.check_base(weight)
    show(len(places), len(places))
    if report.refused:
        raise BaseMismatchError(refusal(report, adapter))
    missing = [name for name in adapter.layers if name not in base]
    lines = [summary(report) if adapter.carries_base_check else f"{adapter.title}: {unchecked(adapter)}"]
    lines += [f"{len(missing)} layers are not in this file"] if missing else []
    lines += ["", table(report)] if report.layers else []
    data = {
        "spectral_error": report.spectral_error,
        "base_distance": report.base_distance,
        "layers": {name: [check.spectral_error, check.base_distance] for name, check in report.layers.items()},
        "missing": missing,
        "checked": adapter.carries_base_check,
    }
    return Answer("\n".join(lines), data)


COMMAND = Command(
    "check",
    "whether an adapter fits a base model",
    "The base check without ComfyUI: how well an adapter's spectral shift is reproduced on the weights of a file. "
    "Exit code 1 where it does not fit.",
    ("check fox.safetensors sdxl.safetensors",),
    _add_arguments,
    _run,
)

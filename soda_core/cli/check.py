# SPDX-License-Identifier: GPL-3.0-or-later
"""``soda check``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..base_check import BaseCheck, BaseReport
from ..errors import BaseMismatchError
from ..interop.checkpoint import CheckpointWeights
from ..report.base_check import refusal, summary, table
from .common import Answer, Command, load, progress


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", type=Path)
    parser.add_argument("base", type=Path, help="checkpoint of the base model (safetensors, as ComfyUI loads it)")


def _run(arguments: argparse.Namespace) -> Answer:
    adapter, base = load(arguments.adapter), CheckpointWeights(arguments.base)
    show = progress(arguments, "check")
    checks: dict[str, BaseCheck] = {}
    found = [name for name in adapter.layers if name in base]
    if not found:
        raise BaseMismatchError(
            f"no layer of {adapter.title} is in {arguments.base.name}; it was trained on {adapter.trained_on}"
        )
    for done, name in enumerate(found):
        show(done, len(found))
        weight = base[name]
        adapter.layers[name].check_shape(name, weight.shape)
        if (check := adapter.layers[name].check_base(weight)) is not None:
            checks[name] = check
    show(len(found), len(found))
    report = BaseReport(checks)
    if report.refused:
        raise BaseMismatchError(refusal(report, adapter))
    missing = len(adapter.layers) - len(found)
    lines = [summary(report), *([f"{missing} layers are not in this file"] if missing else []), "", table(report)]
    data = {
        "spectral_error": report.spectral_error,
        "base_distance": report.base_distance,
        "layers": {name: [check.spectral_error, check.base_distance] for name, check in checks.items()},
        "missing": [name for name in adapter.layers if name not in base],
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

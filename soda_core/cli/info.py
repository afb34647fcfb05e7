# SPDX-License-Identifier: GPL-3.0-or-later
"""``soda info``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..adapter import SodaAdapter
from ..report.base_check import unchecked
from ..report.inspection import metadata_text
from . import settings_file
from .common import Answer, Command, load


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", type=Path)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--layers", action="store_true", help="a line for every layer")
    what.add_argument("--settings", action="store_true", help="how it was trained, as TOML for soda train --settings")


def _run(arguments: argparse.Namespace) -> Answer:
    adapter = load(arguments.adapter)
    if arguments.settings:
        return Answer(settings_file.text(adapter), settings_file.settings(adapter))
    data = json.loads(metadata_text(adapter))
    lines = [f"{adapter.title}: {len(adapter.layers)} layers, {adapter.num_parameters:,} parameters"]
    lines.append(f"trained on {adapter.trained_on}")
    if adapter.trigger_phrase:
        lines.append(f"trigger phrase: {adapter.trigger_phrase}")
    if not adapter.carries_base_check:
        lines.append(f"base check: none; {unchecked(adapter)}")
    lines += [f"{key}: {json.dumps(data[key], ensure_ascii=False)}" for key in sorted(data) if key not in _SAID]
    if arguments.layers:
        lines += ["", *(f"{name}  {layer}" for name, layer in adapter.layers.items())]
        data["layer_shapes"] = _shapes(adapter)
    return Answer("\n".join(lines), data)


#: Metadata that the first lines say already.
_SAID = ("title", "trigger_phrase", "layers", "parameters")


def _shapes(adapter: SodaAdapter) -> dict[str, list[int] | None]:
    return {name: None if layer.shape is None else list(layer.shape) for name, layer in adapter.layers.items()}


COMMAND = Command(
    "info",
    "what an adapter's file says of itself",
    "Title, trigger phrase, base model, settings and parents of an adapter.",
    (
        "info fox.safetensors",
        "info fox.safetensors --json",
        "info fox.safetensors --layers",
        "info fox.safetensors --settings > fox.toml",
    ),
    _add_arguments,
    _run,
)

# SPDX-License-Identifier: GPL-3.0-or-later
"""``soda export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from ..interop.checkpoint import CheckpointWeights
from ..interop.lora import export
from ..interop.lora_settings import LoraSettings, Size
from ..training.setting import settings_of
from .common import Answer, Command, add_output, add_setting, given, load, output_path, progress

_SIZES = get_args(Size)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", type=Path)
    parser.add_argument("base", type=Path, help="checkpoint of the base model (safetensors, as ComfyUI loads it)")
    add_output(parser)
    sizes = parser.add_mutually_exclusive_group()
    for name in settings_of(LoraSettings):
        if name == "by":
            sizes.add_argument("--exact", action="store_true", help="everything, as full differences")
        else:
            add_setting(sizes if name in _SIZES else parser, LoraSettings, name)
    parser.add_argument("--ignore-base-check", action="store_true", help="export also what does not fit this base")


def _run(arguments: argparse.Namespace) -> Answer:
    path = output_path(arguments)
    options = given(arguments, *(name for name in settings_of(LoraSettings) if name != "by"))
    if chosen := ["exact"] if arguments.exact else [name for name in _SIZES if name in options]:
        options["by"] = chosen[0]
    adapter, base = load(arguments.adapter), CheckpointWeights(arguments.base)
    made = export(adapter, base, LoraSettings(**options), arguments.ignore_base_check, progress(arguments, "export"))
    made.save(path)
    return Answer(made.report.text(str(path)), {"file": str(path), **made.report.as_json()})


COMMAND = Command(
    "export",
    "an adapter as a LoRA for other programs",
    "Write an adapter's change of its base model as a LoRA, and say how much of the change that leaves out.",
    (
        "export fox.safetensors sdxl.safetensors -o fox-lora.safetensors",
        "export fox.safetensors sdxl.safetensors -o fox-lora.safetensors --naming kohya --error 0.2",
        "export fox.safetensors sdxl.safetensors -o fox-full.safetensors --exact",
    ),
    _add_arguments,
    _run,
)

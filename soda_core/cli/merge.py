# SPDX-License-Identifier: GPL-3.0-or-later
"""``soda merge``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from ..merge import MergeMethod, merge
from .common import Answer, Command, add_output, given, load, output_path


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", type=Path, help="adapter trained on pictures of one subject")
    parser.add_argument("style", type=Path, help="adapter trained on pictures in one style")
    add_output(parser)
    for of in ("subject", "style"):
        parser.add_argument(
            f"--{of}-strength", type=float, default=argparse.SUPPRESS, metavar="S",
            help=f"how much of the {of}; 1 = as trained (default)",
        )  # fmt: skip
        parser.add_argument(
            f"--{of}-blocks", default=argparse.SUPPRESS, metavar="TEXT",
            help=f"what the {of}'s strength is multiplied by in some blocks: 'up 0.5, middle 0'",
        )  # fmt: skip
    parser.add_argument(
        "--method", choices=get_args(MergeMethod), default=argparse.SUPPRESS,
        help="delta (default): adds both changes; geodesic: stays a rotation, needs equal factor sizes",
    )  # fmt: skip


def _run(arguments: argparse.Namespace) -> Answer:
    path = output_path(arguments)
    options = given(arguments, "subject_strength", "style_strength", "method", "subject_blocks", "style_blocks")
    merged = merge(load(arguments.subject), load(arguments.style), **options)
    merged.save(path)
    data = {"file": str(path), "title": merged.title, "layers": len(merged.layers), "hash": merged.identity()}
    return Answer(f"{path}: {merged.title}, {len(merged.layers)} layers", data)


COMMAND = Command(
    "merge",
    "a subject and a style adapter into one",
    "Merge a subject and a style adapter of one base model into one, without training.",
    (
        "merge fox.safetensors ink.safetensors -o fox-ink.safetensors",
        "merge fox.safetensors ink.safetensors -o fox-ink.safetensors --subject-strength 0.7",
    ),
    _add_arguments,
    _run,
)

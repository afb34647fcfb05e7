# SPDX-License-Identifier: GPL-3.0-or-later
"""``soda merge``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from ..merge import Magnitude, MergeMethod, merge
from ..report.merge import notes
from .common import Answer, Command, add_output, given, load, output_path

#: Arguments of :func:`..merge.merge` that are flags here.
OPTIONS = ("subject_strength", "style_strength", "method", "subject_blocks", "style_blocks", "balance", "magnitude")


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
        help="delta (default): adds both changes; normalised: no larger than the larger; geodesic: stays a "
        "rotation; parts: the subject's rotation, the style's shift; projection: the subject off the style's "
        "inputs; tsv: low rank",
    )  # fmt: skip
    parser.add_argument(
        "--balance", type=float, default=argparse.SUPPRESS, metavar="T",
        help="between subject (0) and style (1), on top of the strengths; 0.5 leaves them (default)",
    )  # fmt: skip
    parser.add_argument(
        "--magnitude", choices=get_args(Magnitude), default=argparse.SUPPRESS,
        help="size along the balance: constant (default); orthofuse: 1 at both ends, 2 in the middle; mean norm: with "
        "geodesic, as large as both on average",
    )  # fmt: skip


def _run(arguments: argparse.Namespace) -> Answer:
    path = output_path(arguments)
    options = given(arguments, *OPTIONS)
    subject = load(arguments.subject)
    merged = merge(subject, load(arguments.style), **options)
    merged.save(path)
    careful = notes(subject, merged)
    data = {"file": str(path), "title": merged.title, "layers": len(merged.layers), "hash": merged.identity()}
    lines = [f"{path}: {merged.title}, {len(merged.layers)} layers", *(f"careful: {note}" for note in careful)]
    return Answer("\n".join(lines), data | {"notes": careful})


COMMAND = Command(
    "merge",
    "a subject and a style adapter into one",
    "Merge a subject and a style adapter of one base model into one, without training.",
    (
        "merge fox.safetensors ink.safetensors -o fox-ink.safetensors",
        "merge fox.safetensors ink.safetensors -o fox-ink.safetensors --subject-strength 0.7",
        "merge fox.safetensors ink.safetensors -o fox-ink.safetensors --balance 0.6 --magnitude orthofuse",
    ),
    _add_arguments,
    _run,
)

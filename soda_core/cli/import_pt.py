# SPDX-License-Identifier: GPL-3.0-or-later
"""``soda import``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from ..interop.authors_pt import read
from ..spectral import Decomposition
from .common import Answer, Command, add_output, output_path


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="peft_<step>.pt of the authors' training script (SDXL)")
    add_output(parser)
    parser.add_argument(
        "--decomposition", required=True, choices=get_args(Decomposition),
        help="what was trained; files of both look the same",
    )  # fmt: skip
    parser.add_argument("--title", default="", help="title of the adapter; the file's name by default")
    parser.add_argument("--trigger-phrase", default="", help="the phrase it was trained with")


def _run(arguments: argparse.Namespace) -> Answer:
    path = output_path(arguments)
    imported = read(arguments.file, arguments.decomposition, arguments.title, arguments.trigger_phrase)
    imported.adapter.save(path)
    data = {"file": str(path), "layers": len(imported.adapter.layers), "off_orthogonal": imported.moved}
    return Answer(f"{path}: {imported.text()}", data)


COMMAND = Command(
    "import",
    "the authors' peft_<step>.pt as an adapter",
    "Turn a file of the authors' training script into an adapter. Only tensors are read from it: a file with anything "
    "else in it is refused.",
    ("import peft_1000.pt -o dog.safetensors --decomposition svd --trigger-phrase 'sks dog'",),
    _add_arguments,
    _run,
)

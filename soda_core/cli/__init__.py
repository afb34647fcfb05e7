# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ``soda``: adapters without ComfyUI, and training by a ComfyUI without its browser.

Answers go to the standard output, as text or with ``--json`` for programs; progress and errors to the standard error.
Exit codes: 0 done, 1 a file or value that cannot be used (one line says why), 2 wrong usage, 130 stopped by Ctrl-C (and
128 + n by another signal).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from ..errors import SodaError
from ..version import VERSION
from . import check, completion, export, import_pt, info, merge, train
from .common import Command

COMMANDS: list[Command] = [
    train.COMMAND, info.COMMAND, check.COMMAND, merge.COMMAND, export.COMMAND, import_pt.COMMAND, completion.COMMAND,
]  # fmt: skip


def parser() -> argparse.ArgumentParser:
    return _parsers()[0]


def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """By name of the command."""
    return _parsers()[1]


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    top = argparse.ArgumentParser(
        prog="soda",
        description="SODA adapters on the command line: train, inspect, check, merge, export and import them.",
        epilog="soda COMMAND --help shows a command's arguments and examples.",
    )
    top.add_argument("--version", action="version", version=f"soda {VERSION}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parsers = {}
    for command in COMMANDS:
        own = parsers[command.name] = commands.add_parser(
            command.name,
            help=command.summary,
            description=command.description,
            epilog="examples:\n" + "\n".join(f"  soda {example}" for example in command.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(own)
        own.add_argument("--json", action="store_true", help="answer with one JSON object")
        own.add_argument("--quiet", action="store_true", help="no progress on the standard error")
        own.set_defaults(run=command.run)
    return top, parsers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (by default the process's own); returns the exit code."""
    given = parser().parse_args(arguments)
    try:
        answer = given.run(given)
    except (SodaError, OSError) as error:
        print(f"soda: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("soda: stopped", file=sys.stderr)
        return 130
    if not answer.silent:
        print(json.dumps(answer.data, indent=2, sort_keys=True) if given.json else answer.text)
    return answer.code

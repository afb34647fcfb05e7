# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapter import SodaAdapter
from ..errors import SettingsError, SodaError
from ..tensor_file import EXTENSION
from ..training.setting import settings_of
from .screen import Screen


@dataclass(frozen=True)
class Answer:
    """What a command found or did: for a person, and for a program (plain JSON)."""

    text: str
    data: dict[str, Any]
    code: int = 0  #: exit code
    silent: bool = False  #: another process answers


@dataclass(frozen=True)
class Command:
    name: str
    summary: str  #: one line
    description: str
    examples: tuple[str, ...]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Answer]


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="file to write (.safetensors)")
    parser.add_argument("--overwrite", action="store_true", help="replace a file of that name")


def add_setting(parser: Any, record: type, name: str) -> None:
    """A flag for a field of a record of settings; :func:`given` says which of them the user gave.

    Args:
        parser: or a group of one.
    """
    setting, default = settings_of(record)[name], getattr(record, name)
    shown = f" (default: {default})" if default not in ("", None) and "default" not in setting.help else ""
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": (setting.help + shown).replace("%", "%%")}
    if isinstance(default, bool):
        options["action"] = argparse.BooleanOptionalAction
    elif setting.choices:
        options["choices"] = setting.choices
    else:
        options |= {"type": type(default), "metavar": "TEXT" if isinstance(default, str) else "X"}
    parser.add_argument(f"--{name.replace('_', '-')}", **options)


def output_path(arguments: argparse.Namespace) -> Path:
    """Where to write.

    Raises:
        SettingsError: another extension, or a file that is there and is not to be replaced.
    """
    path: Path = arguments.output
    if path.suffix != EXTENSION:
        raise SettingsError(f"--output must end in {EXTENSION}, got {str(path)!r}")
    if path.exists() and not arguments.overwrite:
        raise SettingsError(f"{path} exists; choose another name, or --overwrite replaces it")
    return path


def load(path: Path) -> SodaAdapter:
    """Read an adapter."""
    if not path.is_file():
        raise SodaError(f"{path}: there is no such file")
    return SodaAdapter.load(path)


def progress(arguments: argparse.Namespace, what: str) -> Callable[[int, int], None]:
    """A bar on the standard error, where that is a terminal and the user wants one."""
    screen = Screen(bar=not arguments.quiet and sys.stderr.isatty())

    def show(done: int, total: int) -> None:
        if done < total:
            screen.progress(done, total, f"{what} {done}/{total}")
        else:
            screen.clear()

    return show


def given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the arguments that the user gave; for the others the function's own defaults count."""
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}

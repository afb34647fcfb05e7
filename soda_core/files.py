# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that appear whole or not at all, under names that stay in their folder."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from .errors import SettingsError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what takes the place of ``path`` once it is complete and on the disk; its folder is made.

    An error leaves ``path`` as it was, and nothing beside it.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    try:
        yield unfinished
        with open(unfinished, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise now the ``OSError`` that :func:`replacing` would raise later of a name or folder that takes no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    unfinished.touch()
    unfinished.unlink()


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")


def check_prefix(prefix: str) -> str:
    """A file name prefix, possibly with a sub-folder (``people/anna``), that stays inside its folder.

    Raises:
        SettingsError: it is empty, absolute, or leaves the folder.
    """
    clean = prefix.strip().replace("\\", "/")
    parts = PurePosixPath(clean).parts
    absolute = PurePosixPath(clean).is_absolute() or bool(PureWindowsPath(clean).drive)
    if not parts or absolute or ".." in parts or "\0" in clean or clean.endswith("/"):
        raise SettingsError(
            f"file name prefix {prefix!r} is not allowed: use a plain name or sub-folder/name, without '..' and not "
            "an absolute path"
        )
    return clean

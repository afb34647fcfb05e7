# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that appear whole or not at all, under names that stay in their folder."""

from __future__ import annotations

import logging
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath

from .errors import SettingsError
from .text import half_character, printable

#: In the place of a random number, in the name of a file that only claims another's.
_CLAIM = "0" * 8


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
        _sync_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def check_writable(path: Path, data: bytes = b"") -> None:
    """Raise now the ``OSError`` that writing ``data`` to ``path`` would raise later: of its name, its folder, its size.

    Nothing stays but the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def numbered(folder: Path, name: Callable[[int], str], number: int) -> Iterator[Path]:
    """The first path from ``number`` on that is free, to write a new file to.

    The file system decides who has a number, so that other processes, which do the same at the same time, leave it
    alone: a claim beside the path is created exclusively and stays until the file is there.

    Args:
        folder: exists.
        name: of the file with a number.
    Raises:
        OSError: the folder cannot be written.
    """
    while True:
        path = folder / name(number)
        claim = _beside(path, _CLAIM)
        number += 1
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:  # another process writes this one, or died of it
            continue
        try:
            if not os.path.lexists(path):
                yield path
                return
        finally:
            claim.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """So that a file's new name, too, outlives a power cut; as far as the system can."""
    with suppress(OSError):  # Windows opens no folders
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _unfinished(path: Path) -> Path:
    return _beside(path, uuid.uuid4().hex[:8])


def _beside(path: Path, tag: str) -> Path:
    return path.with_name(f".{path.name}.{tag}.partial")


#: The names that :func:`_unfinished` gives, and no others.
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.partial", re.DOTALL)
#: Seconds after which nobody is writing it any more.
_STALE = 24 * 3600


def leftovers(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Files below a folder that :func:`replacing` is writing, or was when its process was killed."""
    for parent, _, names in os.walk(folder):  # (follows no links, and passes over what it may not read)
        for name in filter(_LEFTOVER.fullmatch, names):
            path = Path(parent, name)
            try:
                found = path.lstat()
            except OSError:  # finished meanwhile
                continue
            if stat.S_ISREG(found.st_mode):
                yield path, found


def sweep(folder: Path) -> None:
    """Remove :func:`leftovers` that are older than a day; best effort."""
    for path, found in leftovers(folder):
        if time.time() - found.st_mtime < _STALE:
            continue
        try:
            path.unlink(missing_ok=True)
            logging.info("SODA: removed %s, left by a process that was killed", printable(path.name))
        except OSError as error:
            logging.warning("SODA: could not remove %s: %s", printable(path.name), error.strerror or error)


def check_prefix(prefix: str) -> str:
    """A file name prefix, possibly with a sub-folder (``people/anna``), that stays inside its folder.

    Raises:
        SettingsError: it is empty, absolute, leaves the folder, or is no text that a file can hold.
    """
    check_text("file name prefix", prefix)
    clean = prefix.strip().replace("\\", "/")
    parts = PurePosixPath(clean).parts
    absolute = PurePosixPath(clean).is_absolute() or bool(PureWindowsPath(clean).drive)
    if not parts or absolute or ".." in parts or "\0" in clean or clean.endswith("/"):
        raise SettingsError(
            f"file name prefix {prefix!r} is not allowed: use a plain name or sub-folder/name, without '..' and not "
            "an absolute path"
        )
    return clean


def check_text(name: str, text: str) -> None:
    """
    Raises:
        SettingsError: a text of a setting holds half a character.
    """
    place = half_character(text)
    if place is not None:
        raise SettingsError(
            f"{name} {text!r} holds half a character at place {place + 1}, which no file can hold; type it anew"
        )

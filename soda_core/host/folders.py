# SPDX-License-Identifier: GPL-3.0-or-later
"""Where adapters live: the model folder type ``soda``. Names from a user always go through here."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import folder_paths
from PIL import Image

from .. import fileformat, files
from ..adapter import SodaAdapter
from ..errors import SettingsError, SodaError
from ..files import check_prefix
from ..interop.lora import Export
from ..tensor_file import EXTENSION
from ..text import printable
from . import pictures
from .server import announce_saved

FOLDER = "soda"
LORAS = "loras"  #: the host's own


def register() -> None:
    """Make ``soda`` a model folder: the user's extra paths first, then models/soda and output/soda."""
    for parent in (folder_paths.models_dir, folder_paths.get_output_directory()):
        folder_paths.add_model_folder_path(FOLDER, os.path.join(parent, FOLDER))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {EXTENSION})


def adapter_names() -> list[str]:
    return folder_paths.get_filename_list(FOLDER)  # type: ignore[no-any-return]


def adapter_path(name: str) -> Path:
    """Full path of a listed adapter; the host's lookup cannot leave its folders."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise SettingsError(f"no adapter {name!r} in the soda folders; there are {len(adapter_names())} others")
    return Path(path)


def version_of(name: str) -> str:
    """Another text once a listed adapter's file is another; of other names, themselves."""
    try:
        stat = adapter_path(name).stat()
    except (OSError, ValueError):
        return name
    return f"{name} {stat.st_mtime_ns} {stat.st_size}"


def load_adapter(name: str) -> SodaAdapter:
    return SodaAdapter.load(adapter_path(name))


def save_adapter(adapter: SodaAdapter, prefix: str, picture: Image.Image | None = None) -> str:
    """Save under the first soda folder as ``<prefix>_00001_.safetensors``, counting up; returns the listed name.

    The title in the file is that of no other file.

    Args:
        picture: what it looks like, for the model library; kept beside the file and, small, in it.
    """
    return _save(FOLDER, prefix, lambda path: _write(adapter, path, picture))


def save_lora(export: Export, prefix: str) -> str:
    """The same in the host's first LoRA folder."""
    return _save(LORAS, prefix, export.save)


@dataclass(frozen=True)
class Kept:
    """Where an adapter is that must not be lost."""

    name: str  #: as listed; outside the soda folders its whole path
    warning: str = ""  #: what a user must know of that place


def keep_adapter(adapter: SodaAdapter, prefix: str, picture: Image.Image | None = None) -> Kept:
    """:func:`save_adapter` in the first soda folder that takes it, where none does in the host's temporary folder.

    Raises:
        SodaError: not even there.
    """

    def write(path: Path) -> None:
        _write(adapter, path, picture)

    for root in folder_paths.get_folder_paths(FOLDER):
        try:
            return Kept(_save(FOLDER, prefix, write, root))
        except SodaError as error:
            logging.warning("SODA: %s; trying the next folder", error)
    with _next_file(prefix, folder_paths.get_temp_directory()) as (path, _):
        write(path)
    return Kept(str(path), f"no soda folder takes the adapter; it is {path}, where ComfyUI clears up: move it")


def titled(adapter: SodaAdapter, name: str) -> SodaAdapter:
    """With the title that it has in the file of that name: "fox_00003", "merged_00001: fox_00003 + ink_00001"."""
    stem = Path(name).stem.rstrip("_")
    own = str(adapter.metadata.get("title") or "").rsplit(": ", 1)[-1]
    title = stem if stem.startswith(own) else f"{stem}: {own}"
    return replace(adapter, metadata=dict(adapter.metadata) | {"title": title})


def _write(adapter: SodaAdapter, path: Path, picture: Image.Image | None) -> None:
    adapter = titled(adapter, path.name)
    if picture is not None:
        adapter = replace(adapter, metadata=dict(adapter.metadata) | {"thumbnail": pictures.thumbnail(picture)})
    adapter.save(path)
    if picture is not None:
        pictures.save(picture, path.with_suffix(".png"), adapter.metadata, pictures.BESIDE)


def check_writable(prefix: str, suffixes: Iterable[str] = ("",), adapter: SodaAdapter | None = None) -> None:
    """Raise now what saving as ``prefix`` with any of the suffixes would raise later.

    Args:
        adapter: as it will be saved, but for its values; without one only names and the folder are tried.
    Raises:
        SodaError: of the name, the folder, the adapter's metadata, or for want of space.
    """
    data = b"" if adapter is None else fileformat.to_bytes(adapter.layers, adapter.metadata)
    longest = max(suffixes, key=len)
    with _next_file(f"{check_prefix(prefix)}{longest}", folder_paths.get_folder_paths(FOLDER)[0]) as (path, _):
        files.check_writable(path, data)


def _save(kind: str, prefix: str, write: Callable[[Path], object], root: str | None = None) -> str:
    """Let ``write`` make the next file of ``prefix``, under a folder of a kind or the first one."""
    with _next_file(prefix, root or folder_paths.get_folder_paths(kind)[0]) as (path, listed):
        write(path)
    folder_paths.filename_list_cache.pop(kind, None)  # a new file must be in the list at once
    logging.info("SODA: saved %s", printable(listed))
    announce_saved(listed, kind)
    return listed


@contextmanager
def _next_file(prefix: str, root: str) -> Iterator[tuple[Path, str]]:
    """The next file of ``prefix``, held against other processes, and its name in the list of ``root``."""
    prefix = check_prefix(prefix)
    try:
        os.makedirs(root, exist_ok=True)
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, root)
    except OSError as error:
        raise SodaError(
            f"cannot create the folder for {prefix!r}: {error.strerror or error}; make the model folder writable"
        ) from error
    claimed = files.numbered(Path(folder), lambda number: f"{name}_{number:05}_{EXTENSION}", counter)
    with _written(prefix), claimed as path:
        yield path, os.path.join(subfolder, path.name)


@contextmanager
def _written(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SodaError(
            f"cannot write {name!r}: {error.strerror or error}; free some space, make the folder writable or choose "
            "another name"
        ) from error


def previews() -> Path:
    """Where pictures of trainings go."""
    return Path(folder_paths.get_output_directory(), "soda-previews")


def save_preview(
    picture: Image.Image, prefix: str, step: int, prompt: int, metadata: Mapping[str, Any]
) -> dict[str, str]:
    """Keep a training preview as ``output/soda-previews/<prefix>-step00100.png``.

    Args:
        prompt: which of several, from 0; the second one's name ends in ``-2``.
    Returns:
        the file as the host's ``/view`` takes it; nothing where it could not be kept.
    """
    folder, which = previews(), f"-{prompt + 1}" if prompt else ""
    target = folder / f"{check_prefix(prefix)}-step{step:05}{which}.png"
    if not pictures.save(picture, target, metadata):
        return {}
    subfolder = target.parent.relative_to(folder.parent).as_posix()
    return {"filename": target.name, "subfolder": subfolder, "type": "output"}

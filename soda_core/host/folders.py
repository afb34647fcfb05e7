# SPDX-License-Identifier: GPL-3.0-or-later
"""Where adapters live: the model folder type ``soda``. Names from a user always go through here."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import folder_paths
from PIL import Image

from .. import fileformat
from ..adapter import SodaAdapter
from ..errors import SettingsError, SodaError
from ..files import check_prefix
from ..interop.lora import Export
from .server import announce_saved

FOLDER = "soda"
LORAS = "loras"  #: the host's own
EXTENSION = ".safetensors"


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


def load_adapter(name: str) -> SodaAdapter:
    return SodaAdapter.load(adapter_path(name))


def save_adapter(adapter: SodaAdapter, prefix: str, anywhere: bool = False) -> str:
    """Save under the first soda folder as ``<prefix>_00001_.safetensors``, counting up; returns the listed name.

    Args:
        anywhere: in the next soda folder where that one cannot take it: what was trained must not be lost.
    """
    return _save(FOLDER, prefix, adapter.save, anywhere)


def save_lora(export: Export, prefix: str) -> str:
    """The same in the host's first LoRA folder."""
    return _save(LORAS, prefix, export.save)


def _save(kind: str, prefix: str, write: Callable[[str], object], anywhere: bool = False) -> str:
    """Let ``write`` make the next file of ``prefix`` in the first folder of a kind."""
    prefix = check_prefix(prefix)
    roots = folder_paths.get_folder_paths(kind)[: None if anywhere else 1]
    for root in roots:
        try:
            folder, file_name, subfolder = _next_file(prefix, root)
            write(os.path.join(folder, file_name))
            break
        except SodaError as error:
            if root == roots[-1]:
                raise
            logging.warning("SODA: %s; trying the next %s folder", error, kind)
    listed = os.path.join(subfolder, file_name)
    folder_paths.filename_list_cache.pop(kind, None)  # a new file must be in the list at once
    logging.info("SODA: saved %s", listed)
    announce_saved(listed)
    return listed


def check_writable(prefix: str) -> None:
    """Raise now what saving under ``prefix`` would raise after the training."""
    folder, file_name, _ = _next_file(check_prefix(prefix), folder_paths.get_folder_paths(FOLDER)[0])
    fileformat.check_writable(os.path.join(folder, file_name))


def _next_file(prefix: str, root: str) -> tuple[str, str, str]:
    """Folder, made if need be, and name of the next file of ``prefix``, and its sub-folder under ``root``."""
    try:
        os.makedirs(root, exist_ok=True)
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, root)
    except OSError as error:
        raise SodaError(
            f"cannot create the folder for {prefix!r}: {error.strerror or error}; make the model folder writable"
        ) from error
    return folder, f"{name}_{counter:05}_{EXTENSION}", subfolder


def save_preview(picture: Image.Image, prefix: str, step: int) -> None:
    """Keep a training preview as ``output/soda-previews/<prefix>-step00100.png``."""
    root = os.path.join(folder_paths.get_output_directory(), "soda-previews")
    target = Path(root, f"{check_prefix(prefix)}-step{step:05}.png")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target)
    except OSError as error:  # a preview is not worth stopping a training for
        logging.warning("SODA: could not keep a preview: %s", error)

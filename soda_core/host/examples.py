# SPDX-License-Identifier: GPL-3.0-or-later
"""The pictures that the example workflows train on, in the host's input folder."""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from pathlib import Path

import folder_paths

PICTURES = Path(__file__).parents[2] / "workflows" / "pictures"


def install() -> None:
    """Copy each folder that is not there, whole or not at all; whatever is there stays as it is."""
    inputs = Path(folder_paths.get_input_directory())
    for left in inputs.glob(".soda_example_*.partial"):  # by a process that was killed
        if time.time() - left.stat().st_mtime > 24 * 3600:
            shutil.rmtree(left, ignore_errors=True)
    for source in sorted(PICTURES.glob("soda_example_*")):
        target, unfinished = inputs / source.name, inputs / f".{source.name}.{uuid.uuid4().hex[:8]}.partial"
        if target.exists():
            continue
        try:
            shutil.copytree(source, unfinished, copy_function=shutil.copyfile)
            unfinished.rename(target)
        except OSError as error:  # a read-only folder, or another process was faster
            logging.info("SODA: the example pictures are not in the input folder: %s", error.strerror or error)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What killed processes left unfinished in the folders that the pack writes to."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..files import sweep
from . import folders, spectra
from .training import states


def sweep_all() -> None:
    """Remove what is older than a day."""
    listed = [path for kind in (folders.FOLDER, folders.LORAS) for path in folder_paths.get_folder_paths(kind)]
    for folder in (*map(Path, listed), folders.previews(), spectra.folder(), states.folder()):
        sweep(folder)

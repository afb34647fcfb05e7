# SPDX-License-Identifier: GPL-3.0-or-later
"""Where things are. Standard library only: ``dev.py`` reads it before there is an environment."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

#: The checkout, which is the pack.
ROOT = Path(__file__).resolve().parent.parent
#: The weights that the project ships.
MODEL = ROOT / "demo" / "model"


def cache_root() -> Path:
    """The folder for environments, checkpoints and states of long runs: SODA_DEV_CACHE, or the system's place."""
    if override := os.environ.get("SODA_DEV_CACHE"):
        return Path(override).expanduser().resolve()
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))
    return base / "comfyui-soda"


def free_port(preferred: int = 0) -> int:
    """A port of this machine that nothing listens on: the preferred one if it is free."""
    for port in dict.fromkeys((preferred, 0)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port")

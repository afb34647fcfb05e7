# SPDX-License-Identifier: GPL-3.0-or-later
"""Where this ComfyUI keeps the decompositions of base weights, and how many.

``SODA_CACHE_MEMORY_GB`` and ``SODA_CACHE_DISK_GB`` change the limits; 0 turns a store off.
"""

from __future__ import annotations

import logging
import math
import os
from functools import cache
from pathlib import Path

import folder_paths

from ..spectrum_store import SpectrumStore
from ..text import printable


def folder() -> Path:
    """Under the host's private user folder."""
    return Path(folder_paths.get_system_user_directory("soda_spectra"))


@cache
def store() -> SpectrumStore:
    """The process-wide store."""
    return SpectrumStore(
        folder(),
        _limit("SODA_CACHE_MEMORY_GB", 2),
        _limit("SODA_CACHE_DISK_GB", 8),
    )


def _limit(variable: str, default_gb: float) -> int:
    """Bytes, from an environment variable in gigabytes."""
    said = os.environ.get(variable, "")
    try:
        gb = float(said or default_gb)
    except ValueError:
        gb = math.nan
    if not 0 <= gb < math.inf:
        logging.warning("SODA: %s = %s is not a number of gigabytes; using %g", variable, printable(said), default_gb)
        gb = default_gb
    return int(gb * 2**30)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Where this ComfyUI keeps the decompositions of base weights, and how many.

``SODA_CACHE_MEMORY_GB`` and ``SODA_CACHE_DISK_GB`` change the limits; 0 turns a store off.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path

import folder_paths

from ..spectrum_store import SpectrumStore


@cache
def store() -> SpectrumStore:
    """The process-wide store, under the host's private user folder."""
    return SpectrumStore(
        Path(folder_paths.get_system_user_directory("soda_spectra")),
        _limit("SODA_CACHE_MEMORY_GB", 2),
        _limit("SODA_CACHE_DISK_GB", 8),
    )


def _limit(variable: str, default_gb: float) -> int:
    """Bytes, from an environment variable in gigabytes."""
    try:
        return int(float(os.environ.get(variable, default_gb)) * 2**30)
    except ValueError:
        logging.warning("SODA: %s is not a number of gigabytes; using %g", variable, default_gb)
        return int(default_gb * 2**30)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The pack's version, read from ``pyproject.toml``, the one place it is written."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path


def _read() -> str:
    try:
        text = (Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8")
    except OSError:
        return _installed()
    match = re.search(r'^version\s*=\s*"([^"]+)"', text, re.MULTILINE)
    return match.group(1) if match else "unknown"


def _installed() -> str:
    """Of the package as pip installed it, which has no ``pyproject.toml`` beside it."""
    try:
        return metadata.version("soda-adapters")
    except metadata.PackageNotFoundError:
        return "unknown"


VERSION = _read()

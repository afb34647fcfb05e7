# SPDX-License-Identifier: GPL-3.0-or-later
"""The pack's version, read from ``pyproject.toml``, the one place it is written."""

from __future__ import annotations

import re
from pathlib import Path


def _read() -> str:
    try:
        text = (Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8")
    except OSError:
        return "unknown"
    match = re.search(r'^version\s*=\s*"([^"]+)"', text, re.MULTILINE)
    return match.group(1) if match else "unknown"


VERSION = _read()

# SPDX-License-Identifier: GPL-3.0-or-later
"""One base model in ComfyUI and in diffusers."""

from __future__ import annotations

from tests.host.conftest import host

__all__ = ["host"]

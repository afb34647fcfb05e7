# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os

import pytest

from .hosting import load_host


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """A real ComfyUI in this process; see :func:`.hosting.load_host`."""
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH is not set; `python dev.py test` sets it")
    return load_host(tmp_path_factory.mktemp("comfy"))

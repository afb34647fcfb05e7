# SPDX-License-Identifier: GPL-3.0-or-later
"""What killed processes left unfinished, in each folder that the pack writes to."""

from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.host


def test_every_folder_that_is_written_is_swept(host) -> None:
    left = [
        host.base / folder / ".x.safetensors.0123abcd.partial"
        for folder in ("models/soda/people", "models/loras", "output/soda", "output/soda-previews/people",
                       "user/__soda_spectra", "user/__soda_states")
    ]  # fmt: skip
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
        os.utime(path, (0, 0))
    other = host.base / "output" / left[0].name
    other.write_text("of somebody else")
    os.utime(other, (0, 0))
    host.core("host.leftovers").sweep_all()
    assert not [path for path in left if path.exists()] and other.exists()

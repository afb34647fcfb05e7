# SPDX-License-Identifier: GPL-3.0-or-later
"""The bar of a node: what it tells the host, and that it takes a cancel."""

from __future__ import annotations

import pytest


@pytest.fixture
def told(host, monkeypatch):
    """What the host's hook is called with: ``(done, total, picture)``."""
    import comfy.utils

    calls = []

    def hook(done, total, picture, node_id=None) -> None:
        calls.append((done, total, picture))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    return calls


def test_a_bar_counts(host, told) -> None:
    bar = host.core("host.progress").ProgressBar(2)
    bar.advance()
    bar.show(2)
    assert told == [(1, 2, None), (2, 2, None)]


def test_a_cancel_stops_at_the_next_step(host, told) -> None:
    import comfy.model_management as mm

    bar = host.core("host.progress").ProgressBar(2)
    bar.advance()
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        bar.advance()
    assert told == [(1, 2, None)]
    bar.advance()
    assert told[-1] == (2, 2, None), "a cancel is taken once"

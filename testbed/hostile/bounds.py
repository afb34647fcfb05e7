# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits of time and memory for what reads hostile files."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds and bytes no call comes near, on any machine: only what hangs or bursts does.
PATIENCE, MEMORY = 120, 2 * 2**30


class StillRunningError(BaseException):
    """Not an ``Exception``: a reader that turns all of those into its own must not swallow it."""


@contextmanager
def bounded() -> Iterator[None]:
    """Fails what takes longer, or more memory, than anything may."""

    def give_up(*_: object) -> None:
        raise StillRunningError(f"still running after {PATIENCE} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before, held = signal.signal(signal.SIGALRM, give_up), peak_memory()
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert peak_memory() - held < MEMORY


def peak_memory() -> int:
    """Bytes this process ever held at once."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

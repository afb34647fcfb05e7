# SPDX-License-Identifier: GPL-3.0-or-later
"""What a command shows while it works, on the standard error: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_CLEAR = "\r\033[K"


class Screen(logging.Handler):
    """A bar with a text, which log lines do not disturb.

    Args:
        bar: whether to show it; then of the log only warnings are shown.
    """

    def __init__(self, bar: bool) -> None:
        super().__init__(logging.WARNING if bar else logging.INFO)
        self.setFormatter(logging.Formatter("%(message)s"))
        self._bar, self._text, self._done, self._total = bar, "", 0, 0

    def show(self, text: str) -> None:
        """What is being done."""
        self._text = text
        self._draw()

    def progress(self, done: int, total: int, text: str | None = None) -> None:
        """How far it is, and with ``text`` what is being done."""
        self._done, self._total = done, total
        self._text = self._text if text is None else text
        self._draw()

    def clear(self) -> None:
        if self._bar:
            print(_CLEAR, end="", file=sys.stderr, flush=True)

    def emit(self, record: logging.LogRecord) -> None:
        self.clear()
        print(self.format(record), file=sys.stderr, flush=True)
        self._draw()

    def _draw(self) -> None:
        if not self._bar:
            return
        columns = shutil.get_terminal_size().columns - 1
        text = self._text[: columns - 12]
        width = min(30, columns - len(text) - 4)
        filled = width * self._done // self._total if self._total else 0
        bar = f"[{'=' * filled}{' ' * (width - filled)}] " if width >= 8 else ""
        print(f"{_CLEAR}{bar}{text}", end="", file=sys.stderr, flush=True)


@contextmanager
def logged(quiet: bool) -> Iterator[Screen]:
    """Within, the pack's log goes to a screen; with ``quiet``, its warnings alone."""
    screen = Screen(bar=not quiet and sys.stderr.isatty())
    if quiet:
        screen.setLevel(logging.WARNING)
    # of the host's own lines those that warn
    screen.addFilter(lambda record: record.levelno >= logging.WARNING or record.getMessage().startswith("SODA:"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(screen)
    root.setLevel(logging.INFO)
    try:
        yield screen
    finally:
        screen.clear()
        root.removeHandler(screen)
        root.setLevel(level)

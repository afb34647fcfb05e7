# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's progress, and the user's wish to stop."""

from __future__ import annotations

import comfy.model_management
import comfy.utils


class ProgressBar:
    """The bar of the node that runs; each change of it also takes a cancel, by raising the host's own exception.

    Args:
        total: steps to the end.
    """

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._bar = comfy.utils.ProgressBar(total)

    def advance(self) -> None:
        """One step more."""
        self.show(self._done + 1)

    def show(self, done: int) -> None:
        """Set the bar to ``done`` steps."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._done = done
        self._bar.update_absolute(done, self._total)

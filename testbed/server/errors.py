# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong with a host; every message ends with its log where that may say why."""

from __future__ import annotations


class ServerError(RuntimeError):
    """The host did not start, died or refused a request."""


class PromptError(ServerError):
    """A prompt that the host refused, or that failed while running."""

    def __init__(self, message: str, *, node_id: str = "", node_type: str = "", exception_type: str = "") -> None:
        super().__init__(message)
        self.node_id, self.node_type, self.exception_type = node_id, node_type, exception_type


class PromptInterrupted(ServerError):
    """A prompt that was cancelled."""

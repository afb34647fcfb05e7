# SPDX-License-Identifier: GPL-3.0-or-later
"""What open front ends are told: the only place that talks to the host's server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from server import PromptServer


def announce_saved(name: str) -> None:
    """There is a new adapter of that listed name; ``web/refresh.js`` listens."""
    instance = getattr(PromptServer, "instance", None)  # none when the host's modules are used without its server
    if instance is not None:
        instance.send_sync("soda.saved", {"name": name})


def notice(node_id: str) -> Callable[[Any], None]:
    """Shows a record of plain values on the node, until it runs again; ``web/notices.js`` listens."""
    return lambda record: PromptServer.instance.send_sync("soda.notice", {"node": node_id, **asdict(record)})


def progress_text(node_id: str) -> Callable[[str], None]:
    """Shows a line of text on the node."""
    return lambda text: PromptServer.instance.send_progress_text(text, node_id)

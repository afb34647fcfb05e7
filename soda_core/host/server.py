# SPDX-License-Identifier: GPL-3.0-or-later
"""What open front ends are told of files; what they are told of trainings is in ``board.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from server import PromptServer


def announce_saved(name: str, folder: str) -> None:
    """There is a new file of that listed name in a model folder; ``web/refresh.js`` listens."""
    instance = getattr(PromptServer, "instance", None)  # none when the host's modules are used without its server
    if instance is not None:
        instance.send_sync("soda.saved", {"name": name, "folder": folder})


def notice(node_id: str) -> Callable[[Any], None]:
    """Shows a record of plain values on the node, until it runs again; ``web/notices.js`` listens."""
    return lambda record: PromptServer.instance.send_sync("soda.notice", {"node": node_id, **asdict(record)})

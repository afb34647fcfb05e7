# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's server, where there is one, and what open front ends are told of files; of trainings: ``board.py``.

Trainings without a server come here too, so its module is not imported for them: it brings a web server, a database and
a video library.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any


def running() -> Any:
    """The host's ``PromptServer``; None when its modules are used without it."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def tell(event: str, content: Mapping[str, Any]) -> None:
    """Send an event to all open front ends."""
    if (server := running()) is not None:
        server.send_sync(event, content)


def announce_saved(name: str, folder: str) -> None:
    """There is a new file of that listed name in a model folder; ``web/refresh.js`` listens."""
    tell("soda.saved", {"name": name, "folder": folder})


def notice(node_id: str) -> Callable[[Any], None]:
    """Shows a record of plain values on the node, until it runs again; ``web/notices.js`` listens."""
    return lambda record: tell("soda.notice", {"node": node_id, **asdict(record)})

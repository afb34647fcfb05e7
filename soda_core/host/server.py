# SPDX-License-Identifier: GPL-3.0-or-later
"""What open front ends are told of files; what they are told of trainings is in ``board.py``.

Trainings without a server come here too, so its module is not imported for them: it brings a web server, a database and
a video library.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any


def announce_saved(name: str, folder: str) -> None:
    """There is a new file of that listed name in a model folder; ``web/refresh.js`` listens."""
    # none when the host's modules are used without its server
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if instance is not None:
        instance.send_sync("soda.saved", {"name": name, "folder": folder})


def notice(node_id: str) -> Callable[[Any], None]:
    """Shows a record of plain values on the node, until it runs again; ``web/notices.js`` listens."""
    from server import PromptServer

    return lambda record: PromptServer.instance.send_sync("soda.notice", {"node": node_id, **asdict(record)})

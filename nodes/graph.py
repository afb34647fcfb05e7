# SPDX-License-Identifier: GPL-3.0-or-later
"""The graph a node runs in: as metadata of the files it writes, and as the place its progress is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from comfy.cli_args import args
from server import PromptServer


def graph_metadata(hidden: Any) -> dict[str, str]:
    """``workflow`` and ``prompt`` as JSON text: dropping the file on the canvas brings its graph back.

    Nothing where the user started the host with --disable-metadata."""
    if args.disable_metadata:
        return {}
    workflow = (hidden.extra_pnginfo or {}).get("workflow")
    entries = {"workflow": workflow, "prompt": hidden.prompt}
    return {key: json.dumps(value) for key, value in entries.items() if value}


def progress_text(node_id: str) -> Callable[[str], None]:
    """Shows a line of text on the node."""
    return lambda text: PromptServer.instance.send_progress_text(text, node_id)

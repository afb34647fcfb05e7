# SPDX-License-Identifier: GPL-3.0-or-later
"""The graph a node runs in, as metadata: dropping an adapter file on the canvas brings its graph back."""

from __future__ import annotations

import json
from typing import Any

from comfy.cli_args import args


def graph_metadata(hidden: Any) -> dict[str, str]:
    """``workflow`` and ``prompt`` as JSON text; nothing where the user started the host with --disable-metadata."""
    if args.disable_metadata:
        return {}
    workflow = (hidden.extra_pnginfo or {}).get("workflow")
    entries = {"workflow": workflow, "prompt": hidden.prompt}
    return {key: json.dumps(value) for key, value in entries.items() if value}

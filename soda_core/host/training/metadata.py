# SPDX-License-Identifier: GPL-3.0-or-later
"""What an adapter's file says of the training that made it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import comfyui_version
import torch

from ...version import VERSION
from .. import base
from .dataset import Buckets
from .session import TrainingSession


def describe(
    session: TrainingSession, pictures: Buckets, filename_prefix: str, trigger_phrase: str, notes: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything but the number of steps; see :class:`...adapter.SodaAdapter`. Reads the checkpoint's file once."""
    heights = {tuple(g[0].latent.shape[-2:]) for g in pictures.groups}
    factor = getattr(session.model.latent_format, "spacial_downscale_ratio", 8)
    return {
        "title": filename_prefix.rsplit("/", 1)[-1],
        "trigger_phrase": trigger_phrase.strip(),
        "base_model": base.describe(session.source, with_hash=True),
        "settings": session.settings.as_metadata() | {"dtype": session.dtype},
        "pictures": len(pictures),
        "resolution": ", ".join(f"{int(w * factor)}x{int(h * factor)}" for h, w in sorted(heights)),
        "seed": session.settings.seed,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": {
            "soda": VERSION,
            "torch": torch.__version__,
            "comfyui": comfyui_version.__version__,
        },
        **notes,
    }

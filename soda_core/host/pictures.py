# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures that go with an adapter: beside its file, in its metadata, and of its training. They carry their graph."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .. import files
from ..fileformat import GRAPH_KEYS

#: Largest side in pixels: beside a file, and in its metadata, of which ComfyUI shows no more than a megabyte.
BESIDE, THUMBNAIL = 768, 256


def from_image(image: Tensor) -> Image.Image:
    """The first of the host's IMAGE ``(n, height, width, 3)``."""
    return Image.fromarray(image[0].clamp(0, 1).mul(255).byte().cpu().numpy())


def _scaled(picture: Image.Image, largest: int) -> Image.Image:
    """With its larger side no larger than that, and no smaller than a thumbnail's, as rough previews are."""
    side = max(picture.size)
    factor = min(largest, max(side, THUMBNAIL)) / side
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.LANCZOS)


def thumbnail(picture: Image.Image) -> str:
    """A small JPEG as a data URL, as ModelSpec has it and ComfyUI's model library shows it."""
    data = io.BytesIO()
    _scaled(picture.convert("RGB"), THUMBNAIL).save(data, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def save(picture: Image.Image, path: Path, metadata: Mapping[str, Any], largest: int | None = None) -> bool:
    """Write a PNG whole or not at all, with the graph in ``metadata``; a picture is worth no error, only a warning.

    Args:
        largest: side in pixels; without it the size stays.
    Returns:
        whether it is written.
    """
    if largest:
        picture = _scaled(picture, largest)
    graph = PngInfo()
    for key in GRAPH_KEYS:
        if metadata.get(key):
            graph.add_text(key, metadata[key])
    try:
        with files.replacing(path) as unfinished:
            picture.save(unfinished, "PNG", pnginfo=graph)
    except OSError as error:
        logging.warning("SODA: could not keep the picture %s: %s", path.name, error.strerror or error)
        return False
    return True

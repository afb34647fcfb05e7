# SPDX-License-Identifier: GPL-3.0-or-later
"""Training data from folders: what the dataset nodes of the shipped workflows make of them, for the command."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import comfy.utils
import node_helpers
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ...errors import SettingsError
from ...text import printable
from ...training.options import FolderOptions
from ..progress import ProgressBar
from .dataset import TrainingData

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def from_folder(
    folder: Path, clip: Any, vae: Any, options: FolderOptions, class_folder: Path | None = None
) -> TrainingData:
    """Encoded pictures and captions in the order of their names, with previews decoded by ``vae``.

    Args:
        folder: of pictures, each with its caption in a text file of the same name.
        class_folder: the same for prior preservation.
    Raises:
        SettingsError: a folder without pictures, a picture that cannot be read or has no caption.
    """
    pictures, class_pictures = listed(folder), [] if class_folder is None else listed(class_folder)
    captions, class_captions = ([_caption(path, options) for path in of] for of in (pictures, class_pictures))
    plain = [caption.replace(options.placeholder, "") for caption in captions] if options.placeholder else []
    if plain == captions and plain:
        raise SettingsError(
            f"placeholder {options.placeholder!r} is in no caption of {folder}; the first is {plain[0]!r}"
        )
    bar = ProgressBar(len(pictures) + len(class_pictures) + len(captions) + len(plain) + len(class_captions))

    def latents(paths: list[Path]) -> list[dict[str, Tensor]]:
        found = []
        for path in paths:
            bar.advance()
            found.append({"samples": vae.encode(_pixels(path, options.resolution))})
        return found

    def encoded(texts: list[str]) -> list[Any]:
        found = []
        for text in texts:
            bar.advance()
            found.append(clip.encode_from_tokens_scheduled(clip.tokenize(text)))
        return found

    return TrainingData(
        latents=latents(pictures),
        positive=encoded(captions),
        base_positive=encoded(plain) or None,
        class_latents=latents(class_pictures) or None,
        class_positive=encoded(class_captions) or None,
        negative=encoded([options.negative]) if options.negative else None,
        vae=vae,
    )


def without_caption(pictures: Iterable[Path]) -> list[Path]:
    """Those that have no text file beside them, or one with nothing in it."""
    texts = ((path, path.with_suffix(".txt")) for path in pictures)
    return [path for path, text in texts if not (text.is_file() and text.read_bytes().strip())]


def listed(folder: Path) -> list[Path]:
    """Pictures of a folder, by name: the same order on every machine."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise SettingsError(f"{folder}: cannot be read as a folder of pictures: {error.strerror or error}") from error
    found = [path for path in entries if path.suffix.lower() in ENDINGS and path.is_file()]
    if not found:
        raise SettingsError(f"{folder}: holds no pictures ({', '.join(ENDINGS)}); sub-folders are not looked into")
    return found


def _caption(picture: Path, options: FolderOptions) -> str:
    path = picture.with_suffix(".txt")
    try:
        text = path.read_text("utf-8").strip() if path.is_file() else options.caption
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read as a caption in UTF-8: {error}") from error
    if not text:
        raise SettingsError(f"{picture.name}: has no caption; write one to {path.name}, or give one for all")
    return text


def _pixels(path: Path, side: int) -> Tensor:
    """``(1, height, width, 3)`` in 0..1."""
    try:
        picture = ImageOps.exif_transpose(node_helpers.pillow(Image.open, str(path)))
        if picture.mode == "I":  # 16 bits of grey
            picture = picture.point(lambda value: value * (1 / 255))
        pixels = torch.from_numpy(np.array(picture.convert("RGB")).astype(np.float32) / 255.0)[None]
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SettingsError(f"{path}: cannot be read as a picture: {printable(str(error))}") from error
    if not side:
        return pixels
    scaled: Tensor = comfy.utils.common_upscale(pixels.movedim(-1, 1), side, side, "lanczos", "center")
    return scaled.movedim(1, -1)

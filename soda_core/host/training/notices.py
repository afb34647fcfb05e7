# SPDX-License-Identifier: GPL-3.0-or-later
"""What looks like a mistake in the data or the settings of a training, though it can be trained with."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import folder_paths

from ...training.settings import TrainSettings
from .dataset import TrainingData, fingerprint
from .options import Notice, RunOptions
from .pictures import ENDINGS, without_caption

#: The host's node that reads pictures with their captions.
_FOLDER_LOADER = "LoadImageTextDataSetFromFolder"


def tell(found: Iterable[Notice], options: RunOptions) -> None:
    """In the log and on the node."""
    for notice in found:
        logging.warning("SODA: %s", notice.text)
        options.warn(notice)


def notices(data: TrainingData, settings: TrainSettings) -> Iterator[Notice]:
    captions = _captions(data.positive)
    if len(captions) > 1 and len(set(captions)) == 1:
        yield Notice(
            "same captions",
            f"all {len(captions)} captions are the same: a picture without a text file beside it has an empty caption, "
            "which teaches your word nothing",
            len(captions),
        )
    base = _captions(data.base_positive or ())
    pairs = zip(captions, base * len(captions) if len(base) == 1 else base, strict=False)
    if base and settings.loss == "dco" and (equal := sum(a == b for a, b in pairs)):
        yield Notice(
            "base captions",
            f"{equal} of {len(captions)} captions in base_positive are those in positive: take the placeholder word "
            "out of base_positive, so that dco can tell what is new",
            equal,
        )
    for part, trained, rate in (
        ("rotation", settings.rotates, settings.rotation_lr), ("shift", settings.shifts, settings.shift_lr)
    ):  # fmt: skip
        if trained and not rate and not settings.automatic:
            yield Notice(f"{part} rate", f"{part}_lr is 0: this part stays as it is")


def graph_notices(prompt: dict[str, Any], node_id: str) -> Iterator[Notice]:
    """Of a graph as the host runs it: what the captions of its training node are made from."""
    captions = _behind(prompt, prompt.get(node_id, {}), "positive")
    text = captions.get("inputs", {}).get("text")
    if isinstance(text, str) and not text.strip():
        yield Notice("empty caption", "the caption is empty: it teaches your word nothing")
    texts = _behind(prompt, captions, "texts") or _behind(prompt, captions, "text")
    if texts.get("class_type") == _FOLDER_LOADER:
        folder = Path(folder_paths.get_input_directory(), str(texts["inputs"]["folder"]))
        found = sorted(path for path in (*folder.glob("*"), *folder.glob("*/*")) if path.suffix.lower() in ENDINGS)
        yield from folder_notices(folder, found)  # where the host's node finds them


def _behind(prompt: dict[str, Any], node: dict[str, Any], name: str) -> dict[str, Any]:
    """The node that an input is linked to; an empty one where there is none."""
    link = node.get("inputs", {}).get(name)
    return prompt.get(link[0], {}) if isinstance(link, list) else {}


def folder_notices(folder: Path, pictures: Sequence[Path], caption: str = "") -> Iterator[Notice]:
    """Of pictures in a folder, some of which have a caption beside them and some have none.

    Args:
        caption: what those without are trained with.
    """
    bare = without_caption(pictures)
    if not bare or len(bare) == len(pictures):  # then all captions are the same
        return
    first = bare[0].relative_to(folder).as_posix()
    become = (
        f"the caption {caption!r}" if caption else "an empty one, which teaches your word nothing; write one for each "
        "into a text file of the same name"
    )  # fmt: skip
    text = f"{len(bare)} of {len(pictures)} pictures have no caption of their own, the first is {first}"
    yield Notice("some captions", f"{text}: they are trained with {become}", len(bare), len(pictures), first)


def _captions(conditioning: Sequence[Any]) -> list[str]:
    """A fingerprint of each caption."""
    return [fingerprint(list(entry)) for cond in conditioning for entry in cond]

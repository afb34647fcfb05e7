# SPDX-License-Identifier: GPL-3.0-or-later
"""What looks like a mistake in the data or the settings of a training, though it can be trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...training.settings import TrainSettings
from .dataset import TrainingData, fingerprint
from .options import Notice


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
        if trained and not rate:
            yield Notice(f"{part} rate", f"{part}_lr is 0: this part stays as it is")


def empty_caption(prompt: dict[str, Any], node_id: str) -> Iterator[Notice]:
    """Of a graph as the host runs it: CLIP Text Encode without a text gives the captions of the training node."""
    link = prompt.get(node_id, {}).get("inputs", {}).get("positive")
    source = prompt.get(link[0], {}) if isinstance(link, list) else {}
    text = source.get("inputs", {}).get("text")
    if isinstance(text, str) and not text.strip():
        yield Notice("empty caption", "the caption is empty: it teaches your word nothing")


def _captions(conditioning: Sequence[Any]) -> list[str]:
    """A fingerprint of each caption."""
    return [fingerprint(list(entry)) for cond in conditioning for entry in cond]

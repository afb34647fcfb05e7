# SPDX-License-Identifier: GPL-3.0-or-later
"""Adapters of a MODEL and a CLIP as LoRA files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch

from ..adapter import SodaAdapter
from ..base_weight import BaseWeight
from ..interop.lora import Export, export
from ..interop.lora_settings import LoraSettings
from . import base
from .progress import ProgressBar


class ModelWeights(Mapping[str, BaseWeight]):
    """The pristine weights of a MODEL and, where there is one, a CLIP, by layer name; made when asked for."""

    def __init__(self, model: Any, clip: Any | None = None) -> None:
        self._patchers = dict.fromkeys(_layers(model, ""), model)
        if clip is not None:
            self._patchers |= dict.fromkeys(_layers(clip.patcher, base.TEXT_ENCODERS), clip.patcher)

    def __getitem__(self, name: str) -> BaseWeight:
        return base.base_weight(self._patchers[name], name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._patchers)

    def __len__(self) -> int:
        return len(self._patchers)


def _layers(patcher: Any, prefix: str) -> Iterator[str]:
    for key in patcher.model_state_dict():
        if key.endswith(".weight"):
            yield prefix + key.removesuffix(".weight")


@torch.inference_mode(False)
def export_adapter(
    model: Any, clip: Any | None, adapter: SodaAdapter, settings: LoraSettings, ignore_base_check: bool = False
) -> Export:
    """:func:`..interop.lora.export` with the node's progress bar; a cancel ends it."""
    bar = cache(ProgressBar)  # made once the number of steps is known
    weights = ModelWeights(model, clip)
    return export(adapter, weights, settings, ignore_base_check, lambda done, total: bar(total).show(done))

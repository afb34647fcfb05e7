# SPDX-License-Identifier: GPL-3.0-or-later
"""The weights of a base model from its file, without the host: a checkpoint, or a diffusion model alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
from torch import Tensor

from ..base_weight import BaseWeight
from ..errors import BaseMismatchError

#: What checkpoints put before the names of a part, and what ComfyUI calls it.
_PREFIXES = {
    "model.diffusion_model.": "diffusion_model.",
    "diffusion_model.": "diffusion_model.",
    "cond_stage_model.transformer.": "text_encoders.clip_l.transformer.",  # SD 1
    "conditioner.embedders.0.transformer.": "text_encoders.clip_l.transformer.",  # SDXL
    "text_encoders.": "text_encoders.",
}
#: How a file with a diffusion model alone begins, by ComfyUI's names of its blocks.
_BARE = re.compile(r"(input_blocks|joint_blocks|double_blocks|single_blocks|blocks|layers)\.\d+\.")
#: Beside the weight of a quantised layer.
_SCALES = re.compile(r".+\.(weight_scale|scale_weight|comfy_quant|weight_scale_2)")


class CheckpointWeights(Mapping[str, BaseWeight]):
    """The linear and convolution weights of a safetensors file by ComfyUI's layer names, read when asked for.

    Raises:
        BaseMismatchError: no readable checkpoint, or one whose weights have to be computed first (quantised) or whose
            layers are named otherwise (diffusers).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._name = Path(path).name
        try:
            self._file = safetensors.safe_open(os.fspath(path), framework="pt")
            keys = list(self._file.keys())
        except OSError as error:
            raise BaseMismatchError(f"{self._name}: cannot be read: {error.strerror or error}") from error
        except safetensors.SafetensorError as error:
            raise BaseMismatchError(f"{self._name}: is not a complete safetensors file ({error})") from error
        if scale := next((key for key in keys if _SCALES.fullmatch(key)), None):
            raise BaseMismatchError(
                f"{self._name}: stores quantised weights (key {scale!r}), which only ComfyUI can read; use the original"
            )
        self._keys = {name: key for key in keys if (name := _layer(key, any(map(_BARE.match, keys))))}
        if not self._keys:
            what = "is a diffusers file" if any(".attentions." in key for key in keys) else "holds no diffusion model"
            raise BaseMismatchError(
                f"{self._name}: {what} (its first key is {keys[0]!r}); give the checkpoint as ComfyUI loads it"
                if keys
                else f"{self._name}: is empty"
            )

    def __getitem__(self, name: str) -> BaseWeight:
        return BaseWeight(self._tensor(name))

    def _tensor(self, name: str) -> Tensor:
        return self._file.get_tensor(self._keys[name])  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def __len__(self) -> int:
        return len(self._keys)


def _layer(key: str, bare: bool) -> str | None:
    """The layer whose weight a key holds, if any."""
    if not key.endswith(".weight"):
        return None
    path = key.removesuffix(".weight")
    for prefix, ours in _PREFIXES.items():
        if path.startswith(prefix):
            return ours + path.removeprefix(prefix)
    return f"diffusion_model.{path}" if bare else None

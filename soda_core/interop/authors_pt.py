# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of the authors' training script, ``peft_<step>.pt`` (github phymhan/SODA-Diffusion), for SDXL.

A PyTorch file of three lists, ``unet``, ``text_encoder_one`` and ``text_encoder_two``: four parameters for each
adapted linear layer, ``Q1, Q2, Q3, delta``, each in a list of its own. Layers have no names; they come in the order in
which the script walks diffusers' modules. ``W' = U relu(S + delta) Vh (Q1 ⊗ Q2 ⊗ Q3)ᵀ`` is our convention exactly, and
where the QR variant was trained, ``L + diag(delta)``; no file says which.

This is the only place that reads a pickle, and only tensors from it: a file with anything else in it is refused.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapter import SodaAdapter
from ..errors import FileFormatError
from ..layer import SodaLayer
from ..linalg import in_float64, orthogonality_residual
from ..spectral import Decomposition

#: Where a factor counts as none: bfloat16 leaves 4e-3.
_FARTHEST = 0.1

_ITEMS = ("Q1", "Q2", "Q3", "delta")

#: diffusers' blocks with attention in the order of its modules: ComfyUI's name, transformer blocks, width.
_UNET_BLOCKS = (
    *((f"input_blocks.{i}.1", 2, 640) for i in (4, 5)),
    *((f"input_blocks.{i}.1", 10, 1280) for i in (7, 8)),
    *((f"output_blocks.{i}.1", 10, 1280) for i in (0, 1, 2)),
    *((f"output_blocks.{i}.1", 2, 640) for i in (3, 4, 5)),
    ("middle_block.1", 10, 1280),  # after the way up: diffusers makes it last
)
#: Inputs of the keys and values that come from the text.
_CONTEXT = 2048


@dataclass(frozen=True)
class Place:
    """A layer of SDXL and the shape of its weight."""

    name: str
    out: int
    in_features: int


def unet_places() -> Iterator[Place]:
    """SDXL's attention layers, 560, in the order of diffusers' modules."""
    for block, depth, width in _UNET_BLOCKS:
        for i in range(depth):
            for attention, context in (("attn1", width), ("attn2", _CONTEXT)):
                path = f"diffusion_model.{block}.transformer_blocks.{i}.{attention}"
                yield Place(f"{path}.to_q", width, width)
                yield Place(f"{path}.to_k", width, context)
                yield Place(f"{path}.to_v", width, context)
                yield Place(f"{path}.to_out.0", width, width)


def text_encoder_places(encoder: str, layers: int, width: int) -> Iterator[Place]:
    """A text encoder's attention layers in the order of transformers' modules."""
    for i in range(layers):
        path = f"text_encoders.{encoder}.transformer.text_model.encoder.layers.{i}.self_attn"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield Place(f"{path}.{name}", width, width)


def parts() -> dict[str, list[Place]]:
    """What stands where in a file: its lists by name, and the layers of each in their order."""
    return {
        "unet": list(unet_places()),
        "text_encoder_one": list(text_encoder_places("clip_l", 12, 768)),
        "text_encoder_two": list(text_encoder_places("clip_g", 32, 1280)),
    }


@dataclass(frozen=True)
class Imported:
    """An adapter out of a file of the authors'."""

    adapter: SodaAdapter
    moved: float  #: largest ``max |RᵀR - I|`` of a factor as it was stored; the adapter's are orthogonal
    moved_most: str  #: the layer with that factor

    def text(self) -> str:
        """For a person."""
        return (
            f"{len(self.adapter.layers)} layers; their factors were up to {self.moved:.1e} off orthogonal "
            f"({self.moved_most}) and are now the nearest rotations"
        )


def read(
    path: str | os.PathLike[str], decomposition: Decomposition, title: str = "", trigger_phrase: str = ""
) -> Imported:
    """Read ``peft_<step>.pt``.

    Args:
        decomposition: what was trained, "svd" or "qr": files of both look the same.
        title: of the adapter; the file's name by default.
    Raises:
        FileFormatError: a pickle with more than tensors in it, or of another layout.
    """
    path = Path(path)
    content = _unpickle(path)
    places = parts()
    if not isinstance(content, dict) or not set(content) & set(places):
        raise FileFormatError(f"{path.name}: {_found(content)}; expected a dict with {list(places)}")
    if unknown := sorted(str(key) for key in set(content) - set(places)):
        raise FileFormatError(f"{path.name}: has the unknown entries {unknown}; expected {list(places)}")
    layers: dict[str, SodaLayer] = {}
    residuals: dict[str, float] = {}
    try:
        for part in (part for part in places if content.get(part)):
            for place, items in _by_layer(part, content[part], places[part]):
                layers[place.name], residuals[place.name] = _layer(place, items, decomposition)
    except FileFormatError as error:
        raise FileFormatError(f"{path.name}: {error}") from error
    if not layers:
        raise FileFormatError(f"{path.name}: its lists are empty; nothing was trained")
    worst = max(residuals, key=lambda name: residuals[name])
    metadata = {
        "title": title or path.stem,
        "trigger_phrase": trigger_phrase,
        "base_model": {"family": "SDXL 1.0", "architecture": "stable-diffusion-xl-v1-base"},
        "settings": {"decomposition": decomposition},
        "imported": {"from": "peft.pt", "name": path.name, "off_orthogonal": residuals[worst]},
    }
    return Imported(SodaAdapter(layers, metadata), residuals[worst], worst)


def _unpickle(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise FileFormatError(f"{path.name}: cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise FileFormatError(
            f"{path.name}: is refused, because it holds more than tensors (such files can run programs) or is damaged: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except Exception as error:  # what a damaged pickle makes of torch's reader: struct.error, AssertionError, any other
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileFormatError(f"{path.name}: is no PyTorch file that can be read ({reason})") from error


def _by_layer(part: str, items: Any, places: Sequence[Place]) -> Iterator[tuple[Place, list[Tensor]]]:
    expected = len(_ITEMS) * len(places)
    if not isinstance(items, (list, tuple)) or len(items) != expected:
        count = f"{len(items)} items" if isinstance(items, (list, tuple)) else _found(items)
        raise FileFormatError(
            f"{part!r} holds {count}, expected {expected}: {', '.join(_ITEMS)} for each of SDXL's {len(places)} layers"
        )
    for i, place in enumerate(places):
        yield place, [_tensor(place, _ITEMS[j], items[len(_ITEMS) * i + j]) for j in range(len(_ITEMS))]


def _tensor(place: Place, item: str, value: Any) -> Tensor:
    """A parameter out of the list it is alone in."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise FileFormatError(f"{item} of layer {place.name!r} is {_found(value)}, expected one parameter")
    if not bool(torch.isfinite(value).all()):
        raise FileFormatError(f"{item} of layer {place.name!r} holds NaN or infinite values")
    return value.detach()


def _layer(place: Place, items: Sequence[Tensor], decomposition: Decomposition) -> tuple[SodaLayer, float]:
    *factors, delta = items
    sizes = [tuple(Q.shape) for Q in factors]
    if any(len(shape) != 2 or shape[0] != shape[1] for shape in sizes) or (
        math.prod(shape[0] for shape in sizes) != place.in_features
    ):
        raise FileFormatError(
            f"layer {place.name!r} has factors of shapes {sizes}, expected three squares whose sizes multiply to "
            f"{place.in_features}"
        )
    rank = min(place.out, place.in_features)
    if tuple(delta.shape) != (rank,):
        raise FileFormatError(f"delta of layer {place.name!r} has shape {tuple(delta.shape)}, expected ({rank},)")
    residual = max(orthogonality_residual(Q) for Q in factors)
    if residual > _FARTHEST:
        raise FileFormatError(
            f"the factors of layer {place.name!r} are {residual:.2g} off orthogonal (allowed {_FARTHEST:g}); is this a "
            "file of another method?"
        )
    rotations = [_polar(Q) for Q in factors]
    shape = (place.out, place.in_features)
    return SodaLayer(decomposition, rotations, delta.float().contiguous(), shape), residual


def _polar(Q: Tensor) -> Tensor:
    """The orthogonal matrix nearest to Q, float32."""
    U, _, Vh = torch.linalg.svd(in_float64(Q))
    return (U @ Vh).float()


def _found(value: Any) -> str:
    """What something is, for a message."""
    if isinstance(value, dict):
        return f"a dict with {sorted(map(str, value))[:4]}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    return f"a {type(value).__name__}"

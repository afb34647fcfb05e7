# SPDX-License-Identifier: GPL-3.0-or-later
"""The adapter file, format version 1: safetensors, float32, one JSON value that says everything.

Tensors of a layer (``<layer>`` is the base model's module path, e.g. ``diffusion_model.….attn1.to_q``):

- ``<layer>.soda_factor_0`` … ``(k_i, k_i)``, ``<layer>.soda_shift (r,)``,
- ``<layer>.soda_knots (knots,)``: only where the shift is a curve, its knots' heights,
- ``<layer>.soda_probe (2, 32, 4)``: the base check's sketches of Δ and of W0 (the key is older than that name);
- a delta merge holds the same once per term: ``<layer>.soda_term_0_factor_0`` …

Metadata: ``soda`` = sorted JSON ``{format_version, layers, metadata}``; beside it the flat ``modelspec.*``, ``ss_*``
and ``sshs_*`` keys that model managers read, all derived from it. Files never hold folder paths.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from . import files, tensor_file
from .base_check import SKETCH_SHAPE, Sketches
from .errors import FileFormatError, SodaError
from .layer import AdaptedLayer, SodaLayer, SodaSum
from .tensor_file import manager_keys, tensor_hash

FORMAT_VERSION = 1
HEADER_LIMIT = 100 * 1024 * 1024

#: Metadata that is stored as a flat key of its own, not inside the JSON: the host's front end looks for these names
#: when a file is dropped on the graph.
GRAPH_KEYS = ("workflow", "prompt")


# ------------------------------------------------------------------------------------------------------------ writing


def write(path: str | os.PathLike[str], layers: Mapping[str, AdaptedLayer], metadata: Mapping[str, Any]) -> None:
    """Write an adapter atomically: the file is complete, or it is not there.

    Raises:
        FileFormatError: tensors that no reader would accept (NaN, off the manifold), or nothing to write.
        SodaError: the disk is full or the folder cannot be written.
    """
    tensor_file.write(path, *_content(layers, metadata))


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise now what :func:`write` would raise later of a name or folder that takes no file."""
    path = Path(path)
    try:
        files.check_writable(path)
    except OSError as error:
        raise SodaError(
            f"cannot write {path.name!r}: {error.strerror or error}; make the folder writable or choose another name"
        ) from error


def to_bytes(layers: Mapping[str, AdaptedLayer], metadata: Mapping[str, Any]) -> bytes:
    """The file as bytes; equal input gives equal bytes."""
    return tensor_file.to_bytes(*_content(layers, metadata))


def _content(
    layers: Mapping[str, AdaptedLayer], metadata: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The file's tensors and its metadata."""
    if not layers:
        raise FileFormatError("an adapter without layers cannot be saved")
    tensors: dict[str, Tensor] = {}
    spec: dict[str, Any] = {}
    for name in sorted(layers):
        layers[name].validate(name)
        spec[name] = _flatten(name, layers[name], tensors)
    plain = {k: v for k, v in metadata.items() if k not in GRAPH_KEYS}
    document = {"format_version": FORMAT_VERSION, "layers": spec, "metadata": plain}
    try:
        header = {"soda": json.dumps(document, sort_keys=True, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"the adapter's metadata is not plain JSON: {error}") from error
    header |= {key: str(metadata[key]) for key in GRAPH_KEYS if metadata.get(key)}
    parameters = json.dumps({"parameters": sum(layer.num_parameters for layer in layers.values())}, sort_keys=True)
    network = {"ss_network_module": "soda", "ss_network_args": parameters}
    header |= manager_keys(plain, tensor_hash(tensors), "soda", network)
    return tensors, header


def identity(layers: Mapping[str, AdaptedLayer]) -> str:
    """:func:`tensor_hash` of an adapter's layers."""
    tensors: dict[str, Tensor] = {}
    for name in sorted(layers):
        _flatten(name, layers[name], tensors)
    return tensor_hash(tensors)


def layer_hash(layer: AdaptedLayer) -> str:
    """SHA-256 (hex) of what decides a layer's change: its tensors, its decomposition, its terms' strengths."""
    tensors: dict[str, Tensor] = {}
    described = json.dumps(_flatten("", layer, tensors), sort_keys=True)
    return hashlib.sha256(f"{described} {tensor_hash(tensors)}".encode()).hexdigest()


def _flatten(name: str, layer: AdaptedLayer, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Add a layer's tensors to ``tensors``; return its part of the JSON."""
    if layer.single is not None:
        return _flatten_single(f"{name}.soda_", layer.single, tensors)
    return {
        "terms": [
            {"strength": strength, **_flatten_single(f"{name}.soda_term_{i}_", term, tensors)}
            for i, (strength, term) in enumerate(layer.terms)
        ]
    }


def _flatten_single(prefix: str, layer: SodaLayer, tensors: dict[str, Tensor]) -> dict[str, Any]:
    def put(part: str, tensor: Tensor) -> None:
        tensors[prefix + part] = tensor.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)

    for i, R in enumerate(layer.factors):
        put(f"factor_{i}", R)
    if layer.shift is not None:
        put("shift", layer.shift)
    if layer.knots is not None:
        put("knots", layer.knots)
    if layer.sketches is not None:
        put("probe", torch.stack([layer.sketches.spectral, layer.sketches.base]))
    described = {
        "decomposition": layer.decomposition,
        "factors": [R.shape[-1] for R in layer.factors],
        "shift": None if layer.shift is None else layer.shift.numel(),
        "shape": None if layer.shape is None else list(layer.shape),
        "probe": layer.sketches is not None,
    }
    # absent where there are none: files without knots are what they were before there were any
    return described if layer.knots is None else {**described, "knots": layer.knots.numel()}


# ------------------------------------------------------------------------------------------------------------ reading


def read(path: str | os.PathLike[str]) -> tuple[dict[str, AdaptedLayer], dict[str, Any]]:
    """Read and check an adapter file; returns ``(layers, metadata)``.

    Raises:
        FileFormatError: naming the file, the key, what was expected and what was found.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            header = dict(file.metadata() or {})
            keys = list(file.keys())
            document = _document(header, keys)
            tensors = {key: file.get_tensor(key) for key in keys}
        layers = _layers(document["layers"], tensors)
        _check_hash(header, tensors)
    except FileFormatError as error:
        raise FileFormatError(f"{path.name}: {error}") from error
    except OSError as error:
        raise FileFormatError(f"{path.name}: cannot be read: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise FileFormatError(
            f"{path.name}: is not a complete safetensors file ({error}); download or save it again"
        ) from error
    metadata = dict(document.get("metadata") or {})
    metadata |= {key: header[key] for key in GRAPH_KEYS if key in header}
    return layers, metadata


def _document(header: Mapping[str, str], keys: list[str]) -> dict[str, Any]:
    if "soda" not in header:
        raise FileFormatError(f"is not a SODA adapter: its metadata has no 'soda' entry{_what_else(keys)}")
    try:
        document = json.loads(header["soda"])
        version = document["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"its 'soda' metadata is damaged ({type(error).__name__}: {error})") from error
    if version != FORMAT_VERSION:
        raise FileFormatError(
            f"has format version {version!r}, this pack reads version {FORMAT_VERSION}; update the pack"
        )
    if not isinstance(document.get("layers"), dict) or not document["layers"]:
        raise FileFormatError("lists no layers in its 'soda' metadata")
    return document  # type: ignore[no-any-return]


def _what_else(keys: list[str]) -> str:
    for marker, kind in (("lora_", "a LoRA"), ("lokr_", "a LoKr"), ("hada_", "a LoHa"), ("oft_", "an OFT")):
        found = next((key for key in keys if marker in key), None)
        if found:
            return f"; it looks like {kind} file (key {found!r}), load it with the Load LoRA node"
    return f"; its first key is {keys[0]!r}" if keys else "; it is empty"


def _layers(spec: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, AdaptedLayer]:
    unused = set(tensors)
    layers: dict[str, AdaptedLayer] = {}
    for name, entry in spec.items():
        layer: AdaptedLayer
        try:
            if "terms" in entry:
                terms = [
                    (float(term["strength"]), _single(f"{name}.soda_term_{i}_", term, tensors, unused))
                    for i, term in enumerate(entry["terms"])
                ]
                layer = SodaSum(tuple(terms))
            else:
                layer = _single(f"{name}.soda_", entry, tensors, unused)
        except (KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(
                f"the 'soda' metadata of layer {name!r} is damaged ({type(error).__name__}: {error})"
            ) from error
        layer.validate(name)
        layers[name] = layer
    if unused:
        raise FileFormatError(f"holds {len(unused)} tensors its metadata does not list, the first is {min(unused)!r}")
    return layers


def _single(prefix: str, entry: Mapping[str, Any], tensors: dict[str, Tensor], unused: set[str]) -> SodaLayer:
    def take(part: str, *shape: int) -> Tensor:
        key = prefix + part
        if key not in tensors:
            raise FileFormatError(f"tensor {key!r} of shape {shape} is missing")
        tensor = tensors[key]
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            raise FileFormatError(
                f"tensor {key!r} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}, expected {shape} and "
                "torch.float32"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise FileFormatError(f"tensor {key!r} holds NaN or infinite values")
        unused.discard(key)
        return tensor

    sketches = take("probe", 2, *SKETCH_SHAPE) if entry["probe"] else None
    return SodaLayer(
        decomposition=entry["decomposition"],
        factors=[take(f"factor_{i}", k, k) for i, k in enumerate(entry["factors"])],
        shift=None if entry["shift"] is None else take("shift", entry["shift"]),
        shape=None if entry["shape"] is None else tuple(entry["shape"]),
        sketches=None if sketches is None else Sketches(sketches[0], sketches[1]),
        knots=take("knots", entry["knots"]) if entry.get("knots") is not None else None,
    )


def _check_hash(header: Mapping[str, str], tensors: dict[str, Tensor]) -> None:
    expected = header.get("sshs_model_hash")
    if expected and expected != (found := tensor_hash(tensors)):
        raise FileFormatError(
            f"its tensors do not match its own hash (expected {expected[:12]}…, found {found[:12]}…): "
            "the file was damaged or edited"
        )

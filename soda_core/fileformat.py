# SPDX-License-Identifier: GPL-3.0-or-later
"""The adapter file, format version 1: safetensors, float32, one JSON value that says everything.

Tensors of a layer (``<layer>`` is the base model's module path, e.g. ``diffusion_model.….attn1.to_q``):

- ``<layer>.soda_factor_0`` … ``(k_i, k_i)``, ``<layer>.soda_shift (r,)``,
- ``<layer>.soda_knots (knots,)``: only where the shift is a curve, its knots' heights,
- ``<layer>.soda_probe (2, 32, 4)``: the base check's sketches of Δ and of W0 (the key is older than that name),
- ``<layer>.soda_sketched (n, r)`` or ``(n, knots)``: only of a geodesic merge, the shifts whose changes of the weight,
  each times its strength, add up to the first sketch;
- a merge that is no SODA layer itself holds the same once per term: ``<layer>.soda_term_0_factor_0`` …, and the JSON
  says by which ``rule`` its terms become one (:mod:`.compound`).

Metadata: ``soda`` = sorted JSON ``{digest, format_version, layers, metadata}``; beside it the flat ``modelspec.*``,
``ss_*`` and ``sshs_*`` keys that model managers read, all derived from it. Files never hold folder paths.

A file is hostile until shown otherwise: :mod:`.schema` checks the JSON before a tensor is touched, tensors are float32
of just the sizes it names, finite and on their manifold, and ``digest`` covers all that decides the result. Limits: 64
MiB in front of the tensors, of which 16 MiB are the JSON; 20,000 layers and 100,000 tensors; in a layer 64 terms, each
of up to 16 factors of 2 to 16,384 rows that rotate up to 2^20 inputs; strengths within ±1,000; 64 KiB of text in a
value. Whatever is read ends in an adapter or in a ``FileFormatError`` that names file and key.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from . import schema, tensor_file
from .base_check import Sketches
from .compound import SodaProduct, SodaSum
from .errors import FileFormatError
from .layer import AdaptedLayer, SodaLayer
from .layer_spec import LayerSpec, TermSpec
from .schema import FORMAT_VERSION, Document
from .tensor_file import manager_keys, tensor_hash
from .text import printable

#: Metadata that is stored as a flat key of its own, not inside the JSON: the host's front end looks for these names
#: when a file is dropped on the graph.
GRAPH_KEYS = ("workflow", "prompt")


# ------------------------------------------------------------------------------------------------------------ writing


def write(path: str | os.PathLike[str], layers: Mapping[str, AdaptedLayer], metadata: Mapping[str, Any]) -> None:
    """Write an adapter atomically: the file is complete, or it is not there.

    Raises:
        FileFormatError: what no reader would accept (NaN, off the manifold, text without end), or nothing to write.
        SodaError: the disk is full or the folder cannot be written.
    """
    tensor_file.write(path, *_content(layers, metadata))


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
    digest = tensor_hash(tensors)
    header = {"soda": _json(spec, content_hash(spec, digest), metadata), **_graphs(metadata)}
    parameters = json.dumps({"parameters": sum(layer.num_parameters for layer in layers.values())}, sort_keys=True)
    network = {"ss_network_module": "soda", "ss_network_args": parameters}
    header |= manager_keys(metadata, digest, "soda", network)
    return tensors, header


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Raise now the ``FileFormatError`` that :func:`write` would raise later of an adapter's metadata."""
    nothing = SodaLayer(shape=(1, 1))
    _json({"x": LayerSpec.of(nothing).as_json()}, "0" * 64, metadata)
    _graphs(metadata)


def _json(spec: Mapping[str, Any], digest: str, metadata: Mapping[str, Any]) -> str:
    """The JSON of a file, checked as a reader will check it."""
    plain = {k: v for k, v in metadata.items() if k not in GRAPH_KEYS}
    document = {"digest": digest, "format_version": FORMAT_VERSION, "layers": spec, "metadata": plain}
    try:
        text = json.dumps(document, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise FileFormatError(f"the adapter's metadata is not plain JSON: {error}") from error
    try:
        Document.parse(text)
    except FileFormatError as error:
        raise FileFormatError(f"the adapter cannot be saved: {error}") from error
    return text


def _graphs(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {key: schema.check_text(metadata[key], key, schema.GRAPH) for key in GRAPH_KEYS if metadata.get(key)}


def content_hash(spec: Mapping[str, Any], tensors: str) -> str:
    """SHA-256 (hex) over all that decides the result: the JSON of the layers, and the tensors by their hash."""
    return hashlib.sha256(f"{json.dumps(spec, sort_keys=True)} {tensors}".encode()).hexdigest()


def identity(layers: Mapping[str, AdaptedLayer]) -> str:
    """:func:`tensor_hash` of an adapter's layers."""
    tensors: dict[str, Tensor] = {}
    for name in sorted(layers):
        _flatten(name, layers[name], tensors)
    return tensor_hash(tensors)


def layer_hash(layer: AdaptedLayer) -> str:
    """SHA-256 (hex) of what decides a layer's change: its tensors, its decomposition, its terms' strengths."""
    tensors: dict[str, Tensor] = {}
    described = _flatten("", layer, tensors)
    return content_hash(described, tensor_hash(tensors))


def _flatten(name: str, layer: AdaptedLayer, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Add a layer's tensors to ``tensors``; return its part of the JSON."""
    spec = LayerSpec.of(layer)
    for prefix, (_, term) in zip(spec.prefixes(name), layer.terms, strict=True):
        for part, tensor in _parts(term).items():
            stored = tensor.detach().to("cpu", torch.float32)
            tensors[prefix + part] = stored.clone(memory_format=torch.contiguous_format)
    return spec.as_json()


def _parts(layer: SodaLayer) -> dict[str, Tensor]:
    """A layer's tensors by the last part of their keys, as in :meth:`.layer_spec.TermSpec.tensors`."""
    parts = {f"factor_{i}": R for i, R in enumerate(layer.factors)}
    if layer.shift is not None:
        parts["shift"] = layer.shift
    if layer.knots is not None:
        parts["knots"] = layer.knots
    if layer.sketches is not None:
        parts["probe"] = torch.stack([layer.sketches.spectral, layer.sketches.base])
        if layer.sketches.terms:
            parts["sketched"] = torch.stack([shift for _, shift in layer.sketches.terms])
    return parts


# ------------------------------------------------------------------------------------------------------------ reading


def read(path: str | os.PathLike[str]) -> tuple[dict[str, AdaptedLayer], dict[str, Any]]:
    """Read and check an adapter file; returns ``(layers, metadata)``.

    Raises:
        FileFormatError: naming the file, the key, what was expected and what was found.
    """
    path = Path(path)
    try:
        _check_file(path)
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            header = dict(file.metadata() or {})
            keys = list(file.keys())
            document = _document(header, keys)
            _check_tensors(document.tensors(), keys, file)
            # copies: what is only mapped kills the process once the file is overwritten and shorter
            tensors = {key: _finite(key, file.get_tensor(key).clone()) for key in keys}
        layers = {name: _layer(name, spec, tensors) for name, spec in document.layers.items()}
        _check_hashes(header, document, tensors)
    except FileFormatError as error:
        raise FileFormatError(f"{printable(path.name)}: {error}") from error
    except (OSError, ValueError) as error:  # (a name with a null byte is a ValueError)
        reason = getattr(error, "strerror", None) or error
        raise FileFormatError(f"{printable(path.name)}: cannot be read: {reason}") from error
    except safetensors.SafetensorError as error:
        raise FileFormatError(
            f"{printable(path.name)}: is not a complete safetensors file ({printable(str(error))}); download or save "
            "it again"
        ) from error
    metadata = dict(document.metadata)
    metadata |= {key: header[key] for key in GRAPH_KEYS if key in header}
    return layers, metadata


def _check_file(path: Path) -> None:
    """A plain file (opening a pipe would wait for ever) whose header is no larger than ours ever are."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FileFormatError("is not a file")
    with open(path, "rb") as file:
        start = file.read(8)
    if len(start) == 8 and (size := struct.unpack("<Q", start)[0]) > schema.HEADER:
        raise FileFormatError(
            f"is not a SODA adapter, or not a complete one: {size:,} bytes are said to stand in front of its tensors, "
            f"at most {schema.HEADER:,} are allowed"
        )


def _document(header: Mapping[str, str], keys: list[str]) -> Document:
    if "soda" not in header:
        raise FileFormatError(f"is not a SODA adapter: its metadata has no 'soda' entry{_what_else(keys)}")
    try:
        document = Document.parse(header["soda"])
        for key in GRAPH_KEYS:
            schema.check_text(header.get(key, ""), key, schema.GRAPH)
    except FileFormatError as error:
        raise FileFormatError(f"its metadata is not valid: {error}") from error
    return document


def _what_else(keys: list[str]) -> str:
    for marker, kind in (("lora_", "a LoRA"), ("lokr_", "a LoKr"), ("hada_", "a LoHa"), ("oft_", "an OFT")):
        found = next((key for key in keys if marker in key), None)
        if found:
            return f"; it looks like {kind} file (key {found!r}), load it with the Load LoRA node"
    return f"; its first key is {keys[0]!r}" if keys else "; it is empty"


def _check_tensors(expected: Mapping[str, tuple[int, ...]], keys: list[str], file: safetensors.safe_open) -> None:
    """Raise unless the file holds just these tensors; reads none."""
    if missing := expected.keys() - set(keys):
        key = min(missing)
        raise FileFormatError(f"tensor {key!r} of shape {expected[key]} is missing")
    if unlisted := set(keys) - expected.keys():
        raise FileFormatError(
            f"holds {len(unlisted)} tensors its metadata does not list, the first is {min(unlisted)!r}"
        )
    for key, shape in expected.items():
        stored = file.get_slice(key)
        if tuple(stored.get_shape()) != shape or stored.get_dtype() != "F32":
            raise FileFormatError(
                f"tensor {key!r} has shape {tuple(stored.get_shape())} and dtype {stored.get_dtype()}, expected "
                f"{shape} and F32"
            )


def _finite(key: str, tensor: Tensor) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise FileFormatError(f"tensor {key!r} holds NaN or infinite values")
    return tensor


def _layer(name: str, spec: LayerSpec, tensors: Mapping[str, Tensor]) -> AdaptedLayer:
    terms = [
        (strength, _single(prefix, term, tensors))
        for prefix, (strength, term) in zip(spec.prefixes(name), spec.terms, strict=True)
    ]
    layer: AdaptedLayer
    if spec.rule is None:
        layer = terms[0][1]
    elif spec.rule == "product":
        layer = SodaProduct(tuple(terms))
    else:
        layer = SodaSum(tuple(terms), spec.rule)
    layer.validate(name)
    return layer


def _single(prefix: str, spec: TermSpec, tensors: Mapping[str, Tensor]) -> SodaLayer:
    probe, sketched = tensors.get(f"{prefix}probe"), tensors.get(f"{prefix}sketched", ())
    terms = tuple(zip(spec.sketched, sketched, strict=True))
    return SodaLayer(
        decomposition=spec.decomposition,
        factors=[tensors[f"{prefix}factor_{i}"] for i in range(len(spec.factors))],
        shift=tensors.get(f"{prefix}shift"),
        shape=spec.shape,
        sketches=None if probe is None else Sketches(probe[0], probe[1], terms),
        knots=tensors.get(f"{prefix}knots"),
    )


def _check_hashes(header: Mapping[str, str], document: Document, tensors: Mapping[str, Tensor]) -> None:
    """The hashes that the file has: one for managers, over its tensors, and one over all that decides the result."""
    found = tensor_hash(tensors)
    _check_hash("tensors", header.get("sshs_model_hash"), found)
    spec = {name: layer.as_json() for name, layer in document.layers.items()}
    _check_hash("layers", document.digest, content_hash(spec, found))


def _check_hash(what: str, expected: str | None, found: str) -> None:
    if expected and expected != found:
        raise FileFormatError(
            f"its {what} do not match its own hash (expected {expected[:12]!r}, found {found[:12]!r}): the file was "
            "damaged or edited"
        )

# SPDX-License-Identifier: GPL-3.0-or-later
"""Safetensors files that are written whole, are the same for the same content, and say what model managers show."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from . import files
from .errors import SodaError

EXTENSION = ".safetensors"


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file atomically: it is complete, or it is not there.

    Raises:
        SodaError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    header, data = _parts(tensors, metadata)
    try:
        with files.replacing(path) as unfinished, open(unfinished, "wb") as file:
            file.write(header)
            file.write(data)
    except OSError as error:
        raise SodaError(
            f"cannot write {path.name!r} ({data.nbytes / 2**20:.1f} MiB): {error.strerror or error}; "
            "free some space or make the folder writable, then save again"
        ) from error


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file as bytes; equal input gives equal bytes."""
    return b"".join(_parts(tensors, metadata))


def _parts(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, memoryview]:
    """Header and data, with the metadata sorted (the library orders several keys at random)."""
    data = memoryview(safetensors.torch.save(dict(tensors), dict(metadata)))
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(bytes(data[8 : 8 + size]))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, data[8 + size :]


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over the tensors' bytes in the order of their names: what they are, whatever their file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def manager_keys(
    metadata: Mapping[str, Any], digest: str, implementation: str, network: Mapping[str, str]
) -> dict[str, str]:
    """The flat keys of ModelSpec 1.0 and of the kohya convention, as far as an adapter's metadata knows them.

    Args:
        digest: :func:`tensor_hash` of the file.
        implementation: "soda" or "lora".
        network: what kohya's tools read of the kind of file, ``ss_network_…``.
    """
    base = metadata.get("base_model") or {}
    settings = metadata.get("settings") or {}
    trigger = metadata.get("trigger_phrase")
    architecture = base.get("architecture")
    keys: dict[str, Any] = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/{implementation}" if architecture else implementation,
        "modelspec.implementation": "soda",
        "modelspec.title": metadata.get("title"),
        "modelspec.date": metadata.get("date"),
        "modelspec.hash_sha256": f"0x{digest}",
        "modelspec.trigger_phrase": trigger,
        "modelspec.usage_hint": metadata.get("usage_hint"),
        "modelspec.thumbnail": metadata.get("thumbnail"),
        "modelspec.resolution": metadata.get("resolution"),
        "modelspec.prediction_type": base.get("prediction_type"),
        "modelspec.merged_from": ", ".join(p.get("title") or p["hash"] for p in metadata.get("parents") or ()) or None,
        "ss_base_model_version": base.get("family"),
        "ss_sd_model_name": base.get("name"),
        "ss_new_sd_model_hash": base.get("hash"),
        "ss_seed": metadata.get("seed"),
        "ss_steps": metadata.get("steps"),
        "ss_learning_rate": settings.get("rotation_lr"),
        "ss_tag_frequency": json.dumps({"soda": {trigger: 1}}) if trigger else None,
        "sshs_model_hash": digest,
        **network,
    }
    return {k: str(v) for k, v in keys.items() if v is not None}

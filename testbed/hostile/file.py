# SPDX-License-Identifier: GPL-3.0-or-later
"""A safetensors file of any content, right or wrong, without the library that would refuse to write it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: Flat keys and JSON keys that would give an edit away.
HASHES = ("sshs_model_hash", "modelspec.hash_sha256")


def pack(header: Any, data: bytes = b"", size: int | None = None) -> bytes:
    """
    Args:
        header: JSON, or bytes to stand in its place.
        size: what is said to be the header's.
    """
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def unpack(file: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", file[:8])[0]
    return json.loads(file[8 : 8 + size]), file[8 + size :]


@dataclass
class Adapter:
    """An adapter file taken apart.

    Args:
        document: the JSON under ``soda``; text stands for itself.
        flat: the other metadata.
    """

    tensors: dict[str, Tensor]
    document: Any
    flat: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, file: bytes) -> Adapter:
        header, data = unpack(file)
        flat = header.pop("__metadata__")
        tensors = {
            key: torch.frombuffer(bytearray(data[slice(*entry["data_offsets"])]), dtype=torch.float32).reshape(
                entry["shape"]
            )
            for key, entry in header.items()
        }
        return cls(tensors, json.loads(flat.pop("soda")), flat)

    @classmethod
    def identity(cls, layers: Mapping[str, Any], sizes: Mapping[str, list[int]] | None = None) -> Adapter:
        """Layers as the JSON has them, with the identity for each factor and zeros for shifts."""
        tensors = {}
        for name, entry in layers.items():
            for i, k in enumerate(entry["factors"] if sizes is None else sizes[name]):
                tensors[f"{name}.soda_factor_{i}"] = torch.eye(k)
            if entry["shift"]:
                tensors[f"{name}.soda_shift"] = torch.zeros(entry["shift"])
        return cls(tensors, {"format_version": 1, "layers": dict(layers), "metadata": {}})

    def without_hashes(self) -> Adapter:
        """The same, as one whose writer forges what would give an edit away."""
        document = self.document
        if isinstance(document, dict):
            document = {key: value for key, value in document.items() if key != "digest"}
        return Adapter(self.tensors, document, {k: v for k, v in self.flat.items() if k not in HASHES})

    def edited(self, change: Callable[[Any], Any]) -> Adapter:
        """With a change of the JSON: made in place, or returned anew."""
        document = deepcopy(self.document)
        changed = change(document)
        return Adapter(self.tensors, document if changed is None else changed, dict(self.flat)).without_hashes()

    def with_tensor(self, part: str, change: Callable[[Tensor], Tensor | None]) -> Adapter:
        """With the first tensor of that part changed, in place or by another; or left out, where that gives none."""
        tensors = {key: tensor.clone() for key, tensor in self.tensors.items()}
        key = next(key for key in sorted(tensors) if key.endswith(part))
        changed = change(tensors[key])
        if changed is None:
            del tensors[key]
        else:
            tensors[key] = changed
        return Adapter(tensors, self.document, self.flat).without_hashes()

    def header(self) -> tuple[dict[str, Any], bytes]:
        header: dict[str, Any] = {
            "__metadata__": {
                **self.flat, "soda": self.document if isinstance(self.document, str) else json.dumps(self.document),
            }
        }  # fmt: skip
        data = b""
        names = {torch.float32: "F32", torch.float16: "F16", torch.float64: "F64", torch.int32: "I32"}
        for key, tensor in self.tensors.items():
            octets = tensor.contiguous().numpy().tobytes()
            header[key] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                           "data_offsets": [len(data), len(data) + len(octets)]}  # fmt: skip
            data += octets
        return header, data

    def to_bytes(self) -> bytes:
        return pack(*self.header())

    def with_header(self, change: Callable[[dict[str, Any]], Any]) -> bytes:
        """The file with a change of the outer header: made in place, or returned as JSON or bytes."""
        header, data = self.without_hashes().header()
        changed = change(header)
        return pack(header if changed is None else changed, data)

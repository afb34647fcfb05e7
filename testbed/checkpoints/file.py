# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a checkpoint; tensors of zeros become holes in the file where the file system can."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import torch

from soda_core.files import replacing
from testbed.checkpoints.presets import Parts

DTYPES = {
    "f16": (torch.float16, "F16"),
    "bf16": (torch.bfloat16, "BF16"),
    "f32": (torch.float32, "F32"),
    "f8": (torch.float8_e4m3fn, "F8_E4M3"),
}
_CHUNK = 1 << 16


def write(
    path: str | os.PathLike[str],
    parts: Parts,
    dtype: str = "f16",
    te_dtype: str | None = None,
    note: str = "random weights, testbed/checkpoints",
) -> Path:
    """Write parts as one safetensors checkpoint; the file appears whole or not at all.

    Args:
        dtype: one of f16, bf16, f32, f8; ``te_dtype`` likewise for the text encoders.
    """
    path = Path(path)
    entries = [
        (name, tensor, *DTYPES[te_dtype or dtype if part == "clip" else dtype])
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    ]
    header: dict[str, object] = {"__metadata__": {"format": "pt", "note": note}}
    end = 0
    for name, tensor, kind, label in entries:
        start, end = end, end + tensor.numel() * kind.itemsize
        header[name] = {"dtype": label, "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)

    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, tensor, kind, _ in entries:
            if tensor.ndim and not any(tensor.stride()):
                file.seek(tensor.numel() * kind.itemsize, os.SEEK_CUR)
                continue
            data = tensor.to(kind).contiguous().reshape(-1).view(torch.uint8).numpy().data
            for at in range(0, len(data), _CHUNK):
                chunk = data[at : at + _CHUNK]
                if len(chunk) == _CHUNK and not any(chunk[:64]) and not any(chunk):
                    file.seek(_CHUNK, os.SEEK_CUR)
                else:
                    file.write(chunk)
        file.truncate(8 + len(encoded) + end)
    return path

# SPDX-License-Identifier: GPL-3.0-or-later
"""Decompositions of base weights: computed once, kept in memory and on disk."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import OrderedDict
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .base_weight import BaseWeight, fingerprint
from .errors import SodaError
from .files import leftovers, replacing, sweep
from .spectral import Decomposition, Spectrum, from_tensors, spectrum_shapes

#: Of what is kept of a decomposition; raise it when that changes, and files from before are left to be dropped.
_VERSION: dict[Decomposition, str] = {"svd": "", "qr": "-2"}


class SpectrumStore:
    """Get-or-compute for :meth:`.base_weight.BaseWeight.decompose`; entries live on the CPU.

    Keyed by the weight's content, so a changed or differently stored base never meets a stale entry. Memory and disk
    are bounded and drop what was used longest ago. An entry on disk carries a digest; one that does not have it, or not
    the sizes of its weight, is computed anew. What killed processes left unfinished is removed after a day.

    Args:
        folder: where entries are written, made on first use.
        memory_limit: bytes kept in memory; 0 for none.
        disk_limit: bytes kept in ``folder``; 0 for none.
    """

    def __init__(self, folder: Path, memory_limit: int, disk_limit: int) -> None:
        self.folder, self.memory_limit, self.disk_limit = folder, memory_limit, disk_limit
        self._memory: OrderedDict[str, Spectrum] = OrderedDict()
        self._held = 0  # bytes in memory
        self._written: set[Path] = set()  # since the start, until it has been said that they do not all stay
        self.computed = 0  #: decompositions computed so far, for logs and tests
        sweep(folder)

    @torch.inference_mode(False)  # what is kept must also do for a training
    @torch.no_grad()
    def get(self, weight: BaseWeight, kind: Decomposition, dtype: torch.dtype | None = None) -> Spectrum:
        """The decomposition of a weight, on its device.

        Args:
            dtype: for its bases, see :meth:`.spectral.Spectrum.to`.
        """
        key = f"{weight.fingerprint}-{kind}{_VERSION[kind]}"
        spectrum = self._memory.get(key) or self._read(key, kind, weight)
        if spectrum is None:
            self.computed += 1
            spectrum = weight.decompose(kind).to("cpu")
            self._write(key, spectrum)
        self._remember(key, spectrum)
        return spectrum.to(weight.device, dtype)

    def clear_memory(self) -> None:
        self._memory.clear()
        self._held = 0

    def __len__(self) -> int:
        """Decompositions held in memory."""
        return len(self._memory)

    def _remember(self, key: str, spectrum: Spectrum) -> None:
        if key not in self._memory:
            self._memory[key] = spectrum
            self._held += spectrum.nbytes()
        self._memory.move_to_end(key)
        while self._held > self.memory_limit and self._memory:
            self._held -= self._memory.popitem(last=False)[1].nbytes()

    def _read(self, key: str, kind: Decomposition, weight: BaseWeight) -> Spectrum | None:
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            tensors = _checked(path, kind, weight)
            os.utime(path)  # used now: last to be dropped
        except (OSError, SodaError, safetensors.SafetensorError) as error:
            logging.warning("SODA: a cached decomposition is computed anew, the file %s (%s)", path.name, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        return from_tensors(kind, tensors)

    def _write(self, key: str, spectrum: Spectrum) -> None:
        """Best effort: a full disk costs time at the next load, nothing else."""
        if spectrum.nbytes() > self.disk_limit:
            return
        path = self._path(key)
        try:
            tensors = spectrum.tensors()
            with replacing(path) as unfinished:
                safetensors.torch.save_file(tensors, unfinished, {"digest": _digest(tensors)})
            self._written.add(path)
            self._evict()
        except (OSError, safetensors.SafetensorError) as error:
            logging.warning("SODA: could not keep a decomposition on disk (%s)", error)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _evict(self) -> None:
        files = [(p.stat(), p) for p in self.folder.glob("*.safetensors")]
        files.sort(key=lambda item: item[0].st_mtime)
        total = sum(stat.st_size for stat, _ in files) + sum(stat.st_size for _, stat in leftovers(self.folder))
        for stat, path in files:
            if total <= self.disk_limit:
                break
            path.unlink(missing_ok=True)
            total -= stat.st_size
            if path in self._written:
                self._written.clear()
                logging.warning(
                    "SODA: decompositions take more than the %.3g GB that are kept on disk; the oldest are dropped and "
                    "computed anew when needed. Set SODA_CACHE_DISK_GB higher; decomposition = qr takes half of it, "
                    "rotation only takes none",
                    self.disk_limit / 2**30,
                )


def _checked(path: Path, kind: Decomposition, weight: BaseWeight) -> dict[str, Tensor]:
    """The tensors of an entry, which are those that were written.

    Raises:
        SodaError: they are not, or not of a decomposition of ``weight``.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        digest = (file.metadata() or {}).get("digest")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    expected = spectrum_shapes(weight.shape, kind)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise SodaError(f"it has the sizes {found}, the weight's decomposition {expected}")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise SodaError("it holds NaN or infinite values")
    if digest != _digest(tensors):
        raise SodaError("it is not as it was written")
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    """Of an entry's content, as fast as it is read."""
    return "-".join(fingerprint(tensors[name]) for name in sorted(tensors))

# SPDX-License-Identifier: GPL-3.0-or-later
"""Decompositions of base weights: computed once, kept in memory and on disk.

Keyed by the weight's content, so a changed or differently stored base never meets a stale entry. Both stores are
bounded and drop what was used longest ago. ``SODA_CACHE_MEMORY_GB`` and ``SODA_CACHE_DISK_GB`` change the limits;
0 turns a store off.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import folder_paths
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..spectral import Decomposition, Spectrum, decompose, from_tensors

_HASH_COLUMNS = 512


def fingerprint(weight: Tensor) -> str:
    """Hash of a weight's content, shape and dtype, on the weight's device.

    Row and column sums of its bits as 64-bit integers, which wrap around, are hashed in place of the bits themselves:
    several times as fast, and what happens to weights (training, rounding, another file) does not leave all sums alike.
    """
    octets = weight.detach().contiguous().flatten().view(torch.uint8)  # (a 1 x 1 kernel may have any strides)
    octets = torch.nn.functional.pad(octets, (0, -octets.numel() % (8 * _HASH_COLUMNS)))
    words = octets.view(torch.int64).reshape(-1, _HASH_COLUMNS)
    digest = hashlib.blake2b(f"{tuple(weight.shape)} {weight.dtype}".encode(), digest_size=20)
    for dim in (0, 1):
        digest.update(words.sum(dim).cpu().numpy().data)
    return digest.hexdigest()


def _limit(variable: str, default_gb: float) -> int:
    try:
        return int(float(os.environ.get(variable, default_gb)) * 2**30)
    except ValueError:
        logging.warning("SODA: %s is not a number of gigabytes; using %g", variable, default_gb)
        return int(default_gb * 2**30)


class SpectrumStore:
    """Get-or-compute for :func:`..spectral.decompose`; entries live on the CPU.

    Args:
        folder: where entries are written, made on first use.
    """

    def __init__(self, folder: Path, memory_limit: int, disk_limit: int) -> None:
        self.folder, self.memory_limit, self.disk_limit = folder, memory_limit, disk_limit
        self._memory: OrderedDict[str, Spectrum] = OrderedDict()
        self._held = 0  # bytes in memory
        self._written: set[Path] = set()  # since the start, until it has been said that they do not all stay
        self.computed = 0  #: decompositions computed so far, for logs and tests

    @torch.inference_mode(False)  # what is kept must also do for a training
    @torch.no_grad()
    def get(
        self, weight: Tensor, kind: Decomposition, device: torch.device, content: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Spectrum:  # fmt: skip
        """The decomposition of a pristine weight, on ``device``.

        Args:
            content: the weight's fingerprint, where it is known.
            dtype: for its bases, see :meth:`Spectrum.to`.
        """
        key = f"{content or fingerprint(weight)}-{kind}"
        spectrum = self._memory.get(key) or self._read(key, kind)
        if spectrum is None:
            self.computed += 1
            spectrum = decompose(weight.to(device), kind).to("cpu")
            self._write(key, spectrum)
        self._remember(key, spectrum)
        return spectrum.to(device, dtype)

    def clear_memory(self) -> None:
        self._memory.clear()
        self._held = 0

    def _remember(self, key: str, spectrum: Spectrum) -> None:
        if key not in self._memory:
            self._memory[key] = spectrum
            self._held += spectrum.nbytes()
        self._memory.move_to_end(key)
        while self._held > self.memory_limit and self._memory:
            self._held -= self._memory.popitem(last=False)[1].nbytes()

    def _read(self, key: str, kind: Decomposition) -> Spectrum | None:
        path = self.folder / f"{key}.safetensors"
        if not path.is_file():
            return None
        try:
            tensors = safetensors.torch.load_file(path)
            spectrum = from_tensors(kind, tensors)
            os.utime(path)  # used now: last to be dropped
        except (OSError, KeyError, safetensors.SafetensorError) as error:
            logging.warning("SODA: a cached decomposition is unreadable and is computed anew (%s)", error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        return spectrum

    def _write(self, key: str, spectrum: Spectrum) -> None:
        """Best effort: a full disk costs time at the next load, nothing else."""
        if spectrum.nbytes() > self.disk_limit:
            return
        partial = self.folder / f".{key}.{uuid.uuid4().hex[:8]}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file(spectrum.tensors(), partial)
            path = self.folder / f"{key}.safetensors"
            os.replace(partial, path)
            self._written.add(path)
            self._evict()
        except (OSError, safetensors.SafetensorError) as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            logging.warning("SODA: could not keep a decomposition on disk (%s)", error)

    def _evict(self) -> None:
        files = [(p.stat(), p) for p in self.folder.glob("*.safetensors")]
        files.sort(key=lambda item: item[0].st_mtime)
        total = sum(stat.st_size for stat, _ in files)
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


_store: SpectrumStore | None = None


def store() -> SpectrumStore:
    """The process-wide store, under the host's private user folder."""
    global _store
    if _store is None:
        _store = SpectrumStore(
            Path(folder_paths.get_system_user_directory("soda_spectra")),
            _limit("SODA_CACHE_MEMORY_GB", 2),
            _limit("SODA_CACHE_DISK_GB", 8),
        )
    return _store


def spectra_of(
    weight: Tensor, kinds: Iterable[Decomposition], device: torch.device, content: str | None = None
) -> dict[Decomposition, Spectrum]:
    """All decompositions a layer needs of a pristine weight; ``content`` as for :meth:`SpectrumStore.get`."""
    return {kind: store().get(weight, kind, device, content) for kind in kinds}

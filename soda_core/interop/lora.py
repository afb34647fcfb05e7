# SPDX-License-Identifier: GPL-3.0-or-later
"""Adapters for programs that do not know SODA: as a LoRA, which is an approximation, or as full differences.

A rotation changes a weight in every direction, so its change has full rank, and a LoRA keeps the largest part of it.
How much that is depends on the adapter; every export measures what it left out, on the numbers as they are stored.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .. import fileformat, tensor_file
from ..adapter import SodaAdapter
from ..base_check import BaseCheck, BaseReport
from ..base_weight import BaseWeight
from ..errors import BaseMismatchError, SettingsError
from ..low_rank import ranks_for_error, ranks_within, singular_values, truncated
from ..report.base_check import refusal
from .export_report import OUTLOOK, ExportReport, LayerExport
from .lora_settings import LoraSettings
from .names import LayerKeys, layer_keys

Progress = Callable[[int, int], object]

#: Readers multiply by alpha / rank. The same for all layers: diffusers applies one alpha to a whole file.
_ALPHA = 1.0

#: Bytes that names and metadata take in a file: per layer, and once.
_HEADER = (1000, 50_000)
#: Aimed at of a given error, so that it holds after rounding and with directions that are found approximately.
_WITHIN = 0.99


@dataclass(frozen=True)
class Export:
    """The content of a file."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    report: ExportReport

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, whole or not at all.

        Raises:
            SodaError: the disk is full or the folder cannot be written.
        """
        tensor_file.write(path, self.tensors, self.metadata)


@torch.no_grad()
def export(
    adapter: SodaAdapter,
    base: Mapping[str, BaseWeight],
    settings: LoraSettings | None = None,
    ignore_base_check: bool = False,
    progress: Progress = lambda done, total: None,
) -> Export:
    """An adapter's change of a base model in the layout of a LoRA.

    Args:
        base: weights of all layers of the base model by our names.
        progress: called with ``(done, total)``.
    Raises:
        SettingsError: a naming that this model has not, or a size in which nothing fits.
        BaseMismatchError: another base model, or an adapter that changes nothing.

    Every layer's change is formed once, in float32, and kept in 16 bits (a float32 file's in 32) until the ranks are
    known: in memory as large as the adapted weights in half precision. Costs are those of :mod:`..low_rank`.
    """
    settings = settings or LoraSettings()
    names = [name for name in adapter.layers if name in base]
    if not names:
        raise BaseMismatchError(
            f"no layer of {adapter.title} is in this base model (its first is {next(iter(adapter.layers))!r}); it was "
            f"trained on {adapter.trained_on}"
        )
    keys = layer_keys(names, settings.naming, base)
    checks: dict[str, BaseCheck] = {}

    def deltas() -> Iterator[tuple[str, Tensor]]:
        for name in names:
            layer, weight = adapter.layers[name], base[name]
            layer.check_shape(name, weight.shape)
            if (check := layer.check_base(weight)) is not None:
                checks[name] = check
            yield name, layer.delta(weight, settings.strength, settings.mode)
        if BaseReport(checks).refused and not ignore_base_check:
            raise BaseMismatchError(refusal(BaseReport(checks), adapter))

    make = _exact if settings.by == "exact" else _low_rank
    tensors, layers, outlook = make(deltas(), keys, settings, progress)
    missing = tuple(name for name in adapter.layers if name not in base)
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    report = ExportReport(layers, num_bytes, outlook, missing, BaseReport(checks))
    return Export(tensors, _metadata(adapter, settings, report, tensors), report)


Keys = Mapping[str, list[LayerKeys]]
Made = tuple[dict[str, Tensor], dict[str, LayerExport], dict[int, tuple[float, int]]]


def _exact(deltas: Iterable[tuple[str, Tensor]], keys: Keys, settings: LoraSettings, progress: Progress) -> Made:
    """Full differences."""
    tensors, layers = {}, {}
    for done, (name, delta) in enumerate(deltas):
        progress(done, len(keys))
        stored = delta.to("cpu", settings.torch_dtype).contiguous()
        (key,) = keys[name]
        tensors[key.difference] = stored
        layers[name] = LayerExport(min(delta.flatten(1).shape), float(delta.norm()), _distance(delta, stored))
    progress(len(keys), len(keys))
    return tensors, layers, {}


@dataclass(frozen=True)
class _Change:
    """A layer's change while the ranks are being chosen."""

    scaled: Tensor  #: on the CPU, its largest entry 1, so that none of any weight vanishes in 16 bits
    scale: float
    values: Tensor  #: its largest singular values
    norm: float
    rounding: float  #: norm of what the 16 bits lose
    modules: int  #: that it is spread over in the file, each with a down of its own
    device: torch.device

    @classmethod
    def of(cls, delta: Tensor, settings: LoraSettings, modules: int) -> _Change:
        M = delta.flatten(1).float()
        scale = float(M.abs().max()) or 1.0
        scaled = (delta / scale).to(torch.float32 if settings.dtype == "float32" else torch.float16)
        values = singular_values(M, min(_directions(settings), *M.shape)).cpu()
        rounding = _distance(delta, scaled.float() * scale)
        return cls(scaled.cpu(), scale, values, float(M.norm()), rounding, modules, delta.device)

    @property
    def cost(self) -> int:
        """Numbers to store per direction."""
        out, in_features = self.scaled.flatten(1).shape
        return out + self.modules * in_features

    @property
    def delta(self) -> Tensor:
        return self.scaled.to(self.device, torch.float32) * self.scale


def _low_rank(deltas: Iterable[tuple[str, Tensor]], keys: Keys, settings: LoraSettings, progress: Progress) -> Made:
    """A LoRA whose ranks are where they matter, see :func:`..low_rank.ranks_within`."""
    changes: dict[str, _Change] = {}
    for done, (name, delta) in enumerate(deltas):
        progress(done, 2 * len(keys))
        changes[name] = _Change.of(delta, settings, len(keys[name]))
    ranks = _ranks(changes, settings)
    tensors, layers = {}, {}
    for done, (name, change) in enumerate(changes.items()):
        progress(len(keys) + done, 2 * len(keys))
        rank, left_out = ranks[name], change.norm
        if rank:
            delta = change.delta
            scale = 1.0 if keys[name][0].alpha is None else _ALPHA / rank  # what a reader multiplies by
            parts = truncated(delta.flatten(1), rank)
            up, down = ((M / math.sqrt(scale)).to("cpu", settings.torch_dtype) for M in parts)
            kernel = delta.shape[2:]
            left_out = math.hypot(_distance(delta.flatten(1), scale * up.float() @ down.float()), change.rounding)
            for key in keys[name]:
                rows = key.rows(up)
                tensors[key.up] = rows.reshape(*rows.shape, *[1] * len(kernel)).contiguous()
                tensors[key.down] = down.reshape(rank, -1, *kernel).clone(memory_format=torch.contiguous_format)
                if key.alpha is not None:
                    tensors[key.alpha] = torch.tensor(_ALPHA, dtype=settings.torch_dtype)
        layers[name] = LayerExport(rank, change.norm, left_out)
    progress(2 * len(keys), 2 * len(keys))
    return tensors, layers, _outlook(changes, settings)


def _directions(settings: LoraSettings) -> int:
    """Of how many directions of a layer the singular values are computed: it is given no more than these."""
    return max(4 * settings.rank, *OUTLOOK) if settings.by == "rank" else sys.maxsize


def _ranks(changes: Mapping[str, _Change], settings: LoraSettings) -> dict[str, int]:
    values, costs = [of.values for of in changes.values()], [of.cost for of in changes.values()]
    energy = sum(of.norm**2 for of in changes.values())
    if not energy:
        raise BaseMismatchError("the adapter changes nothing in this base model; there is nothing to export")
    if settings.by == "error":
        ranks = ranks_for_error(values, costs, energy, _WITHIN * settings.error)
    elif settings.by == "rank":
        ranks = ranks_within(values, costs, settings.rank * sum(costs))
    else:
        header = len(changes) * _HEADER[0] + _HEADER[1]
        ranks = ranks_within(values, costs, int((1e6 * settings.size_mb - header) / settings.torch_dtype.itemsize))
        if not any(ranks):
            least = (header + max(costs) * settings.torch_dtype.itemsize) / 1e6
            raise SettingsError(f"size_mb {settings.size_mb:g} is too small for this model; {least:.2f} holds one rank")
    return dict(zip(changes, ranks, strict=True))


def _outlook(changes: Mapping[str, _Change], settings: LoraSettings) -> dict[int, tuple[float, int]]:
    """What other ranks leave out, and their bytes."""
    values, costs = [of.values for of in changes.values()], [of.cost for of in changes.values()]
    energy = sum(of.norm**2 for of in changes.values())
    found = {}
    for rank in OUTLOOK:
        ranks = ranks_within(values, costs, rank * sum(costs))
        kept = sum(float(S[:r].double().square().sum()) for S, r in zip(values, ranks, strict=True))
        numbers = sum(r * cost for r, cost in zip(ranks, costs, strict=True))
        found[rank] = (math.sqrt(max(0.0, 1 - kept / energy)), numbers * settings.torch_dtype.itemsize)
    return found


def _distance(delta: Tensor, stored: Tensor) -> float:
    return float((delta - stored.to(delta)).norm())


def _metadata(
    adapter: SodaAdapter, settings: LoraSettings, report: ExportReport, tensors: Mapping[str, Tensor]
) -> dict[str, str]:
    """What managers show of the adapter, and how the export was made."""
    ranks = {layer.rank for layer in report.layers.values() if layer.rank}
    dim = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
    network = {"ss_network_module": "networks.lora", "ss_network_dim": dim, "ss_network_alpha": f"{_ALPHA:g}"}
    keys = tensor_file.manager_keys(adapter.metadata, tensor_file.tensor_hash(tensors), "lora", network)
    source = {"title": adapter.title, "hash": adapter.identity()}
    made = {"adapter": source, "settings": asdict(settings), **report.as_json()}
    keys["soda_export"] = json.dumps(made, sort_keys=True)
    return keys | {key: str(adapter.metadata[key]) for key in fileformat.GRAPH_KEYS if adapter.metadata.get(key)}

# SPDX-License-Identifier: GPL-3.0-or-later
"""Adapters in diffusers: what the pack trains in ComfyUI, in pipelines of SD 1.5, SDXL, SD 3 and 3.5, and Flux.

    load(pipeline, "fox.safetensors", strength=0.8)
    picture = pipeline("a sks fox").images[0]
    unload(pipeline)

Every change is computed from the **pristine** weight and the sum of all is written into the model, so adapters come and
go in any order and the base model comes back to the bit. A layer that diffusers splits (queries, keys and values of
SD 3 and Flux) is put together, adapted as the one matrix it was trained as, and split again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers.utils.logging import tqdm
from torch import Tensor, nn

from ..adapter import SodaAdapter
from ..base_check import BaseReport
from ..base_weight import BaseWeight
from ..errors import BaseMismatchError, SettingsError
from ..layer import StrengthMode
from ..report.base_check import refusal, summary, unchecked
from ..spectrum_store import SpectrumStore
from .layer_map import LayerMap, Part, family, joined, separated

_log = logging.getLogger(__name__)


@torch.no_grad()
def load(
    pipeline: Any,
    adapter: SodaAdapter | str | os.PathLike[str],
    strength: float = 1.0,
    mode: StrengthMode = "linear",
    name: str | None = None,
    ignore_base_check: bool = False,
    store: SpectrumStore | None = None,
) -> BaseReport:
    """Adapt a pipeline in place.

    Args:
        pipeline: a diffusers pipeline, or the UNet or transformer alone; on the device to compute on.
        adapter: an adapter or its file.
        strength: 0 = base, 1 = as trained; any real number.
        mode: see :meth:`..layer.AdaptedLayer.adapt`.
        name: to unload it by; the adapter's title by default.
        ignore_base_check: go on where the adapter was trained on another base model.
        store: where decompositions are kept for the next time; else they are computed anew.
    Returns:
        The base check, which is logged where it gives reason to doubt.
    Raises:
        SettingsError: the name is taken.
        BaseMismatchError: layers that the model does not have or that have other shapes, or the base check fails.
    """
    model = _denoiser(pipeline)
    soda = adapter if isinstance(adapter, SodaAdapter) else SodaAdapter.load(adapter)
    name = soda.title if name is None else name
    weights = _adapted_weights(model) or AdaptedWeights()
    if name in weights.changes:
        raise SettingsError(f"an adapter {name!r} is loaded already; unload it first or give this one another name")
    places = _places(model, soda)
    pristine = {part.module: weights.pristine_of(model, part.module) for parts in places.values() for part in parts}
    for layer, parts in places.items():
        soda.layers[layer].check_shape(layer, joined(parts, pristine).shape)
    changes: dict[str, Tensor] = {}
    checks = {}
    for layer, parts in tqdm(places.items(), desc=f"SODA: {name}", unit="layer"):
        device = _module(model, parts[0].module).weight.device
        base = BaseWeight(joined(parts, pristine), device, None if store is None else store.get)
        check = soda.layers[layer].check_base(base)
        if check is not None:
            checks[layer] = check
        for module, change in separated(parts, soda.layers[layer].delta(base, strength, mode)).items():
            changes[module] = _kept(change, pristine[module].dtype)
    report = BaseReport(checks)
    if report.refused and not ignore_base_check:
        raise BaseMismatchError(refusal(report, soda))
    if report.doubtful:
        _log.warning("SODA: %s was trained on %s; %s", soda.label, soda.trained_on, summary(report))
    elif not soda.carries_base_check:
        _log.warning("SODA: %s: %s", soda.label, unchecked(soda))
    weights.add(model, name, changes)
    model.soda_adapters = weights  # with the model, and with its copies
    return report


@torch.no_grad()
def unload(pipeline: Any, name: str | None = None) -> None:
    """Take an adapter out of a pipeline, or all of them.

    Raises:
        SettingsError: no adapter of that name is loaded.
    """
    model = _denoiser(pipeline)
    weights = _adapted_weights(model) or AdaptedWeights()
    if name is not None and name not in weights.changes:
        raise SettingsError(f"no adapter {name!r} is loaded; loaded are {sorted(weights.changes)}")
    for loaded in list(weights.changes) if name is None else [name]:
        weights.remove(model, loaded)


class AdaptedWeights:
    """A model's weights as they were, and what each adapter adds to them; both in main memory, by module path."""

    def __init__(self) -> None:
        self.pristine: dict[str, Tensor] = {}
        self.changes: dict[str, dict[str, Tensor]] = {}

    def pristine_of(self, model: nn.Module, module: str) -> Tensor:
        return self.pristine.get(module, _module(model, module).weight.detach())

    def add(self, model: nn.Module, name: str, changes: Mapping[str, Tensor]) -> None:
        for module in changes:
            if module not in self.pristine:
                self.pristine[module] = self.pristine_of(model, module).to("cpu", copy=True)
        self.changes[name] = dict(changes)
        self._write(model, changes)

    def remove(self, model: nn.Module, name: str) -> None:
        modules = self.changes.pop(name)
        self._write(model, modules)
        for module in modules:
            if not any(module in changes for changes in self.changes.values()):
                del self.pristine[module]

    def _write(self, model: nn.Module, modules: Iterable[str]) -> None:
        """The sum in one order whatever the order of loading, so that the weights are the same to the bit."""
        for module in modules:
            total = self.pristine[module]
            for name in sorted(self.changes):
                if module in self.changes[name]:
                    total = total.float() + self.changes[name][module].float()
            _module(model, module).weight.copy_(total)


def _denoiser(pipeline: Any) -> Any:
    """The UNet or transformer of a pipeline."""
    candidates = (pipeline, getattr(pipeline, "unet", None), getattr(pipeline, "transformer", None))
    model = next((candidate for candidate in candidates if family(candidate)), None)
    if model is None:
        inside = [type(candidate).__name__ for candidate in candidates if candidate is not None]
        raise BaseMismatchError(
            f"cannot load adapters into {' with '.join(inside)}; expected a pipeline of SD 1.5, SDXL, SD 3 or Flux, or "
            "its UNet or transformer"
        )
    if any(getattr(module, "fused_projections", False) for module in model.modules()):
        raise SettingsError(
            "the pipeline runs fused projections, in which adapted weights would not be used; call "
            "unfuse_qkv_projections() before, and fuse_qkv_projections() after adapters are loaded or unloaded"
        )
    return model


def _kept(change: Tensor, dtype: torch.dtype) -> Tensor:
    """A change in main memory, rounded like its weight; of a weight in 8 bits to bfloat16, or little would be left."""
    return change.to("cpu", dtype if dtype.itemsize > 1 else torch.bfloat16)


def _adapted_weights(model: nn.Module) -> AdaptedWeights | None:
    return getattr(model, "soda_adapters", None)


def _places(model: Any, soda: SodaAdapter) -> dict[str, list[Part]]:
    """The modules of every layer of the adapter; all of them can be written to."""
    layers = LayerMap(model)
    places = {name: layers.find(name) for name in soda.layers}
    missing = [name for name, parts in places.items() if not parts]
    if missing:
        raise BaseMismatchError(
            f"{len(missing)} of the {len(places)} layers of {soda.label} are not in this {type(model).__name__}, the "
            f"first is {missing[0]!r}; its layers have names like {list(layers.parts)[len(layers.parts) // 2]!r}. The "
            f"adapter was trained on {soda.trained_on}: load it into a pipeline of that model"
        )
    owners: dict[str, str] = {}
    for name, parts in places.items():
        for part in parts:
            if owners.setdefault(part.module, name) != name:
                raise BaseMismatchError(
                    f"layers {owners[part.module]!r} and {name!r} of {soda.title} are both module {part.module!r}; "
                    "keep one of them"
                )
    for module in owners:
        weight = _module(model, module).weight
        if weight.device.type == "meta" or not weight.is_floating_point():
            raise SettingsError(
                f"the weight of {module!r} cannot be changed where it is ({weight.dtype} on {weight.device}); load "
                "adapters before the pipeline is quantised or enable_sequential_cpu_offload() is called"
            )
    return places


def _module(model: nn.Module, path: str) -> Any:
    """A layer, also where PEFT has put one of its own around it."""
    module: Any = model.get_submodule(path)
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module

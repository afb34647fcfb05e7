# SPDX-License-Identifier: GPL-3.0-or-later
"""Applying an adapter to a MODEL and a CLIP.

Every layer's delta is computed once, from the **pristine** base weight, and handed to the host as its own ``diff``
patch. So the host's machinery alone decides how it meets the weight (full load, partial load, hooks, fp8 rounding,
checkpoint save, model merging), adapters and LoRAs commute, and nothing is decomposed during sampling. The price is
one tensor of the weight's size and dtype per adapted layer, in main memory until the host moves it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from ..adapter import SodaAdapter
from ..base_check import BaseCheck, BaseReport
from ..base_weight import BaseWeight
from ..delta_cache import DeltaCache
from ..errors import BaseMismatchError, SodaError
from ..layer import AdaptedLayer, StrengthMode, check_strength
from ..merge import WeightLookup
from ..report.base_check import refusal, summary, unchecked
from . import base
from .progress import ProgressBar

#: Another strength of an adapter that is in use computes nothing anew.
DELTAS = DeltaCache()


def apply_adapter(
    model: Any,
    clip: Any | None,
    adapter: SodaAdapter,
    strength_model: float = 1.0,
    strength_clip: float = 1.0,
    mode: StrengthMode = "linear",
    ignore_base_check: bool = False,
) -> tuple[Any, Any | None]:
    """Patched clones of MODEL and CLIP; the inputs are untouched.

    Raises:
        BaseMismatchError: no layer matches, shapes differ, or the base check fails.
        SettingsError: a strength is no number or out of range.
    """
    check_strength("strength_model", strength_model)
    check_strength("strength_clip", strength_clip)
    for_clip = {name: layer for name, layer in adapter.layers.items() if name.startswith(base.TEXT_ENCODERS)}
    for_model = {name: layer for name, layer in adapter.layers.items() if name not in for_clip}
    targets = [(model, model, _match(model, for_model, adapter.label), strength_model)]
    if clip is not None:
        targets.append((clip, clip.patcher, _match(clip.patcher, for_clip, adapter.label), strength_clip))
    elif for_clip:
        logging.warning("SODA: %s has %d text encoder layers; connect CLIP to use them", adapter.label, len(for_clip))
    matched = sum(len(layers) for _, _, layers, _ in targets)
    if not matched:
        _nothing_matches(adapter, model)
    checks: dict[str, BaseCheck] = {}
    results = []
    progress = ProgressBar(matched)
    for owner, patcher, layers, strength in targets:
        patches = _patches(patcher, layers, strength, mode, checks, progress)
        results.append((owner.clone(), patches, strength if mode == "linear" else 1.0))
    report = BaseReport(checks)
    if report.refused and not ignore_base_check:
        raise BaseMismatchError(refusal(report, adapter))
    if report.doubtful:
        logging.warning("SODA: %s was trained on %s; %s", adapter.label, adapter.trained_on, summary(report))
    elif checks:
        logging.info("SODA: %s", summary(report))
    elif not adapter.carries_base_check:
        logging.warning("SODA: %s: %s", adapter.label, unchecked(adapter))
    for clone, patches, strength in results:
        if not patches:
            continue
        added = set(clone.add_patches(patches, strength))
        if missing := set(patches) - added:
            raise BaseMismatchError(f"ComfyUI refused {len(missing)} patches, the first is {min(missing)!r}")
    return results[0][0], results[1][0] if clip is not None else None


def _match(patcher: Any, layers: Mapping[str, AdaptedLayer], title: str) -> dict[str, AdaptedLayer]:
    """The layers the model has; shapes must fit, some may be missing but not silently."""
    keys = set(patcher.model_state_dict())
    found = {name: layer for name, layer in layers.items() if base.weight_key(name) in keys}
    if layers:
        logging.info("SODA: %s: %d/%d layers match", title, len(found), len(layers))
    if missing := [name for name in layers if name not in found]:
        logging.warning("SODA: %s: the model has no layer for %d of %d, the first is %s",
                        title, len(missing), len(layers), missing[0])  # fmt: skip
    for name, layer in found.items():
        layer.check_shape(name, base.weight_shape(patcher, base.weight_key(name)))
    return found


def _nothing_matches(adapter: SodaAdapter, model: Any) -> None:
    have = base.describe(model, with_hash=False)["family"]
    raise BaseMismatchError(
        f"no layer of {adapter.label} matches this model: it was trained on {adapter.trained_on} (its first layer is "
        f"{next(iter(adapter.layers))!r}), the model is {have}; load the base model it was trained on"
    )


def _patches(
    patcher: Any,
    layers: Mapping[str, AdaptedLayer],
    strength: float,
    mode: StrengthMode,
    checks: dict[str, BaseCheck],
    progress: ProgressBar,
) -> dict[str, tuple[str, tuple[torch.Tensor]]]:
    """The host's ``diff`` patches by state-dict key; fills in ``checks``.

    Linear strength is left to the host, which multiplies a patch by it (also along hook keyframes); geodesic strength
    is in the delta itself.
    """
    patches: dict[str, tuple[str, tuple[torch.Tensor]]] = {}
    for name, layer in layers.items():
        progress.advance()
        if strength == 0.0:
            continue
        own = 1.0 if mode == "linear" else strength
        try:
            delta, check = DELTAS.get(layer, base.base_weight(patcher, name), own, mode)
        except SodaError as error:
            raise type(error)(f"layer {name!r}: {error}") from error
        if check is not None:
            checks[name] = check
        patches[base.weight_key(name)] = ("diff", (delta,))
    return patches


def weight_lookup(model: Any, *adapters: SodaAdapter) -> WeightLookup:
    """The base weight of a layer that all adapters have, with a progress bar over them."""
    progress = ProgressBar(len(set.intersection(*(set(adapter.layers) for adapter in adapters))))
    keys = set(model.model_state_dict())

    def look_up(name: str) -> BaseWeight | None:
        progress.advance()
        if base.weight_key(name) not in keys:
            return None
        weight = base.base_weight(model, name)
        for adapter in adapters:
            adapter.layers[name].check_shape(name, weight.shape)
        return weight

    return look_up


@torch.inference_mode(False)
@torch.no_grad()
def check_base(model: Any, adapter: SodaAdapter) -> BaseReport:
    """The base check of every layer the model has, without applying anything."""
    return adapter.check_base(weight_lookup(model, adapter))

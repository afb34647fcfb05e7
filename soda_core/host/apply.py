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
from dataclasses import dataclass
from typing import Any

import comfy.hooks
import torch

from ..adapter import SodaAdapter
from ..base_check import BaseCheck, BaseReport
from ..base_weight import BaseWeight
from ..blocks import block_strengths
from ..delta_cache import DeltaCache
from ..errors import BaseMismatchError, SodaError
from ..interference import WeightLookup
from ..layer import AdaptedLayer, StrengthMode, check_strength
from ..report.base_check import refusal, summary, unchecked
from . import base
from .progress import ProgressBar

#: Another strength of an adapter that is in use computes nothing anew.
DELTAS = DeltaCache()


#: The host's ``diff`` patches by state-dict key, by the strength that is left to the host.
Patches = dict[float, dict[str, tuple[str, tuple[torch.Tensor]]]]


@dataclass(frozen=True)
class Changes:
    """What an adapter changes in a MODEL and a CLIP, in the host's terms."""

    model: Any
    clip: Any | None
    of_model: Patches
    of_clip: Patches

    def patched(self) -> tuple[Any, Any | None]:
        """Clones of MODEL and CLIP with the change; the inputs are untouched."""
        return _patched(self.model, self.of_model), None if self.clip is None else _patched(self.clip, self.of_clip)

    def hooks(self) -> comfy.hooks.HookGroup:
        """The change as the host's HOOKS, for the unpatched MODEL: keyframes scale it over steps, masks place it."""
        group = comfy.hooks.HookGroup()
        for patches, own in ((self.of_model, True), (self.of_clip, False)):
            for strength, by_key in patches.items():
                hook = comfy.hooks.WeightHook(*((strength, 0.0) if own else (0.0, strength)))
                hook.weights, hook.weights_clip = (by_key, {}) if own else ({}, by_key)
                hook.need_weight_init = False  # keys are the model's own, patches are made
                group.add(hook)
        return group


def _patched(owner: Any, patches: Patches) -> Any:
    clone = owner.clone()
    for strength, by_key in patches.items():
        added = set(clone.add_patches(by_key, strength))
        if missing := set(by_key) - added:
            raise BaseMismatchError(f"ComfyUI refused {len(missing)} patches, the first is {min(missing)!r}")
    return clone


def apply_adapter(*arguments: Any, **options: Any) -> tuple[Any, Any | None]:
    """Patched clones of MODEL and CLIP; arguments and errors as of :func:`changes`."""
    return changes(*arguments, **options).patched()


def changes(
    model: Any,
    clip: Any | None,
    adapter: SodaAdapter,
    strength_model: float = 1.0,
    strength_clip: float = 1.0,
    mode: StrengthMode = "linear",
    ignore_base_check: bool = False,
    blocks: str = "",
) -> Changes:
    """What an adapter changes in a MODEL and a CLIP, neither of which is touched.

    Args:
        blocks: what the strengths are multiplied by in some blocks, see :func:`..blocks.block_strengths`.
    Raises:
        BaseMismatchError: no layer matches, shapes differ, or the base check fails.
        SettingsError: a strength is no number or out of range, or there are no such blocks.
    """
    check_strength("strength_model", strength_model)
    check_strength("strength_clip", strength_clip)
    in_blocks = block_strengths(blocks, adapter.layers, adapter.label)
    for_clip = {name: layer for name, layer in adapter.layers.items() if name.startswith(base.TEXT_ENCODERS)}
    for_model = {name: layer for name, layer in adapter.layers.items() if name not in for_clip}
    targets = [(model, _match(model, for_model, adapter.label), strength_model)]
    if clip is not None:
        targets.append((clip.patcher, _match(clip.patcher, for_clip, adapter.label), strength_clip))
    elif for_clip:
        logging.warning("SODA: %s has %d text encoder layers; connect CLIP to use them", adapter.label, len(for_clip))
    matched = sum(len(layers) for _, layers, _ in targets)
    if not matched:
        _nothing_matches(adapter, model)
    checks: dict[str, BaseCheck] = {}
    results: list[Patches] = []
    progress = ProgressBar(matched)
    for patcher, layers, strength in targets:
        strengths = {name: strength * in_blocks[name] for name in layers}
        results.append(_patches(patcher, layers, strengths, mode, checks, progress))
    report = BaseReport(checks)
    if report.refused and not ignore_base_check:
        raise BaseMismatchError(refusal(report, adapter))
    if report.doubtful:
        logging.warning("SODA: %s was trained on %s; %s", adapter.label, adapter.trained_on, summary(report))
    elif checks:
        logging.info("SODA: %s", summary(report))
    elif not adapter.carries_base_check:
        logging.warning("SODA: %s: %s", adapter.label, unchecked(adapter))
    return Changes(model, clip, results[0], results[1] if clip is not None else {})


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
    strengths: Mapping[str, float],
    mode: StrengthMode,
    checks: dict[str, BaseCheck],
    progress: ProgressBar,
) -> Patches:
    """The layers' patches; fills in ``checks``.

    Linear strength is left to the host, which multiplies a patch by it (also along hook keyframes); geodesic strength
    is in the delta itself.
    """
    patches: Patches = {}
    for name, layer in layers.items():
        progress.advance()
        if (strength := strengths[name]) == 0.0:
            continue
        own, left = (1.0, strength) if mode == "linear" else (strength, 1.0)
        try:
            delta, check = DELTAS.get(layer, base.base_weight(patcher, name), own, mode)
        except SodaError as error:
            raise type(error)(f"layer {name!r}: {error}") from error
        if check is not None:
            checks[name] = check
        patches.setdefault(left, {})[base.weight_key(name)] = ("diff", (delta,))
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

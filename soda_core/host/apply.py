# SPDX-License-Identifier: GPL-3.0-or-later
"""Applying an adapter to a MODEL and a CLIP.

Every layer's delta is computed once, from the **pristine** base weight, and handed to the host as its own ``diff``
patch. So the host's machinery alone decides how it meets the weight (full load, partial load, hooks, fp8 rounding,
checkpoint save, model merging), adapters and LoRAs commute, and nothing is decomposed during sampling. The price is
one tensor of the weight's size and dtype per adapted layer, in main memory until the host moves it.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

from ..adapter import BaseReport, SodaAdapter
from ..errors import BaseMismatchError
from ..fileformat import layer_hash
from ..layer import AdaptedLayer, BaseCheck, StrengthMode
from ..merge import WeightLookup
from ..spectral import Decomposition, Spectrum
from . import base
from .progress import ProgressBar
from .spectra import fingerprint, spectra_of

#: Dtypes a delta is kept in as the base weight is; anything smaller (fp8) gets bfloat16.
_DELTA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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
    """
    for_clip = {name: layer for name, layer in adapter.layers.items() if name.startswith(base.TEXT_ENCODERS)}
    for_model = {name: layer for name, layer in adapter.layers.items() if name not in for_clip}
    targets = [(model, model, _match(model, for_model, adapter.title), strength_model)]
    if clip is not None:
        targets.append((clip, clip.patcher, _match(clip.patcher, for_clip, adapter.title), strength_clip))
    elif for_clip:
        logging.warning("SODA: %s has %d text encoder layers; connect CLIP to use them", adapter.title, len(for_clip))
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
    report.enforce(adapter, ignore_base_check)
    if report.doubtful:
        logging.warning("SODA: %s was trained on %s; %s", adapter.title, adapter.trained_on, report.summary())
    elif checks:
        logging.info("SODA: %s", report.summary())
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
        layer.check_shape(name, base.pristine_weight(patcher, base.weight_key(name)))
    return found


def _nothing_matches(adapter: SodaAdapter, model: Any) -> None:
    have = base.describe(model, with_hash=False)["family"]
    raise BaseMismatchError(
        f"no layer of {adapter.title} matches this model: it was trained on {adapter.trained_on} (its first layer is "
        f"{next(iter(adapter.layers))!r}), the model is {have}; load the base model it was trained on"
    )


#: Deltas that some MODEL still holds, and the base checks made with them: another strength computes nothing anew.
_deltas: weakref.WeakValueDictionary[str, torch.Tensor] = weakref.WeakValueDictionary()
_checks: OrderedDict[str, BaseCheck | None] = OrderedDict()
_CHECKS_KEPT = 10_000


@torch.inference_mode(False)
@torch.no_grad()
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
    device = base.compute_device(patcher)
    for name, layer in layers.items():
        progress.advance()
        if strength == 0.0:
            continue
        key = base.weight_key(name)
        stored = base.pristine_weight(patcher, key)
        own = 1.0 if mode == "linear" else strength
        content = fingerprint(stored)
        known = f"{layer_hash(layer)} {mode} {own} {content}"
        delta = _deltas.get(known)
        if delta is None or known not in _checks:
            delta, check = _delta(layer, stored, own, mode, device, content)
            _deltas[known], _checks[known] = delta, check
            while len(_checks) > _CHECKS_KEPT:
                _checks.popitem(last=False)
        if (check := _checks[known]) is not None:
            checks[name] = check
        patches[key] = ("diff", (delta,))
    return patches


def _delta(
    layer: AdaptedLayer,
    stored: torch.Tensor,
    strength: float,
    mode: StrengthMode,
    device: torch.device,
    content: str,
) -> tuple[torch.Tensor, BaseCheck | None]:
    """The change of one weight, in the dtype it is kept in, and the base check; ``content`` is its fingerprint."""
    spectra = spectra_of(stored, layer.needs_spectrum, device, content)
    weight = stored.to(device)
    check = layer.spectral_error(weight, spectra)
    delta = layer.delta(weight, strength, mode, spectra)
    dtype = stored.dtype if stored.dtype in _DELTA_DTYPES else torch.bfloat16
    return delta.to("cpu", dtype), check


def weight_lookup(model: Any, *adapters: SodaAdapter) -> WeightLookup:
    """The pristine weight and decompositions of a layer that all adapters have, with a progress bar over them."""
    progress = ProgressBar(len(set.intersection(*(set(adapter.layers) for adapter in adapters))))
    device, keys = base.compute_device(model), set(model.model_state_dict())

    def look_up(name: str) -> tuple[torch.Tensor, dict[Decomposition, Spectrum]] | None:
        progress.advance()
        key = base.weight_key(name)
        if key not in keys:
            return None
        stored = base.pristine_weight(model, key)
        kinds = {kind for adapter in adapters for kind in adapter.layers[name].needs_spectrum}
        for adapter in adapters:
            adapter.layers[name].check_shape(name, stored)
        return stored.to(device), spectra_of(stored, sorted(kinds), device)

    return look_up


@torch.inference_mode(False)
@torch.no_grad()
def base_report(model: Any, adapter: SodaAdapter) -> BaseReport:
    """The base check of every layer the model has, without applying anything."""
    look_up = weight_lookup(model, adapter)
    checks = {}
    for name, layer in adapter.layers.items():
        found = look_up(name)
        check = None if found is None else layer.spectral_error(*found)
        if check is not None:
            checks[name] = check
    return BaseReport(checks)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Between PEFT's adapters and our files, without loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from ...adapter import SodaAdapter
from ...base_check import BaseReport
from ...errors import BaseMismatchError, SettingsError
from ...layer import SodaLayer
from ...report.base_check import refusal
from ...training.settings import Train, TrainSettings
from .config import SodaConfig
from .layer import SodaTunerLayer


def to_adapter(
    model: nn.Module, adapter_name: str = "default", metadata: Mapping[str, Any] | None = None
) -> SodaAdapter:
    """An adapter of a PEFT model as one of ours, with its base check: ``to_adapter(model).save(path)``.

    Layers of a diffusers model get the names that ComfyUI knows them by, and so load there, unless some are but a part
    of a layer there (queries, keys and values of SD 3 and Flux): then all keep their own, for
    :func:`..diffusers.load` and :func:`from_adapter`.

    Args:
        metadata: see :class:`...adapter.SodaAdapter`; the base model is filled in.
    Raises:
        SettingsError: the model has no such adapter.
    """
    base = _base_model(model)
    layers = {
        name: module.soda_layer(adapter_name)
        for name, module in base.named_modules()
        if isinstance(module, SodaTunerLayer) and adapter_name in module.adapters
    }
    if not layers:
        raise SettingsError(f"the model has no SODA adapter {adapter_name!r}")
    names = _comfyui_names(base)
    if layers.keys() <= names.keys():
        layers = {names[name]: layer for name, layer in layers.items()}
    return SodaAdapter(layers, {"base_model": _described(base)} | dict(metadata or {}))


def from_adapter(
    model: nn.Module, adapter: SodaAdapter, adapter_name: str = "default", ignore_base_check: bool = False
) -> PeftModel:
    """A PEFT model with one of our adapters, to use or to train on; shifts that are curves stay curves.

    Args:
        model: the base model, or a PEFT model that gets one more adapter.
        ignore_base_check: go on where the adapter was trained on another base model.
    Raises:
        SettingsError: a delta merge, which has no single rotation, or layers that no one configuration describes.
        BaseMismatchError: layers that the model does not have or that have other shapes, or the base check fails.
    """
    base = _base_model(model)
    modules = {name: module for module, name in _comfyui_names(base).items()}
    layers = {modules.get(name, name): _single(name, adapter) for name in adapter.layers}
    present = {name.replace(".base_layer", ""): module for name, module in base.named_modules()}
    for name, layer in layers.items():
        weight = getattr(present.get(name), "weight", None)
        if weight is None:
            raise BaseMismatchError(
                f"layer {name!r} of {adapter.label} is not a module of this {type(base).__name__}; it was trained on "
                f"{adapter.trained_on}. A layer that diffusers splits is loaded with soda_core.interop.diffusers.load"
            )
        layer.check_shape(name, weight.shape)
    config = _config(layers)
    if isinstance(model, PeftModel):
        model.add_adapter(adapter_name, config)
    else:
        model = get_peft_model(model, config, adapter_name)  # type: ignore[assignment]
    checks = {}
    for name, layer in layers.items():
        tuner: Any = base.get_submodule(name)
        tuner.set_soda_layer(adapter_name, layer)
        check = layer.check_base(tuner.base_weight(adapter_name))
        if check is not None:
            checks[name] = check
    report = BaseReport(checks)
    if report.refused and not ignore_base_check:
        model.delete_adapter(adapter_name)  # type: ignore[operator]
        raise BaseMismatchError(refusal(report, adapter))
    return model  # type: ignore[return-value]


def _base_model(model: nn.Module) -> Any:
    if isinstance(model, PeftModel):
        return model.get_base_model()
    return model.model if isinstance(model, BaseTuner) else model


def _described(base: Any) -> dict[str, str]:
    """What is known of a model: the name it was loaded by, without folders, or else what it is."""
    name = getattr(base, "name_or_path", None)  # transformers
    if not name and callable(getattr(getattr(base, "config", None), "get", None)):
        name = base.config.get("_name_or_path")  # diffusers
    dtype = str(next(base.parameters()).dtype).removeprefix("torch.")
    return {"name": Path(name).name if name else type(base).__name__, "dtype": dtype}


def _comfyui_names(base: nn.Module) -> dict[str, str]:
    """ComfyUI's names by module, for the models of diffusers whose layers can be found."""
    if not any(kind.__module__.startswith("diffusers.") for kind in type(base).__mro__):
        return {}
    from ..layer_map import LayerMap, family  # diffusers is there

    return LayerMap(base).whole if family(base) else {}


def _single(name: str, adapter: SodaAdapter) -> SodaLayer:
    layer = adapter.layers[name].single
    if layer is None:
        raise SettingsError(
            f"layer {name!r} of {adapter.label} is a merge of several changes, which has no rotation to train"
        )
    return layer


def _config(layers: Mapping[str, SodaLayer]) -> SodaConfig:
    """The configuration that describes all layers."""
    kinds = {layer.decomposition for layer in layers.values() if layer.shift is not None}
    sizes: dict[int, tuple[int, ...]] = {}
    for name, layer in layers.items():
        of_layer = tuple(R.shape[-1] for R in layer.factors)
        if layer.factors and sizes.setdefault(math.prod(of_layer), of_layer) != of_layer:
            raise SettingsError(
                f"layer {name!r} has factors of sizes {of_layer}, others with as many inputs have other sizes"
            )
    if len(kinds) > 1:
        raise SettingsError("some layers have an SVD shift, others a QR shift; PEFT needs one decomposition for all")
    train: Train = "rotation + shift" if sizes and kinds else "rotation only" if sizes else "shift only"
    return SodaConfig(
        decomposition=next(iter(kinds), TrainSettings.decomposition),
        train=train,
        shift_knots=_knots(layers.values()),
        factor_sizes=sizes or None,
        target_modules=list(layers),
    )


def _knots(layers: Any) -> int:
    """Knots of the curves that the shifts are; 0 where one of them is no such curve."""
    curves = {layer.knots.numel() for layer in layers if layer.knots is not None}
    count = max(curves, default=0)
    free = (layer.shift.numel() for layer in layers if layer.shift is not None and layer.knots is None)
    return count if len(curves) == 1 and all(rank <= count for rank in free) else 0

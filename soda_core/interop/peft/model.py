# SPDX-License-Identifier: GPL-3.0-or-later
"""The tuner: which modules of a model become SODA layers."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from ...errors import SettingsError
from .layer import SodaTunerLayer

_TARGETS = {kind: list(names) for kind, names in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.items()}


class SodaModel(BaseTuner):
    """A model with SODA layers in place of those that ``target_modules`` names.

    Where a configuration names none, language models of transformers get PEFT's choice for LoRA.
    """

    prefix = "soda_"
    tuner_layer_cls = SodaTunerLayer
    target_module_mapping = _TARGETS

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        """Part of PEFT's contract: put a layer of ours in a module's place, or an adapter more into one."""
        try:
            if isinstance(target, SodaTunerLayer):
                target.update_layer(adapter_name, peft_config)
                return
            layer: Any = SodaTunerLayer(target, adapter_name, peft_config)
        except SettingsError as error:
            raise SettingsError(f"module {current_key!r}: {error}; name it in exclude_modules") from error
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

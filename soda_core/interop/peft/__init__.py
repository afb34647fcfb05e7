# SPDX-License-Identifier: GPL-3.0-or-later
"""SODA as a method of PEFT: importing this registers it.

    from peft import get_peft_model
    from soda_core.interop.peft import SodaConfig, create_optimizer, to_adapter

    model = get_peft_model(unet, SodaConfig(target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    optimizer = create_optimizer(model, rotation_lr=8e-3, shift_lr=1e-3)
    ...
    to_adapter(model).save("fox.safetensors")

PEFT looks its methods up in the tables below. Its function ``register_peft_method`` writes to the same ones, but takes
names from PEFT's own enumeration only.
"""

from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

from .config import SodaConfig, SodaPeftType
from .convert import from_adapter, to_adapter
from .layer import SodaTunerLayer
from .model import SodaModel
from .optimizer import SodaOptimizer, create_optimizer

_METHOD: Any = SodaPeftType.SODA
PEFT_TYPE_TO_CONFIG_MAPPING[_METHOD] = SodaConfig
PEFT_TYPE_TO_TUNER_MAPPING[_METHOD] = SodaModel
PEFT_TYPE_TO_PREFIX_MAPPING[_METHOD] = SodaModel.prefix

__all__ = [
    "SodaConfig",
    "SodaModel",
    "SodaOptimizer",
    "SodaPeftType",
    "SodaTunerLayer",
    "create_optimizer",
    "from_adapter",
    "to_adapter",
]

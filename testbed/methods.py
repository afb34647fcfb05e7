# SPDX-License-Identifier: GPL-3.0-or-later
"""The methods that are compared, at two budgets of trainable parameters, on the base model's 15 attention layers.

All of these have 256 inputs: a fused projection to queries, keys and values (768 outputs) for text and for picture in
each of four blocks, and one behind the attention (256 outputs), which the last block's text does without. The large
budget, which is for all, is that of a LoRA of rank 3, 2 behind the attention (31,744); the small one is SVDiff's one
number per singular value (3,840). Sizes are chosen to come within a tenth:

    ==============  =====  ======
    method          small   large
    ==============  =====  ======
    SODA-SVD, -QR          34,170
    SODA-SVD curve  3,840  30,570
    rotation only          30,330
    shift only      3,840
    LoRA            4,096  31,744
    LoKr            3,904  32,624
    OFT                    28,800
    ==============  =====  ======

Parameters are degrees of freedom: an orthogonal k x k matrix counts k (k - 1) / 2, however it is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Budget = Literal["small", "large"]

#: factor sizes by number of inputs
SODA_SMALL = {256: (16, 16)}
SODA_LARGE = {256: (4, 64)}

#: a shift of its own for every singular value, as in the paper; a curve over the singular values
INDEPENDENT: dict[str, Any] = {"decomposition": "svd", "shift_knots": 0}
CURVE: dict[str, Any] = {"decomposition": "svd", "shift_knots": 16}
QKV, PROJ = [".attn.qkv"], [".attn.proj"]  #: endings of the layers' names
ALL = [""]


@dataclass(frozen=True)
class Method:
    """One way to fine-tune, at one budget.

    Args:
        settings: of our trainer, for our own methods.
        peft: for the others, peft configurations by the endings of the names of the layers they go to.
    """

    name: str
    budget: Budget
    settings: dict[str, Any] | None = None
    peft: Callable[[], list[tuple[list[str], Any]]] | None = field(default=None, repr=False)

    @property
    def key(self) -> str:
        return f"{self.name}-{self.budget}"

    def description(self) -> str:
        """Everything that makes the method what it is: with it a kept result is found again, or not."""
        if self.peft is not None:
            return repr([(endings, sorted(config.to_dict().items(), key=str)) for endings, config in self.peft()])
        return repr(sorted((self.settings or {}).items()))


def _lora_small() -> list[tuple[list[str], Any]]:
    from peft import LoraConfig

    # rank 1 on all layers is three times the budget
    return [([".x_block.attn.qkv"], LoraConfig(r=1, lora_alpha=1))]


def _lora_large() -> list[tuple[list[str], Any]]:
    from peft import LoraConfig

    return [(QKV, LoraConfig(r=3, lora_alpha=3)), (PROJ, LoraConfig(r=2, lora_alpha=2))]


def lora_rank_4() -> list[tuple[list[str], Any]]:
    """On the layers of any model: what speed and memory are compared with."""
    from peft import LoraConfig

    return [(ALL, LoraConfig(r=4, lora_alpha=4))]


def _lokr_small() -> list[tuple[list[str], Any]]:
    from peft import LoKrConfig

    return [(ALL, LoKrConfig(r=2, alpha=2, decompose_factor=8))]


def _lokr_large() -> list[tuple[list[str], Any]]:
    from peft import LoKrConfig

    return [(ALL, LoKrConfig(r=11, alpha=11, decompose_factor=4))]


def _oft_large() -> list[tuple[list[str], Any]]:
    from peft import OFTConfig

    return [(ALL, OFTConfig(r=0, oft_block_size=16, use_cayley_neumann=False))]


METHODS = {
    method.key: method
    for method in (
        Method("SODA-SVD", "large", {**INDEPENDENT, "factor_sizes": SODA_LARGE}),
        Method("SODA-SVD curve", "small", {**CURVE, "factor_sizes": SODA_SMALL}),
        Method("SODA-SVD curve", "large", {**CURVE, "factor_sizes": SODA_LARGE}),
        Method("SODA-QR", "large", {"decomposition": "qr", "factor_sizes": SODA_LARGE}),
        Method("shift only", "small", {**INDEPENDENT, "train": "shift only"}),
        Method("rotation only", "large", {"train": "rotation only", "factor_sizes": SODA_LARGE}),
        Method("LoRA", "small", peft=_lora_small),
        Method("LoRA", "large", peft=_lora_large),
        Method("LoKr", "small", peft=_lokr_small),
        Method("LoKr", "large", peft=_lokr_large),
        Method("OFT", "large", peft=_oft_large),
    )
}

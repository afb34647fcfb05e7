# SPDX-License-Identifier: GPL-3.0-or-later
"""The methods that are compared, at two budgets of trainable parameters, on the base model's 48 attention layers.

36 of these layers have 320 inputs and 12 have 768; all have 320 outputs. The small budget is SVDiff's one number per
singular value (15,360), the large one OFT's with blocks of 16 (155,520); sizes are chosen to come within about a tenth.
Parameters are degrees of freedom: an orthogonal k x k matrix counts k (k - 1) / 2, however it is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Budget = Literal["small", "large"]

#: factor sizes by number of inputs, beside a shift for every singular value; alone
SODA_SMALL = {320: (2, 4, 4, 2, 5), 768: (3, 4, 4, 4, 4)}
SODA_LARGE = {320: (4, 80), 768: (12, 64)}
ROTATION_SMALL = {320: (16, 20), 768: (4, 8, 24)}
ROTATION_LARGE = {320: (4, 80), 768: (8, 96)}

#: a shift of its own for every singular value, as in the paper; a curve over the singular values
INDEPENDENT: dict[str, Any] = {"decomposition": "svd", "shift_knots": 0}
CURVE: dict[str, Any] = {"decomposition": "svd", "shift_knots": 16}
WIDE = [".attn2.to_k", ".attn2.to_v"]  #: the layers with 768 inputs
NARROW = [".attn1.to_q", ".attn1.to_k", ".attn1.to_v", ".attn1.to_out.0", ".attn2.to_q", ".attn2.to_out.0"]


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
    slow: bool = False  #: several times the others' time a step: left to the end
    cayley: bool = False  #: train rotations as Cayley transforms, for comparison with our optimiser

    @property
    def key(self) -> str:
        return f"{self.name}-{self.budget}"

    def description(self) -> str:
        """Everything that makes the method what it is: with it a kept result is found again, or not."""
        if self.peft is not None:
            return repr([(endings, sorted(config.to_dict().items(), key=str)) for endings, config in self.peft()])
        return repr((sorted((self.settings or {}).items()), self.cayley))


def _lora_small() -> list[tuple[list[str], Any]]:
    from peft import LoraConfig

    # rank 1 on all layers is twice the budget
    return [([".attn1.to_q", ".attn1.to_v", ".attn2.to_v"], LoraConfig(r=1, lora_alpha=1))]


def lora_rank_4() -> list[tuple[list[str], Any]]:
    from peft import LoraConfig

    return [([*NARROW, *WIDE], LoraConfig(r=4, lora_alpha=4))]


def _lokr_small() -> list[tuple[list[str], Any]]:
    from peft import LoKrConfig

    return [([*NARROW, *WIDE], LoKrConfig(r=1, alpha=1, decompose_factor=-1))]


def _lokr_large() -> list[tuple[list[str], Any]]:
    from peft import LoKrConfig

    return [([*NARROW, *WIDE], LoKrConfig(r=17, alpha=17, decompose_factor=4))]


def _oft_small() -> list[tuple[list[str], Any]]:
    from peft import OFTConfig

    return [
        (NARROW, OFTConfig(r=0, oft_block_size=2, use_cayley_neumann=False)),
        (WIDE, OFTConfig(r=0, oft_block_size=3, use_cayley_neumann=False)),
    ]


def _oft_large() -> list[tuple[list[str], Any]]:
    from peft import OFTConfig

    return [([*NARROW, *WIDE], OFTConfig(r=0, oft_block_size=16, use_cayley_neumann=False))]


def _boft_small() -> list[tuple[list[str], Any]]:
    from peft import BOFTConfig

    # its scale per output alone is the budget when all layers have one
    return [
        ([".attn1.to_v", ".attn1.to_out.0", ".attn2.to_v"], BOFTConfig(boft_block_size=2, boft_n_butterfly_factor=2)),
    ]


def _boft_large() -> list[tuple[list[str], Any]]:
    from peft import BOFTConfig

    return [([*NARROW, *WIDE], BOFTConfig(boft_block_size=8, boft_n_butterfly_factor=2))]


METHODS = {
    method.key: method
    for method in (
        Method("SODA-SVD", "small", {**INDEPENDENT, "factor_sizes": SODA_SMALL}),
        Method("SODA-SVD", "large", {**INDEPENDENT, "factor_sizes": SODA_LARGE}),
        Method("SODA-SVD curve", "small", {**CURVE, "factor_sizes": ROTATION_SMALL}),
        Method("SODA-SVD curve", "large", {**CURVE, "factor_sizes": SODA_LARGE}),
        Method("SODA-QR", "small", {"decomposition": "qr", "factor_sizes": SODA_SMALL}),
        Method("SODA-QR", "large", {"decomposition": "qr", "factor_sizes": SODA_LARGE}),
        Method("shift only", "small", {**INDEPENDENT, "train": "shift only"}),
        Method("rotation only", "small", {"train": "rotation only", "factor_sizes": ROTATION_SMALL}),
        Method("rotation only", "large", {"train": "rotation only", "factor_sizes": ROTATION_LARGE}),
        Method("LoRA", "small", peft=_lora_small),
        Method("LoRA", "large", peft=lora_rank_4),
        Method("LoKr", "small", peft=_lokr_small),
        Method("LoKr", "large", peft=_lokr_large),
        Method("OFT", "small", peft=_oft_small),
        Method("OFT", "large", peft=_oft_large),
        Method("BOFT", "small", peft=_boft_small, slow=True),
        Method("BOFT", "large", peft=_boft_large, slow=True),
    )
}

# SPDX-License-Identifier: GPL-3.0-or-later
"""Several SODA layers of one weight made one, where no single rotation and shift says the same."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base_check import BaseCheck, overall_error
from .base_weight import BaseWeight
from .combine import RULES, total
from .errors import BaseMismatchError, SettingsError
from .kronecker import rotate
from .layer import MOST_TERMS, AdaptedLayer, Rule, SodaLayer, StrengthMode, check_mode, check_strength

#: Norm of a change whose square float32 still holds with room to spare.
_LARGEST = 1e15


@dataclass(frozen=True, eq=False)
class Compound(AdaptedLayer):
    """What layers of several terms share.

    Args:
        terms: ``(a_i, layer_i)``, 1 to :data:`MOST_TERMS`.
    """

    terms: tuple[tuple[float, SodaLayer], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.terms) <= MOST_TERMS:
            raise SettingsError(f"a {self.rule} of {len(self.terms)} layers' changes; allowed are 1 to {MOST_TERMS}")
        for strength, _ in self.terms:
            check_strength("a term's strength", strength)

    @property
    @abstractmethod
    def rule(self) -> Rule: ...

    @property
    def shape(self) -> tuple[int, ...] | None:  # type: ignore[override]
        return next((layer.shape for _, layer in self.terms if layer.shape is not None), None)

    @property
    def single(self) -> SodaLayer | None:
        return None

    @property
    def in_features(self) -> int | None:
        return next((layer.in_features for _, layer in self.terms if layer.in_features is not None), None)

    @property
    def rank(self) -> int | None:
        return next((layer.rank for _, layer in self.terms if layer.rank is not None), None)

    @property
    def num_parameters(self) -> int:
        return sum(layer.num_parameters for _, layer in self.terms)

    def check_base(self, weight: Tensor | BaseWeight) -> BaseCheck | None:
        base = BaseWeight.of(weight)
        checks = [(a, check) for a, layer in self.terms if (check := layer.check_base(base)) is not None]
        if not checks:
            return None
        return BaseCheck(*overall_error(checks), max(check.base_distance for _, check in checks))

    def validate(self, name: str) -> None:
        for _, layer in self.terms:
            layer.validate(name)


@dataclass(frozen=True, eq=False)
class SodaSum(Compound):
    """``W0 + Σ a_i (W_i - W0)``: the paper's training-free merge of one layer (Zhang et al. 2025, section 3.4).

    Args:
        rule: what else than the plain sum the changes are put together by, see :mod:`.combine`. Terms of strength 0
            take no part in it, and one that is left alone is itself. "projection" takes two, the subject's and the
            style's.
    """

    rule: Rule = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule != "sum" and self.rule not in RULES:
            raise SettingsError(f"unknown rule {self.rule!r} for a sum; choose one of {['sum', *RULES]}")
        if self.rule == "projection" and len(self.terms) > 2:
            raise SettingsError(f"a projection is of a subject and a style, got {len(self.terms)} layers' changes")

    def __repr__(self) -> str:
        rule = "" if self.rule == "sum" else f", {self.rule!r}"
        return f"SodaSum({' + '.join(f'{strength:g} x {layer}' for strength, layer in self.terms)}{rule})"

    def delta(self, weight: Tensor | BaseWeight, strength: float = 1.0, mode: StrengthMode = "linear") -> Tensor:
        check_mode(mode)
        check_strength("strength", strength)
        base = BaseWeight.of(weight)  # decomposed once, not once per term
        active = [(a, layer) for a, layer in self.terms if a != 0.0]
        if not active:
            return torch.zeros_like(base.matrix).reshape(base.shape)
        if self.rule == "sum" or len(active) == 1:
            return total((a, layer.delta(base, strength, mode)) for a, layer in active)
        own, left = (1.0, strength) if mode == "linear" else (strength, 1.0)
        changes = [(a, layer.delta(base, own, mode).flatten(1)) for a, layer in active]
        if not (size := max(float(D.norm()) for _, D in changes)) < _LARGEST:  # (NaN is not)
            raise BaseMismatchError(f"a change of size {size:g} is too large for a {self.rule} merge; train it again")
        return (left * RULES[self.rule](changes)).reshape(base.shape)


@dataclass(frozen=True, eq=False)
class SodaProduct(Compound):
    """``(W0 + Σ a_i Δ_i) (K_1 K_2 …)ᵀ``: spectral parts add up, rotations turn one after the other.

    The rotations stand as they are: a strength multiplies the spectral part alone. So parts of several adapters go
    together exactly, whatever their factor sizes and decompositions; the order of the rotations matters where both are
    large. Costs one :func:`.kronecker.rotate` of the weight per term with a rotation, beside the spectral parts.
    """

    @property
    def rule(self) -> Rule:
        return "product"

    def __repr__(self) -> str:
        return f"SodaProduct({', '.join(f'{strength:g} x {layer}' for strength, layer in self.terms)})"

    def delta(self, weight: Tensor | BaseWeight, strength: float = 1.0, mode: StrengthMode = "linear") -> Tensor:
        check_mode(mode)
        check_strength("strength", strength)
        base = BaseWeight.of(weight)
        if strength == 0.0:
            return torch.zeros_like(base.matrix).reshape(base.shape)
        layers = [(a, layer if mode == "linear" else layer.at_strength(strength)) for a, layer in self.terms]
        W = base.matrix
        for a, layer in layers:
            if layer.shift is not None and a != 0.0:
                W = W + a * replace(layer, factors=()).delta(base).flatten(1)
        for _, layer in reversed(layers):  # (K_1 K_2)ᵀ = K_2ᵀ K_1ᵀ
            W = rotate(W, [R.to(W) for R in layer.factors])
        delta = W - base.matrix
        return (delta if mode == "geodesic" else delta * strength).reshape(base.shape)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Kronecker products of small rotations, without ever forming the product.

``K = R_1 ⊗ R_2 ⊗ … ⊗ R_m`` with ``R_i (k_i, k_i)`` and ``Π k_i = in`` (Zhang et al. 2025, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import islice

import torch
from torch import Tensor

from .errors import SettingsError, ShapeError
from .linalg import orthogonal_log, skew_exp

#: Neighbouring factors are multiplied out up to this size.
GROUPED = 96

#: Number of balanced factors, where no other is asked for.
FACTORS = 2

#: A dense rotation of a prime number of dimensions is offered up to this many.
LARGEST_DENSE_FACTOR = 256

#: Limits of a rotation: more factors than halve any number of inputs, and one of a gigabyte.
MOST_FACTORS, LARGEST_FACTOR = 16, 16_384

#: The authors' factor sizes by number of inputs (SDXL's); for other numbers the automatic sizes stand in.
FACTOR_PRESETS: dict[str, dict[int, tuple[int, ...]]] = {
    "svdiff-size": {640: (8, 8, 10), 768: (6, 8, 16), 1280: (4, 16, 20), 2048: (4, 8, 64)},
    "oft-size": {640: (4, 8, 20), 768: (2, 4, 96), 1280: (4, 8, 40), 2048: (2, 16, 64)},
}


@cache
def grouping(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """How many neighbouring factors to multiply out into one, group by group: few groups, each at most ``GROUPED``.

    A product with a handful of rows runs at a tenth of a processor's speed, and each pass over the data costs as much
    as some 60 multiplications per entry: two small dense products beat three skinny ones.
    Of equally good ones the first in lexicographic order. The best for the last i factors, i = 0, 1, …, is a first
    group and the best for what it leaves.
    """
    best: list[tuple[int, int, tuple[int, ...]]] = [(0, 0, ())]  # groups, sum of their sizes, their lengths
    for start in reversed(range(len(sizes))):
        ways, k = [], 1
        for length, size in enumerate(sizes[start:], 1):
            k *= size
            if length > 1 and k > GROUPED:
                break
            groups, total, lengths = best[-length]
            ways.append((groups + 1, total + k, (length, *lengths)))
        best.append(min(ways))
    return best[-1][2]


def grouped(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same K by fewer, larger factors, see :func:`grouping`; each may be a stack ``(n, k_i, k_i)``."""
    queue, groups = iter(factors), []
    for length in grouping(tuple(R.shape[-1] for R in factors)):
        first, *rest = islice(queue, length)
        for R in rest:
            k = first.shape[-1] * R.shape[-1]
            first = (first[..., :, None, :, None] * R[..., None, :, None, :]).reshape(*first.shape[:-2], k, k)
        groups.append(first)
    return groups


def rotate(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """``x Kᵀ`` over the last axis.

    Args:
        x: ``(*batch, in)``; a weight ``(out, in)`` gives ``W Kᵀ``.
        factors: ``R_i (k_i, k_i)`` in ``torch.kron`` order, in x's dtype and device.
    Returns:
        ``(*batch, in)``. Costs about ``|x| Σ k_i`` multiplications instead of the ``|x| in`` of a dense K.
    """
    if not factors:
        return x
    factors = grouped(factors)
    sizes = [R.shape[-1] for R in factors]
    if math.prod(sizes) != x.shape[-1]:
        raise ShapeError(
            f"factors of sizes {tuple(sizes)} rotate {math.prod(sizes)} dimensions, but the input has {x.shape[-1]}"
        )
    shape = x.shape
    right = 1
    for R in reversed(factors):
        k = R.shape[-1]
        if right == 1:
            x = x.reshape(-1, k) @ R.mT
        else:
            x = R @ x.reshape(-1, k, right)
        right *= k
    return x.reshape(shape)


def unrotate(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """``x K`` over the last axis: the inverse of :func:`rotate`, and what activations need (``W Kᵀ x``)."""
    return rotate(x, [R.mT for R in factors])


def identity_factors(sizes: Iterable[int]) -> list[Tensor]:
    """Identity matrices of the given sizes, float32: the untrained rotation."""
    return [torch.eye(k) for k in sizes]


def rms_angle(sizes: Sequence[int]) -> float:
    """RMS angle that K turns by, in units of e, where each factor of these sizes turns by a small skew step with RMS
    entry e off its diagonal: ``√Σ (k_i - 1)``.

    K's generator is ``Σ I ⊗ ξ_i ⊗ I``, whose terms are orthogonal to each other; ``‖ξ_i‖² = e² k_i (k_i - 1)`` and a
    skew matrix of n dimensions has the mean squared angle ``‖·‖² / n``.
    """
    return math.sqrt(sum(k - 1 for k in sizes))


def geodesic_power(factors: Sequence[Tensor], strength: float) -> list[Tensor]:
    """``R_i^s = exp(s log R_i)``; exactly the identity at 0 and exactly the factors at 1."""
    if strength == 1.0:
        return list(factors)
    if strength == 0.0:
        return [torch.eye(R.shape[-1], dtype=R.dtype, device=R.device) for R in factors]
    if strength == -1.0:
        return [R.mT for R in factors]
    return [skew_exp(strength * orthogonal_log(R)).to(R.dtype) for R in factors]


@cache
def balanced_sizes(in_features: int, count: int) -> tuple[int, ...]:
    """The ``count`` factors of ``in_features`` (ascending, ones dropped) with the fewest parameters ``Σ k_i²``."""
    if count == 1:
        return (in_features,)
    best: tuple[int, ...] = (in_features,)
    for k in range(2, math.isqrt(in_features) + 1):
        if in_features % k:
            continue
        rest = balanced_sizes(in_features // k, count - 1)
        sizes = tuple(sorted((k, *rest)))
        if sum(a * a for a in sizes) < sum(a * a for a in best):
            best = sizes
    return best


def large_sizes(in_features: int) -> tuple[int, ...]:
    """One factor as large as divides ``in_features``, up to :data:`GROUPED`, and one for the rest: (16, 80) for 1280.

    (The rest is two where one would exceed :data:`LARGEST_DENSE_FACTOR`.)
    Ten times the parameters of two balanced factors in narrow layers (320), hardly more in wide ones.
    """
    largest = max(k for k in range(1, GROUPED + 1) if in_features % k == 0)
    rest = in_features // largest
    sizes = (rest, largest) if rest <= LARGEST_DENSE_FACTOR else (*balanced_sizes(rest, 2), largest)
    return tuple(k for k in sizes if k > 1) or (1,)


def factor_sizes(in_features: int, preset: str = "auto", count: int = FACTORS) -> tuple[int, ...]:
    """Factor sizes for a layer.

    Args:
        in_features: ``in`` of a linear layer, ``in * prod(kernel)`` of a convolution.
        preset: "auto" (the fewest parameters), "large" (see :func:`large_sizes`), or a key of :data:`FACTOR_PRESETS`.
        count: number of factors for "auto"; 1 is one dense rotation.
    Raises:
        SettingsError: an unknown preset, a dense rotation of more than :data:`LARGEST_FACTOR`, or a prime factor of
            ``in_features`` above :data:`LARGEST_DENSE_FACTOR`, where one dense rotation was not asked for.
    """
    if preset not in factor_presets():
        raise SettingsError(f"unknown factor preset {preset!r}; choose one of {list(factor_presets())}")
    if count < 1:
        raise SettingsError(f"the number of Kronecker factors must be 1 or more, got {count}")
    if sizes := FACTOR_PRESETS.get(preset, {}).get(in_features):
        return sizes
    if preset != "large" and count == 1:
        if in_features > LARGEST_FACTOR:
            raise SettingsError(
                f"one dense rotation of {in_features} inputs was asked for, at most {LARGEST_FACTOR} are allowed; use "
                "two or more factors, or leave this layer out"
            )
        return (in_features,)
    prime = _largest_prime_factor(in_features)
    if prime > LARGEST_DENSE_FACTOR:
        raise SettingsError(
            f"a layer of {in_features} inputs has the prime factor {prime}, which would need a dense {prime} x {prime} "
            f"rotation (allowed {LARGEST_DENSE_FACTOR}); leave this layer out or train its shift only"
        )
    return large_sizes(in_features) if preset == "large" else balanced_sizes(in_features, count)


def check_sizes(sizes: Sequence[int], in_features: int) -> None:
    """Raise unless factors of these sizes are a rotation of ``in_features`` dimensions that a file may hold."""
    least = 2 if len(sizes) > 1 else 1
    if math.prod(sizes) != in_features or min(sizes, default=1) < least:
        raise SettingsError(f"factor_sizes: {tuple(sizes)} do not multiply to {in_features}, each of 2 or more")
    if len(sizes) > MOST_FACTORS or max(sizes, default=1) > LARGEST_FACTOR:
        raise SettingsError(
            f"factor_sizes: {tuple(sizes)} are {len(sizes)} factors of up to {max(sizes)} rows; allowed are "
            f"{MOST_FACTORS} of up to {LARGEST_FACTOR}"
        )


def factor_presets() -> tuple[str, ...]:
    """The names :func:`factor_sizes` knows."""
    return ("auto", "large", *FACTOR_PRESETS)


def _largest_prime_factor(n: int) -> int:
    largest, p = 1, 2
    while p * p <= n:
        while n % p == 0:
            largest, n = p, n // p
        p += 1
    return max(largest, n)

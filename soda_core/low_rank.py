# SPDX-License-Identifier: GPL-3.0-or-later
"""Matrices by a few of their singular directions, and how many directions each of several matrices deserves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .linalg import in_float64

#: Directions drawn beyond those asked for, and passes that sharpen them (Halko, Martinsson, Tropp 2011, section 4.5).
_OVERSAMPLING = 32
_PASSES = 2
#: From this share of all directions on, the whole eigenvalue problem is the cheaper one.
_DENSE_FROM = 1 / 3
#: Of the largest eigenvalue of a Gram matrix: below this a direction is rounding.
_NO_DIRECTION = 1e-5


def singular_values(M: Tensor, count: int) -> Tensor:
    """The ``count`` largest singular values of ``M (n, m)``, descending, float32.

    Costs, in multiplications, about ``6 n m (count + 32)`` where that is few directions (a randomized range, two
    passes: the last values come out some percent small), else ``n² m + 4/3 n³`` for ``n <= m`` (the Gram matrix:
    exact to 3e-4 of the largest).
    """
    A = _wide(M)
    if _dense(A, count):
        return torch.linalg.eigvalsh(A @ A.mT).flip(-1)[:count].clamp(min=0).sqrt()
    return torch.linalg.vector_norm(_leading(A, count).mT @ A, dim=1)


def leading(M: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """``M ≈ U diag(S) Vh`` with the leading ``rank`` singular directions.

    Args:
        M: ``(out, in)``, float32 or float64.
    Returns:
        ``U (out, rank)``, ``S (rank,)`` descending, ``Vh (rank, in)``; a direction that has no size is zero on the
        longer side. Costs as :func:`singular_values`, with ``9 n³`` for a dense problem.
    """
    A = _wide(M)
    Q = _leading(A, rank)
    rows = Q.mT @ A
    S = torch.linalg.vector_norm(rows, dim=1)
    far = rows / S.clamp(min=torch.finfo(A.dtype).tiny)[:, None]
    return (Q, S, far) if M.shape[0] <= M.shape[1] else (far.mT, S, Q.mT)


def truncated(M: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``M ≈ up @ down`` as :func:`leading` has it, the singular values shared evenly between them.

    Returns:
        ``up (out, rank)``, ``down (rank, in)``, largest first. Both are a projection of M, so what is left out is
        exactly ``‖M‖² - ‖up @ down‖²``.
    """
    U, S, Vh = leading(M, rank)
    return U * S.sqrt(), S.sqrt()[:, None] * Vh


def polar(columns: Tensor) -> Tensor:
    """The polar factor ``Q (QᵀQ)^(-1/2)`` of ``Q (n, m)``: orthonormal columns, as near to Q's as can be.

    Directions that several columns share are shared out among them, and none is made up for what then is missing. Costs
    ``2 n m² + 9 m³``, in float64.
    """
    Q = in_float64(columns)
    eigenvalues, Z = torch.linalg.eigh(Q.mT @ Q)
    small = eigenvalues <= _NO_DIRECTION * eigenvalues[-1]
    factor = Q @ (Z * torch.where(small, 0.0, eigenvalues.clamp(min=1e-30).rsqrt())) @ Z.mT
    return factor.to(columns)


def _wide(M: Tensor) -> Tensor:
    return M if M.shape[0] <= M.shape[1] else M.mT


def _dense(A: Tensor, count: int) -> bool:
    return count + _OVERSAMPLING >= _DENSE_FROM * A.shape[0]


def _leading(A: Tensor, count: int) -> Tensor:
    """``(n, count)``: the leading left singular vectors of ``A (n, m)``, ``n <= m``."""
    if _dense(A, count):
        return torch.linalg.eigh(A @ A.mT).eigenvectors.flip(-1)[:, :count]
    # Always the same draw: an export is the same every time.
    draw = torch.randn(A.shape[1], count + _OVERSAMPLING, generator=torch.Generator().manual_seed(0)).to(A)
    Q = torch.linalg.qr(A @ draw).Q
    for _ in range(_PASSES):
        Q = torch.linalg.qr(A @ torch.linalg.qr(A.mT @ Q).Q).Q
    rows = Q.mT @ A
    return Q @ torch.linalg.eigh(rows @ rows.mT).eigenvectors.flip(-1)[:, :count]


def ranks_within(values: Sequence[Tensor], costs: Sequence[int], budget: int) -> list[int]:
    """How many directions of each matrix to keep so that the least is left out of all of them together.

    Args:
        values: singular values of each matrix, descending.
        costs: numbers to store per direction, ``out + in``.
        budget: numbers to store in all.

    The directions of all matrices are taken in the order of energy per stored number, ``σ² / cost``: no other choice
    of the same size leaves less out. Directions of no energy are never taken.
    """
    owner, _, cost = _by_worth(values, costs)
    return _count(owner[: int((cost.cumsum(0) <= budget).sum())], len(values))


def ranks_for_error(values: Sequence[Tensor], costs: Sequence[int], energy: float, error: float) -> list[int]:
    """The smallest ranks (see :func:`ranks_within`) that leave out at most ``error`` of the norm of all matrices.

    Args:
        energy: ``Σ ‖M‖²``, of which the values may hold only the larger part.
    """
    owner, squares, _ = _by_worth(values, costs)
    kept = squares.cumsum(0)
    needed = int((kept < (1 - error**2) * energy).sum()) + 1
    return _count(owner[:needed], len(values))


def _by_worth(values: Sequence[Tensor], costs: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Of every direction of any energy, worthiest first: its matrix, its energy, its cost."""
    owner = torch.cat([torch.full(S.shape, i) for i, S in enumerate(values)])
    squares = torch.cat([S.double().square().cpu() for S in values])
    cost = torch.tensor(costs)[owner]
    order = (squares / cost).argsort(descending=True, stable=True)
    order = order[squares[order] > 0]
    return owner[order], squares[order], cost[order]


def _count(owners: Tensor, matrices: int) -> list[int]:
    return torch.bincount(owners, minlength=matrices).tolist()  # type: ignore[no-any-return]

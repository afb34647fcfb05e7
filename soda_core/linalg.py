# SPDX-License-Identifier: GPL-3.0-or-later
"""Decompositions and maps of the orthogonal group that everything else is built from.

Dtype policy of the pack: mathematics runs in float32 or better whatever the dtype of the input; public entry points
return the input's dtype. Logarithms, roots and decompositions run in float64. One exception: a
training step in bfloat16 multiplies with singular vectors in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .errors import ManifoldError, ShapeError

#: Largest entry of ``RᵀR - I`` at which a stored factor still counts as orthogonal. float32 training stays below
#: 1e-5, a factor rounded to bfloat16 (8 bits) does not pass.
ORTHOGONALITY_TOLERANCE = 1e-3

#: Of ``S_min / S_max``. A Gram matrix squares it, so vectors got by dividing by S are off by float64's rounding over
#: its square: by 1e-8 at most above this.
_DIVIDE_ABOVE = 1e-4


#: Rows from which on a general matrix's eigenvalues take too long to wait for.
_LARGE = 512


def in_float64(X: Tensor) -> Tensor:
    """X in float64; on the CPU where its own device may not have it (Apple's MPS, some of Intel's GPUs)."""
    return X.to(X.device if X.device.type in ("cpu", "cuda") else "cpu", torch.float64)


def result_dtype(W: Tensor) -> torch.dtype:
    """float64 for float64, else float32: what mathematics on ``W`` runs in and returns."""
    return torch.float64 if W.dtype == torch.float64 else torch.float32


def flatten_weight(weight: Tensor) -> Tensor:
    """``(out, in)`` unchanged, ``(out, in, *kernel)`` -> ``(out, in * prod(kernel))``, a view where possible."""
    if weight.ndim < 2:
        raise ShapeError(f"a weight to adapt needs two or more dimensions, got shape {tuple(weight.shape)}")
    return weight.flatten(1)


def thin_svd(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``W = U diag(S) Vh``, thin, S descending.

    Args:
        W: ``(out, in)``, any floating dtype.
    Returns:
        ``U (out, r)``, ``S (r,)``, ``Vh (r, in)`` with ``r = min(out, in)``, float32 (float64 for a float64 W).

    The eigenvectors of the smaller Gram matrix in float64: exact to float32 because float64's 16 digits survive being
    squared, and so the same on every machine. Singular values below ``_DIVIDE_ABOVE`` of the largest are too small to
    divide by; a QR then keeps the second basis orthonormal in the directions where S vanishes.
    """
    result = result_dtype(W)
    W64 = in_float64(W)
    out, in_features = W64.shape
    tall = out >= in_features
    A = W64 if tall else W64.mT
    basis = torch.linalg.eigh(A.mT @ A).eigenvectors.flip(-1)
    Q = A @ basis
    S = torch.linalg.vector_norm(Q, dim=0)
    if bool(S.min() > _DIVIDE_ABOVE * S.max()):
        Q = Q / S
    else:
        Q, R = torch.linalg.qr(Q)
        diagonal = R.diagonal()
        Q, S = Q * torch.where(diagonal < 0, -1.0, 1.0), diagonal.abs()
    S, order = S.sort(descending=True, stable=True)
    Q, basis = Q[:, order], basis[:, order]
    U, V = (Q, basis) if tall else (basis, Q)
    return U.to(W.device, result).contiguous(), S.to(W.device, result), V.mT.to(W.device, result).contiguous()


def canonical_lq(W: Tensor) -> tuple[Tensor, Tensor]:
    """``W = L Qh`` with the diagonal of L non-negative; unique where W has full rank.

    Args:
        W: ``(out, in)``, any floating dtype.
    Returns:
        ``L (out, r)`` lower trapezoidal, ``Qh (r, in)`` with orthonormal rows; dtypes as :func:`thin_svd`. LAPACK does
        not promise the signs, so without this convention a shift would not be portable.
    """
    result = result_dtype(W)
    Q, R = torch.linalg.qr(in_float64(W).mT)
    signs = torch.where(R.diagonal() < 0, -1.0, 1.0).to(R)
    return (R * signs[:, None]).mT.to(W.device, result).contiguous(), (Q * signs).mT.to(W.device, result).contiguous()


def orthogonality_residual(R: Tensor) -> float:
    """``max |RᵀR - I|`` of ``R (..., k, k)``, measured in float64; NaN where R holds one."""
    R = in_float64(R.detach())
    eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    return float((R.mT @ R - eye).abs().max())


def check_orthogonal(R: Tensor, tolerance: float = ORTHOGONALITY_TOLERANCE) -> tuple[bool, str]:
    """``(ok, reason)``; the reason carries the measured residual and the tolerance."""
    if R.ndim != 2 or R.shape[0] != R.shape[1]:
        return False, f"expected a square matrix, found shape {tuple(R.shape)}"
    if not bool(torch.isfinite(R).all()):
        return False, "holds NaN or infinite values"
    residual = orthogonality_residual(R)
    if not residual <= tolerance:
        return False, f"is not orthogonal: max |RᵀR - I| = {residual:.3g}, allowed {tolerance:.3g}"
    return True, ""


def orthogonal_sqrt(R: Tensor) -> Tensor:
    """The principal square root of rotations ``R (..., k, k)``: the polar factor of ``I + R``.

    Raises:
        ManifoldError: a rotation by 180° or a reflection (eigenvalue -1) has no unique root.
    """
    eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    eigenvalues, Z = torch.linalg.eigh(2 * eye + R + R.mT)  # (I + R)ᵀ(I + R)
    if bool((eigenvalues < 1e-9).any()):
        raise ManifoldError(
            "a factor turns some direction by 180° or reflects it, so it has no unique logarithm and no geodesic "
            "to the base; use the linear mode (strength) or the delta method (merge)"
        )
    return (eye + R) @ (Z * eigenvalues.rsqrt()[..., None, :]) @ Z.mT


def _small_angle_sqrt(R: Tensor, steps: int) -> Tensor:
    """:func:`orthogonal_sqrt` of ``R (n, k, k)`` by products alone, for angles up to 90°.

    Newton-Schulz for the polar factor: its error, ``1 - cos(θ / 2)``, is squared, times 1.5, in each of the ``steps``.
    """
    X = (torch.eye(R.shape[-1], dtype=R.dtype, device=R.device) + R) / 2
    for _ in range(steps):
        X = torch.baddbmm(X, X, X.mT @ X, beta=1.5, alpha=-0.5)
    return X


def orthogonal_log(R: Tensor) -> Tensor:
    """The skew-symmetric ``log R`` of rotations ``R (..., k, k)``, in float64.

    Three square roots bring every angle below 180°/8; then ``log R = 2 artanh((R - I)(R + I)⁻¹)`` converges to
    machine precision in eleven terms. Everything is real, batched and stable for equal eigenvalues.
    """
    shape = R.shape
    R = orthogonal_sqrt(in_float64(R.detach()).reshape(-1, *shape[-2:]))
    R = _small_angle_sqrt(R, 6)  # from 90° to machine precision
    R = _small_angle_sqrt(R, 5)  # from 45°
    eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    C = torch.linalg.solve(R + eye, R - eye)  # Cayley transform: skew, tan(θ/2) per angle θ
    C2, power, series = C @ C, C, C
    for n in range(3, 23, 2):
        power = power @ C2
        series = series + power / n
    return (8 * (series - series.mT)).reshape(shape)


def in_batches(function: Callable[[Tensor], Tensor], matrices: Sequence[Tensor]) -> list[Tensor]:
    """``function`` of every square matrix, in stacks ``(n, k, k)`` of those of one size, dtype and device."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for i, M in enumerate(matrices):
        alike.setdefault((M.shape[-1], M.dtype, M.device), []).append(i)
    results: dict[int, Tensor] = {}
    for places in alike.values():
        stack = function(torch.stack([matrices[i] for i in places]))
        results |= dict(zip(places, stack.unbind(0), strict=True))
    return [results[i] for i in range(len(matrices))]


def skew_exp(A: Tensor) -> Tensor:
    """``exp A`` of skew-symmetric ``A (..., k, k)``, a rotation."""
    return torch.linalg.matrix_exp(A)


def rotation_angles(R: Tensor) -> Tensor:
    """Angles of orthogonal ``R (k, k)`` in radians, ``(k,)`` in [0, π], descending; a pair per turned plane.

    Of a large R by the eigenvalues of its symmetric part, which are their cosines: ten times as fast, and exact to
    3e-4, the root of float32's rounding, for angles near 0 and π.
    """
    R64 = R.detach().cpu().double()
    if R.shape[-1] > _LARGE:
        cosines = torch.linalg.eigvalsh((R64 + R64.mT) / 2)
        return cosines.clamp(-1, 1).arccos().sort(descending=True).values
    eigenvalues = torch.linalg.eigvals(R64)
    return torch.atan2(eigenvalues.imag.abs(), eigenvalues.real).sort(descending=True).values

# SPDX-License-Identifier: GPL-3.0-or-later
"""Adam on the orthogonal group, batched.

Kong, Wang, Tao, *Momentum Stiefel Optimizer, with Applications to Suitably-Orthogonal Attention, and Optimal
Transport* (ICLR 2023, arXiv 2205.14173), for square matrices in the canonical metric (a = 1/2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .errors import SettingsError, ShapeError
from .linalg import in_float64

Retraction = Literal["euler", "cayley", "exp"]


class StiefelAdam(torch.optim.Optimizer):
    """Adam whose parameters stay orthogonal: ``X ← polar(X retract(ξ))`` with a skew-symmetric step ξ.

    Args:
        params: orthogonal ``(k, k)`` matrices, or stacks ``(n, k, k)`` of them. All matrices of one size, device and
            dtype are updated by the same few batched products, however they are handed in. A group of them may have
            a ``scale`` that its lr is multiplied by: a number, or ``(n,)`` for each matrix of its one stack.
        lr: learning rate per step; an entry of ξ moves by about this much, in radians.
        betas: decay of the momentum and of the second moment.
        eps: added to the root of the second moment.
        retraction: "euler" ``I + ξ``, "cayley" ``(I - ξ/2)⁻¹(I + ξ/2)`` or "exp" ``exp ξ``.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-5,
        retraction: Retraction = "euler",
    ) -> None:
        if not lr >= 0.0:
            raise SettingsError(f"the learning rate must be 0 or more, got {lr}")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise SettingsError(f"betas must be in [0, 1), got {betas}")
        if retraction not in get_args(Retraction):
            raise SettingsError(f"unknown retraction {retraction!r}; choose one of {list(get_args(Retraction))}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "retraction": retraction})
        for group in self.param_groups:
            for X in group["params"]:
                if X.ndim < 2 or X.shape[-1] != X.shape[-2]:
                    raise ShapeError(f"StiefelAdam needs square matrices, got a parameter of shape {tuple(X.shape)}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        scale = param_group.setdefault("scale", 1.0)
        param_group["largest_scale"] = float(torch.as_tensor(scale).max())
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # a state from before there were scales
            group.setdefault("scale", 1.0)
            group.setdefault("largest_scale", 1.0)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = evaluated(closure)
        for group in self.param_groups:
            stacks: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = {}
            for X in group["params"]:
                if X.grad is None:
                    continue
                state = self.state[X]
                if not state:
                    state["step"] = 0
                    state["momentum"] = torch.zeros_like(X)
                    state["second_moment"] = torch.zeros_like(X)
                state["step"] += 1
                stacks.setdefault((X.shape[-1], X.dtype, X.device, state["step"]), []).append((X, X.grad))
            for (_, _, _, t), pairs in stacks.items():
                self._update(pairs, t, group)
        return loss

    def _update(self, pairs: list[tuple[Tensor, Tensor]], t: int, group: dict[str, Any]) -> None:
        """One step of all matrices of one size, each with its gradient; float32 or better."""
        params = [X for X, _ in pairs]
        states = [self.state[X] for X in params]
        X = _stack(params)
        G = _stack([G for _, G in pairs])
        Y = _stack([state["momentum"] for state in states])
        P = _stack([state["second_moment"] for state in states])
        Y, P, X = stiefel_adam_step(
            X, G, Y, P, t, lr=group["lr"], betas=group["betas"], eps=group["eps"], retraction=group["retraction"],
            scale=group["scale"], largest_scale=group["largest_scale"],
        )  # fmt: skip
        _unstack(Y, [state["momentum"] for state in states])
        _unstack(P, [state["second_moment"] for state in states])
        _unstack(X, params)


def evaluated(closure: Callable[[], float] | None) -> float | None:
    """The loss of a closure that an optimiser's step was given, with gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def stiefel_adam_step(
    X: Tensor,
    G: Tensor,
    Y: Tensor,
    P: Tensor,
    t: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    retraction: Retraction,
    scale: float | Tensor = 1.0,
    largest_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Kong, Wang, Tao 2023, algorithm 2, for square matrices; all tensors ``(n, k, k)``; returns ``(Y, P, X)``.

    Momentum Y and second moment P are those of Adam, of the skew-symmetric ``A = XᵀG - GᵀX``.

    Args:
        scale: of lr; a number or ``(n,)``, one for each matrix.
        largest_scale: known without looking at the data (no device synchronisation).
    """
    b1, b2 = betas
    XG = X.mT @ G
    A = XG - XG.mT
    Y = b1 * Y - (1 - b1) * A
    P = b2 * P + (1 - b2) * A * A
    rate = lr / (1 - b1**t) * (scale if isinstance(scale, float) else scale.to(X)[:, None, None])
    xi = rate * Y / ((P / (1 - b2**t)).sqrt() + eps)
    return Y, P, polar(X @ retract(xi, retraction), _residual_bound(lr * largest_scale, X.shape[-1], retraction))


def retract(xi: Tensor, retraction: Retraction) -> Tensor:
    """A matrix near ``exp ξ`` for a skew step ``ξ (n, k, k)``; exactly orthogonal except for "euler"."""
    if retraction == "exp":
        return torch.linalg.matrix_exp(in_float64(xi)).to(xi)
    eye = torch.eye(xi.shape[-1], dtype=xi.dtype, device=xi.device)
    if retraction == "cayley":
        return torch.linalg.solve(eye - xi / 2, eye + xi / 2)
    return eye + xi


def polar(X: Tensor, residual: float) -> Tensor:
    """The nearest orthogonal matrix ``X (XᵀX)^(-1/2)`` of each ``X (n, k, k)``.

    Args:
        residual: an upper bound of ``‖XᵀX - I‖₂`` known without looking at the data (no device synchronisation).

    Newton-Schulz squares the residual at each step: ``r -> 3/4 r² + r³/4``. A residual above 1/2 comes from an
    absurd learning rate; there the eigenvectors of XᵀX are worth their price.
    """
    if residual > 0.5:
        X64 = in_float64(X)
        eigenvalues, Z = torch.linalg.eigh(X64.mT @ X64)
        return (X64 @ (Z * eigenvalues.rsqrt()[..., None, :]) @ Z.mT).to(X)
    while True:
        X = 1.5 * X - 0.5 * X @ (X.mT @ X)
        residual = 0.75 * residual**2 + 0.25 * residual**3
        if residual < 1e-8:
            return X


def _residual_bound(lr: float, k: int, retraction: Retraction) -> float:
    """``‖XᵀX - I‖₂`` after a step: ``‖ξ‖₂²`` for "euler", rounding for the others.

    Adam's normalised step stays below 3 per entry for the betas in use, and ``‖ξ‖₂ <= k max|ξ|``.
    """
    return (3 * lr * k) ** 2 + 1e-5 if retraction == "euler" else 1e-5


def _stack(tensors: list[Tensor]) -> Tensor:
    """One ``(n, k, k)`` tensor of all matrices; no copy for a single stack that is float32 already."""
    flat = [t.detach().reshape(-1, *t.shape[-2:]) for t in tensors]
    X = flat[0] if len(flat) == 1 else torch.cat(flat)
    return X if X.dtype == torch.float64 else X.float()


def _unstack(X: Tensor, targets: list[Tensor]) -> None:
    """Write ``(n, k, k)`` back into the tensors it was stacked from."""
    sizes = [t.numel() // (t.shape[-1] * t.shape[-2]) for t in targets]
    pieces = [piece.reshape(t.shape) for piece, t in zip(X.split(sizes), targets, strict=True)]
    torch._foreach_copy_([t.detach() for t in targets], pieces)

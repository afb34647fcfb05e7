# SPDX-License-Identifier: GPL-3.0-or-later
"""Learning rates that nobody has to choose: Prodigy's estimate of the distance to the solution.

Mishchenko and Defazio, *Prodigy: An Expeditiously Adaptive Parameter-Free Learner* (ICML 2024, arXiv 2306.06101),
carried over to rotations: there the gradient is the skew ``A = XᵀG - GᵀX`` in the frame of X, and the way from the
start X0 is the skew part of ``X0ᵀX``, which for small angles is its logarithm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..stiefel import evaluated
from .joined import JoinedOptimizer

#: A parameter's gradient and its way from its start, in units in which a step of the inner optimiser at a rate of 1 has
#: entries of about 1: ``(parameter, gradient, start, unit) -> (gradient, way)``.
Coordinates = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def of_rotations(X: Tensor, G: Tensor, start: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """For stacks ``(n, k, k)`` with units ``(n,)``. Both count every plane twice, which cancels."""
    unit = unit[:, None, None]
    XG, way = X.mT @ G, start.mT @ X
    return unit * (XG - XG.mT), (way - way.mT) / (2 * unit)


def of_vectors(x: Tensor, g: Tensor, start: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """For parameters with units of their own shape."""
    return unit * g, (x - start) / unit


class Prodigy(JoinedOptimizer):
    """Runs an optimiser at a rate of ``lr d``, where d is an estimate of how far the solution is from the start.

    After every step, with the gradient g that it was taken with and where the parameters were before it:

        r ← β r + lr d² ⟨g, x0 - x⟩,   s ← β s + lr d² g,   d ← max(d, c r / ‖s‖₁)

    over all parameters together. d rises as long as gradients say that the start lies behind; it never falls. The
    moments of the inner optimiser do not weigh gradients with d, as those of the paper do: they forget sooner than d
    changes. No step waits for the device: d is read when the next one begins.

    Args:
        inner: its steps are proportional to its rate and do not depend on the gradient's size.
        units: of each parameter, see :data:`Coordinates`.
        smallest: d at the start.
        coefficient: c. The paper has 1, whose estimates are careful and rise slowly; its code offers others.
        beta: the root of Adam's second, as in the paper.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        coordinates: Coordinates,
        units: Sequence[Tensor],
        smallest: float,
        coefficient: float = 1.0,
        beta: float = 0.999**0.5,
    ) -> None:
        self.coordinates, self.units = coordinates, list(units)
        self.smallest, self.coefficient, self.beta = smallest, coefficient, beta
        super().__init__([inner])

    @property
    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @property
    def distance(self) -> float:
        """d."""
        known = self.state[self._parameters[0]].get("distance")
        return self.smallest if known is None else float(known)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = evaluated(closure)
        parameters, lrs, d = self._parameters, [group["lr"] for group in self.param_groups], self.distance
        for p in parameters:  # all take part in every step
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        before = [p.clone() for p in parameters]
        for group, lr in zip(self.param_groups, lrs, strict=True):
            group["lr"] = lr * d
        super().step()  # first: torch's own begin their state where there is none
        for group, lr in zip(self.param_groups, lrs, strict=True):
            group["lr"] = lr
        self._estimate(before, lrs[0] * d * d)
        return loss

    def _estimate(self, before: Sequence[Tensor], weight: float) -> None:
        """Renew r, s and d.

        Args:
            before: where the parameters were when their gradients were taken.
            weight: of these, ``lr d²``.
        """
        parameters = self._parameters
        first = self.state[parameters[0]]
        if "distance" not in first:
            first["distance"] = parameters[0].new_tensor(self.smallest)
            first["numerator"] = parameters[0].new_zeros(())
            for p, start in zip(parameters, before, strict=True):
                self.state[p] |= {"start": start, "sum": torch.zeros_like(p)}
        first["numerator"] *= self.beta
        size = parameters[0].new_zeros(())
        for p, x, unit in zip(parameters, before, self.units, strict=True):
            assert p.grad is not None
            state = self.state[p]
            gradient, way = self.coordinates(x, p.grad, state["start"], unit)
            first["numerator"] -= weight * (gradient * way).sum()
            state["sum"].mul_(self.beta).add_(gradient, alpha=weight)
            size += state["sum"].abs().sum()
        estimate = torch.where(size > 0, self.coefficient * first["numerator"] / size, 0.0)
        first["distance"] = torch.maximum(first["distance"], estimate)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The changes of one weight by several adapters, made one: a formula per merge method that works on changes.

``changes`` are ``(a_i, D_i)``: strengths and ``D_i = W_i - W0 (out, in)``, each from the pristine W0. Every formula
gives ``(out, in)`` and scales with its changes: twice as large ones give twice the result. Costs are per layer, in
multiplications, with ``n = min(out, in)`` and ``m = max(out, in)``; forming the D_i themselves comes before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from .low_rank import leading, polar

Changes = Sequence[tuple[float, Tensor]]

#: Directions that :func:`tsv` keeps of each adapter.
TSV_RANK = 64
#: How softly :func:`projection` projects: NP-LoRA's mu. A third of what lies in the style's directions goes.
SOFTNESS = 0.5
#: What is left of changes that cancel is not blown up further than this.
MOST_GAIN = 2.0


def total(changes: Iterable[tuple[float, Tensor]]) -> Tensor:
    """``Σ a_i D_i``: the paper's merge (Zhang et al. 2025, section 3.4). Costs ``n m`` per adapter."""
    return reduce(add, (a * D for a, D in changes))


def normalised(changes: Changes) -> Tensor:
    """``D max_i ‖a_i D_i‖ / ‖D‖`` with ``D = Σ a_i D_i``: the sum, no larger than the larger of its parents.

    Two adapters at full strength add up to 1.4 times the change of one, and drift too far. After the energy
    normalisation of ComfyUI-LoRA-Optimizer (its technical report, section 3.5); no paper is known to us. Where
    the two all but cancel, the gain stops at :data:`MOST_GAIN`. Costs ``3 n m``.
    """
    D = total(changes)
    larger, size = max(abs(a) * float(D_i.norm()) for a, D_i in changes), float(D.norm())
    return D * min(larger / size, MOST_GAIN) if size else D


def projection(changes: Changes) -> Tensor:
    """``a D_subject (I + (mu / nu) D_styleᵀ D_style)⁻¹ + b D_style``: the subject, softly off the style's inputs.

    NP-LoRA (arXiv 2511.11051, 2025) takes ``mu / (1 + mu)`` of the subject away along the style's k leading right
    singular vectors. A SODA change has full rank, so k would be one more number to choose, and all of them only a
    smaller subject. In its place stands the regularised inverse (ours): with ``nu = Σ σ⁴ / Σ σ²``, the mean of the
    style's squared singular values, weighted by themselves, a direction of that size loses NP-LoRA's share, a
    stronger one more and a weak one nothing. Where all the style's singular values are equal the two are one formula.
    Asymmetric: swap the adapters to take the style off the subject's inputs. Costs ``3 n² m + 2 n³``.

    Args:
        changes: of the subject, of the style.
    """
    (a, subject), (b, style) = changes
    size = float(style.norm())
    if not size:
        return a * subject
    E = style / size
    wide = E.shape[0] < E.shape[1]
    gram = E @ E.mT if wide else E.mT @ E
    c = SOFTNESS / float(gram.square().sum())  # mu / nu: the squares of E's singular values add up to 1
    regular = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) + c * gram
    if wide:  # (I + c EᵀE)⁻¹ = I - c Eᵀ (I + c EEᵀ)⁻¹ E (Woodbury)
        kept = subject - c * torch.linalg.solve(regular, subject @ E.mT, left=False) @ E
    else:
        kept = torch.linalg.solve(regular, subject, left=False)
    return a * kept + b * style


def tsv(changes: Changes) -> Tensor:
    """``U diag(a_1 S_1, a_2 S_2, …) Vᵀ`` with ``U = polar([U_1 U_2 …])``, ``V = polar([V_1 V_2 …])``: TSV-Merge.

    Gargiulo et al., *Task Singular Vectors: Reducing Task Interference in Model Merging* (CVPR 2025, arXiv 2412.00081):
    the k leading singular directions of each change, made orthogonal to one another's. ``k`` is :data:`TSV_RANK` or,
    where that is less, an equal share of ``n``. The rank is at most ``k`` times the number of adapters, so an export
    as a LoRA of that rank loses nothing more. In wide layers the directions come from a randomized range
    (:mod:`.low_rank`), always the same. Published for image classifiers. Costs per adapter
    ``6 n m (k + 32)``, or ``9 n³`` where k is a large part of n, and two :func:`.low_rank.polar` of all directions.
    """
    k = max(1, min(TSV_RANK, min(changes[0][1].shape) // len(changes)))
    parts = [(a, *leading(D, k)) for a, D in changes]
    U = polar(torch.cat([U for _, U, _, _ in parts], 1))
    V = polar(torch.cat([Vh.mT for _, _, _, Vh in parts], 1))
    return (U * torch.cat([a * S for a, _, S, _ in parts])) @ V.mT


#: By what a file calls them, beside "sum".
RULES: dict[str, Callable[[Changes], Tensor]] = {"normalised": normalised, "projection": projection, "tsv": tsv}

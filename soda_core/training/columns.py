# SPDX-License-Identifier: GPL-3.0-or-later
"""A convolution as a linear layer: what the kernel sees at each output position is a column of ``in · kh · kw`` inputs.

A rotation acts on these columns, so on the activations' side it needs them side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard, cast

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Columns:
    """Between a 2-d convolution's activations ``(batch, channels, height, width)`` and rows ``(batch, h, w, …)``.

    Args:
        convolution: see :meth:`fit`.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        self.convolution = convolution

    @staticmethod
    def fit(module: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Whether a module is a convolution that this can take apart."""
        return (
            isinstance(module, nn.Conv2d)
            and module.groups == 1
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        )

    def size(self, x: Tensor) -> tuple[int, int]:
        """Height and width of the convolution's output."""
        c = self.convolution
        height, width = (
            (length + 2 * pad - step * (kernel - 1) - 1) // stride + 1
            for length, pad, step, kernel, stride in zip(
                x.shape[-2:], cast(tuple[int, int], c.padding), c.dilation, c.kernel_size, c.stride, strict=True
            )
        )
        return height, width

    def count(self, x: Tensor) -> int:
        """How many columns an input has."""
        height, width = self.size(x)
        return len(x) * height * width

    def split(self, x: Tensor) -> Tensor:
        """``(batch, in, height, width) -> (batch, h, w, in · kh · kw)``, in the order of the flattened weight."""
        c = self.convolution
        columns = F.unfold(x, c.kernel_size, c.dilation, c.padding, c.stride)  # type: ignore[arg-type]
        return rearrange(columns, "b inputs (h w) -> b h w inputs", h=self.size(x)[0])

    def linear(self, forward: Callable[[Tensor], Tensor], columns: Tensor) -> Tensor:
        """The convolution of columns: ``(batch, h, w, in · kh · kw) -> (batch, h, w, out)``.

        Args:
            forward: of the convolution, with whatever its host does to weights on the way. It sees the columns as
                patches side by side, and a stride of one patch.
        """
        c = self.convolution
        kh, kw = c.kernel_size
        patches = rearrange(columns, "b h w (c kh kw) -> b c (h kh) (w kw)", kh=kh, kw=kw)
        before = c.stride, c.padding, c.dilation
        c.stride, c.padding, c.dilation = (kh, kw), (0, 0), (1, 1)
        try:
            return rearrange(forward(patches), "b out h w -> b h w out")
        finally:
            c.stride, c.padding, c.dilation = before

    @staticmethod
    def join(y: Tensor) -> Tensor:
        """``(batch, h, w, out) -> (batch, out, h, w)``."""
        return rearrange(y, "b h w out -> b out h w")

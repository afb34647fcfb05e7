# SPDX-License-Identifier: GPL-3.0-or-later
"""A convolution with its weight given from outside, whole or taken apart into columns.

What the kernel sees at an output position is a column of ``in · kh · kw`` inputs. To columns a convolution is a linear
layer, so a rotation acts on them; on the side of the activations it needs them side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

_BY_AXES = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Convolution:
    """The geometry of a convolution; sizes are one per spatial axis."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int = 1
    padding_mode: str = "zeros"

    @classmethod
    def of(cls, module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Convolution:
        """That of a module as it is now."""
        return cls(
            module.kernel_size, module.stride, module.padding, module.dilation, module.groups, module.padding_mode
        )

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``(batch, in, *axes) -> (batch, out, *positions)``; weight ``(out, in / groups, *kernel)``."""
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, [pad for pad in reversed(cast(tuple[int, ...], padding)) for _ in range(2)], self.padding_mode)
            padding = (0,) * len(self.kernel_size)
        convolve = _BY_AXES[len(self.kernel_size)]
        return convolve(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    @property
    def has_columns(self) -> bool:
        """Whether it can be taken apart: two axes, every output sees every input, nothing but zeros around them."""
        return (
            len(self.kernel_size) == 2
            and self.groups == 1
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
        )

    def positions(self, x: Tensor) -> tuple[int, ...]:
        """Height and width of the output for ``x: (batch, in, height, width)``."""
        return tuple(
            (length + 2 * pad - step * (kernel - 1) - 1) // stride + 1
            for length, pad, step, kernel, stride in zip(
                x.shape[2:],
                cast(tuple[int, ...], self.padding),
                self.dilation,
                self.kernel_size,
                self.stride,
                strict=True,
            )
        )

    def columns(self, x: Tensor) -> Tensor:
        """``(batch, in, height, width) -> (batch, h, w, in · kh · kw)``, in the order of the flattened weight."""
        columns = F.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)  # type: ignore[arg-type]
        return rearrange(columns, "b inputs (h w) -> b h w inputs", h=self.positions(x)[0])

    def of_columns(self, columns: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``(batch, h, w, in · kh · kw) -> (batch, h, w, out)``: patches side by side, and a stride of one patch.

        A product with the flattened weight is the same up to rounding; this rounds as the frozen convolution does.
        """
        kh, kw = self.kernel_size
        patches = rearrange(columns, "b h w (c kh kw) -> b c (h kh) (w kw)", kh=kh, kw=kw)
        return rearrange(F.conv2d(patches, weight, bias, stride=(kh, kw)), "b out h w -> b h w out")

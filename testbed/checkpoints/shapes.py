# SPDX-License-Identifier: GPL-3.0-or-later
"""Parameter names and shapes of a model, written module by module."""

from __future__ import annotations


class Shapes(dict[str, tuple[int, ...]]):
    """Parameter name -> shape, filled module by module."""

    def linear(self, name: str, out: int, width: int, bias: bool = True) -> None:
        self[f"{name}.weight"] = (out, width)
        if bias:
            self[f"{name}.bias"] = (out,)

    def conv(self, name: str, out: int, channels: int, kernel: int = 3, bias: bool = True) -> None:
        self[f"{name}.weight"] = (out, channels, kernel, kernel)
        if bias:
            self[f"{name}.bias"] = (out,)

    def norm(self, name: str, width: int) -> None:
        self[f"{name}.weight"] = self[f"{name}.bias"] = (width,)

# SPDX-License-Identifier: GPL-3.0-or-later
"""A convolution taken apart into columns is the same convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from soda_core.training.columns import Columns

SHAPES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 1), "padding": (2, 0), "dilation": (2, 1), "stride": (1, 3)},
    {"kernel_size": 4, "stride": 4},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_ways_give_the_convolution_and_its_gradient(shape) -> None:
    convolution = nn.Conv2d(6, 5, **shape).double()
    columns = Columns(convolution)
    x = torch.randn(2, 6, 13, 9, dtype=torch.float64, requires_grad=True)
    expected = convolution(x)
    g = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, x, g)
    assert columns.size(x) == expected.shape[-2:]
    assert columns.count(x) == expected.shape[0] * expected[0, 0].numel()
    split = columns.split(x)
    for y in (
        split @ convolution.weight.flatten(1).T + convolution.bias,
        columns.linear(convolution, split),
    ):
        torch.testing.assert_close(columns.join(y), expected)
        torch.testing.assert_close(torch.autograd.grad(columns.join(y), x, g, retain_graph=True)[0], gradient)
    torch.testing.assert_close(convolution(x), expected)  # left as it was


def test_leaves_the_convolution_as_it_was_after_an_error() -> None:
    convolution = nn.Conv2d(4, 4, 3, stride=2, padding=1)

    def fails(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        Columns(convolution).linear(fails, torch.randn(1, 3, 3, 36))
    assert (convolution.stride, convolution.padding, convolution.dilation) == ((2, 2), (1, 1), (1, 1))


@pytest.mark.parametrize(
    ("module", "fits"),
    [
        (nn.Conv2d(4, 8, 3), True),
        (nn.Conv2d(4, 8, 3, groups=2), False),
        (nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular"), False),
        (nn.Conv2d(4, 8, 3, padding="same"), False),
        (nn.Conv1d(4, 8, 3), False),
        (nn.Linear(4, 8), False),
    ],
    ids=str,
)
def test_says_what_it_can_take_apart(module, fits) -> None:
    assert Columns.fit(module) == fits

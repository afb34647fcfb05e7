# SPDX-License-Identifier: GPL-3.0-or-later
"""An adapted layer gives the same on every side, and a convolution the same whole or taken apart into columns."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from soda_core.spectral import decompose
from soda_core.training.convolution import Convolution
from soda_core.training.forward import AdaptedForward
from soda_core.training.settings import TrainSettings
from soda_core.training.trainable import TrainableAdapter

SHAPES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 1), "padding": (2, 0), "dilation": (2, 1), "stride": (1, 3)},
    {"kernel_size": 4, "stride": 4},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_ways_give_the_convolution_and_its_gradient(shape) -> None:
    module = nn.Conv2d(6, 5, **shape).double()
    convolution, W, b = Convolution.of(module), module.weight.detach(), module.bias.detach()
    x = torch.randn(2, 6, 13, 9, dtype=torch.float64, requires_grad=True)
    expected = module(x)
    g = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, x, g)
    assert convolution.has_columns and convolution.positions(x) == expected.shape[-2:]
    columns = convolution.columns(x)
    for y in (
        convolution(x, W, b),
        (columns @ W.flatten(1).T + b).movedim(-1, 1),
        convolution.of_columns(columns, W, b).movedim(-1, 1),
    ):
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(torch.autograd.grad(y, x, g, retain_graph=True)[0], gradient)


@pytest.mark.parametrize(
    ("module", "axes"),
    [
        (nn.Conv2d(4, 8, 3, groups=2), (9, 7)),
        (nn.Conv2d(4, 8, 3, padding=(1, 2), padding_mode="circular"), (9, 7)),
        (nn.Conv2d(4, 8, 3, padding="same"), (9, 7)),
        (nn.Conv1d(4, 8, 3, padding=1, stride=2), (9,)),
        (nn.Conv3d(4, 8, 3, padding=(0, 1, 2), padding_mode="replicate"), (5, 6, 7)),
    ],
    ids=str,
)
def test_what_cannot_be_taken_apart_is_computed_whole(module, axes) -> None:
    convolution, x = Convolution.of(module), torch.randn(2, 4, *axes)
    assert not convolution.has_columns
    torch.testing.assert_close(convolution(x, module.weight, module.bias), module(x), rtol=0, atol=0)


@dataclass
class Frozen:
    """A layer in memory that counts how often its weight is asked for."""

    W: Tensor
    b: Tensor | None = None
    convolution: Convolution | None = None
    asked: int = 0

    def weight_and_bias(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        self.asked += 1
        return self.W.to(x.dtype), self.bias(x)

    def bias(self, x: Tensor) -> Tensor | None:
        return None if self.b is None else self.b.to(x.dtype)


def adapted(frozen: Frozen, decomposition, train, pristine=None, turned: bool = True):
    """Its adapter, with random rotations and shifts, and forward pass."""
    settings = TrainSettings(decomposition=decomposition, train=train)
    base = frozen.W if pristine is None else pristine
    spectra = {"x": decompose(base, decomposition)} if settings.shifts else {}
    trainable = TrainableAdapter({"x": tuple(frozen.W.shape)}, settings, spectra)
    if turned:
        with torch.no_grad():
            for k, stack in trainable.rotations.items():
                stack.copy_(torch.linalg.qr(torch.randn(len(stack), int(k), int(k)))[0])
            if trainable.shifts is not None:
                trainable.shifts.uniform_(-1, 1)
        trainable.begin_step()
    return trainable, AdaptedForward(frozen, trainable.layers["x"], pristine)


LAYERS = {
    "linear": ((10, 12), None, (2, 7, 12)),
    "linear without bias": ((14, 12), None, (5, 12)),
    "1x1": ((10, 12, 1, 1), Convolution((1, 1), (1, 1), (0, 0), (1, 1)), (2, 12, 7, 5)),
    "3x3": ((10, 12, 3, 3), Convolution((3, 3), (1, 2), (1, 1), (1, 1)), (2, 12, 7, 5)),
}
SIDES = [("weight", "weight"), ("activations", "weight"), ("activations", "activations")]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("train", ["rotation only", "shift only", "rotation + shift"])
@pytest.mark.parametrize("decomposition", ["svd", "qr"])
def test_every_side_gives_the_same(layer, train, decomposition) -> None:
    shape, convolution, x_shape = LAYERS[layer]
    frozen = Frozen(torch.randn(shape), torch.randn(shape[0]) if "without" not in layer else None, convolution)
    trainable, forward = adapted(frozen, decomposition, train)
    x = torch.randn(x_shape, requires_grad=True)
    with trainable.disabled():
        base = forward(x).detach()
    g, results = torch.randn_like(base), []
    for sides in SIDES:
        trainable.layers["x"].sides = lambda *_, sides=sides: sides
        trainable.begin_step()
        y = forward(x)
        results.append([y, *torch.autograd.grad(y, [x, *trainable.parameters()], g)])
    assert (results[0][0] - base).abs().max() > 0.1
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("layer", LAYERS)
def test_an_untrained_layer_is_the_frozen_one_and_so_is_a_disabled_one(layer) -> None:
    shape, convolution, x_shape = LAYERS[layer]
    frozen, x = Frozen(torch.randn(shape), torch.randn(shape[0]), convolution), torch.randn(x_shape)
    plain = (convolution or nn.functional.linear)(x, frozen.W, frozen.b)
    for train in ("rotation only", "rotation + shift"):
        trainable, forward = adapted(frozen, "qr", train, turned=False)
        torch.testing.assert_close(forward(x), plain, atol=1e-5, rtol=1e-5)
        trainable, forward = adapted(frozen, "qr", train)
        with trainable.disabled():
            assert torch.equal(forward(x), plain)
        assert not torch.allclose(forward(x), plain, atol=0.1), "enabled again"


def test_a_weight_that_the_decomposition_stands_for_stays_where_it_is() -> None:
    frozen = Frozen(torch.randn(8, 12), torch.randn(8))
    trainable, forward = adapted(frozen, "svd", "rotation + shift")
    trainable.layers["x"].sides = lambda *_: ("activations", "activations")
    forward(torch.randn(3, 12))
    assert frozen.asked == 0
    forward(torch.randn(3, 12, dtype=torch.bfloat16))  # where a decomposition in float32 does not
    assert frozen.asked == 1


def test_a_changed_weight_keeps_its_change_beside_the_adapter() -> None:
    """As when a LoRA stands in front: the adapter's own change is that of the pristine weight."""
    pristine, lora = torch.randn(8, 12), torch.randn(8, 12)
    plain, changed = Frozen(pristine), Frozen(pristine + lora)
    torch.manual_seed(3)
    _, alone = adapted(plain, "svd", "rotation + shift")
    torch.manual_seed(3)
    trainable, forward = adapted(changed, "svd", "rotation + shift", pristine)
    trainable.layers["x"].sides = lambda *_: ("activations", "activations")  # not asked
    x = torch.randn(5, 12)
    torch.testing.assert_close(forward(x), alone(x) + x @ lora.T, atol=1e-4, rtol=1e-4)

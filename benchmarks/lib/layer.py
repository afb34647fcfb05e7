# SPDX-License-Identifier: GPL-3.0-or-later
"""One linear layer, forward and backward: frozen, with a LoRA, and with each of our adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from soda_core.spectral import Spectrum, decompose
from soda_core.training.forward import AdaptedForward
from soda_core.training.settings import TrainSettings
from soda_core.training.trainable import TrainableAdapter
from testbed.host import import_host

Ways = dict[str, Callable[[], object]]

KINDS = {
    "rotation": TrainSettings(train="rotation only"),
    "rotation + QR shift": TrainSettings(decomposition="qr"),
    "rotation + SVD shift": TrainSettings(decomposition="svd"),
    "SVD shift": TrainSettings(decomposition="svd", train="shift only"),
}


def layer_ways(
    out: int, in_features: int, tokens: int, count: int, kinds: Sequence[str] = tuple(KINDS), rank: int = 4,
    known: Mapping[str, Spectrum] | None = None,
) -> tuple[Ways, dict[str, str]]:  # fmt: skip
    """``count`` like layers in every way, and for each of ours where it puts rotation / shift.

    The frozen layer's gradient goes to its input only.

    Args:
        known: decompositions of any weight of the shape, by kind; what is missing is computed.
    """
    import_host()
    from soda_core.host.training.frozen import HostLayer

    modules = [_module(out, in_features) for _ in range(count)]
    x = torch.randn(1, tokens, in_features, requires_grad=True)
    g = torch.randn(1, tokens, out)
    ways: Ways = {"frozen": _frozen(modules, x, g), f"LoRA rank {rank}": _lora(modules, x, g, rank)}
    # one decomposition for all kinds that use it
    spectra: dict[str, list[Spectrum]] = {kind: [spectrum] * count for kind, spectrum in (known or {}).items()}
    chosen = {}
    for kind in kinds:
        settings = KINDS[kind]
        shapes = {str(i): (out, in_features) for i in range(count)}
        if settings.shifts and settings.decomposition not in spectra:
            spectra[settings.decomposition] = [decompose(m.weight, settings.decomposition) for m in modules]
        own = spectra[settings.decomposition] if settings.shifts else []
        adapter = TrainableAdapter(shapes, settings, dict(zip(shapes, own, strict=False)))
        chosen[kind] = " / ".join(next(iter(adapter.layers.values())).sides(tokens))
        layers = adapter.layers.values()
        forwards = [AdaptedForward(HostLayer(m), layer) for m, layer in zip(modules, layers, strict=True)]
        ways[kind] = _adapted(adapter, forwards, x, g)
    return ways, chosen


def _module(out: int, in_features: int) -> torch.nn.Module:
    import comfy.ops

    module = comfy.ops.manual_cast.Linear(in_features, out, bias=False)
    module.weight = torch.nn.Parameter(torch.randn(out, in_features) / in_features**0.5, requires_grad=False)
    return module  # type: ignore[no-any-return]


def _frozen(modules: list[torch.nn.Module], x: Tensor, g: Tensor) -> Callable[[], object]:
    return lambda: [torch.autograd.grad(m(x), [x], g) for m in modules]


def _lora(modules: list[torch.nn.Module], x: Tensor, g: Tensor, rank: int) -> Callable[[], object]:
    down = [torch.randn(rank, m.in_features).requires_grad_() for m in modules]  # type: ignore[call-overload]
    up = [torch.zeros(m.out_features, rank).requires_grad_() for m in modules]  # type: ignore[call-overload]

    def run() -> None:
        for m, a, b in zip(modules, down, up, strict=True):
            torch.autograd.grad(m(x) + x @ a.T @ b.T, [x, a, b], g)

    return run


def _adapted(
    adapter: TrainableAdapter, forwards: Sequence[Callable[[Tensor], Tensor]], x: Tensor, g: Tensor
) -> Callable[[], object]:
    parameters = list(adapter.parameters())

    def run() -> None:
        adapter.begin_step()
        # one backward pass for all, as in a model
        torch.autograd.grad([forward(x) for forward in forwards], [x, *parameters], [g] * len(forwards))

    return run

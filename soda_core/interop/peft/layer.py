# SPDX-License-Identifier: GPL-3.0-or-later
"""A linear or convolution layer with SODA adapters, as PEFT wants it: several by name, switched, merged, unmerged."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from ...base_weight import BaseWeight
from ...errors import SettingsError, SodaError
from ...kronecker import grouped, identity_factors
from ...layer import SodaLayer
from ...linalg import result_dtype
from ...spectral import SvdSpectrum
from ...training.convolution import Convolution
from ...training.forward import AdaptedForward
from ...training.settings import TrainSettings
from ...training.trainable_layer import TrainableLayer
from .config import SodaConfig
from .pristine import PristineWeight


class SodaTunerLayer(nn.Module, BaseTunerLayer):
    """In place of ``base_layer``: ``y = (W0 + Σ s_i (W_i - W0)) x + b`` over the active adapters.

    Every change is taken from the pristine W0, so active adapters add up in any order, as chained loaders and the delta
    merge do. W0 is decomposed when a shift first needs it. Rotations and shifts are float32 whatever the model is:
    rounded to bfloat16, a rotation is none.
    """

    adapter_layer_names = ("soda_factors", "soda_shift")
    other_param_names = ("adapters", "scaling")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: SodaConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        layer = self.get_base_layer()
        convolves = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        if not (convolves or isinstance(layer, nn.Linear)) or not layer.weight.is_floating_point():
            raise SettingsError(
                f"SODA adapts linear and convolution layers with floating-point weights, not a {type(layer).__name__} "
                f"{f'with {layer.weight.dtype}' if hasattr(layer, 'weight') else 'without a weight'}"
            )
        self.convolution = Convolution.of(layer) if convolves else None
        self.soda_factors = nn.ModuleDict()  #: ``R_i (k_i, k_i)`` by adapter
        self.soda_shift = nn.ParameterDict()  #: the shift ``(r,)`` by adapter, or the heights of its curve's knots
        self.adapters: dict[str, TrainSettings] = {}
        self.scaling: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self.pristine = PristineWeight(layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def get_base_layer(self) -> Any:
        """The layer itself, a linear or a convolution."""
        return super().get_base_layer()

    def factors(self, adapter_name: str) -> list[nn.Parameter]:
        """``R_i (k_i, k_i)`` of an adapter; empty where it does not rotate."""
        return list(self.soda_factors[adapter_name].parameters())

    def update_layer(self, adapter_name: str, config: SodaConfig, inference_mode: bool = False) -> None:
        """Add an adapter that changes nothing yet."""
        settings, weight = config.settings(), self.pristine()
        sizes = settings.rotation_sizes(tuple(weight.shape))
        self.adapters[adapter_name], self.scaling[adapter_name] = settings, 1.0
        self.soda_factors[adapter_name] = nn.ParameterList(
            nn.Parameter(R.to(weight.device)) for R in identity_factors(sizes)
        )
        if settings.shifts:
            rank = min(weight.shape[0], weight[0].numel())
            zeros = torch.zeros(settings.shift_size(rank), device=weight.device)
            self.soda_shift[adapter_name] = nn.Parameter(zeros)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def base_weight(self, adapter_name: str) -> BaseWeight:
        """W0 with the decomposition that an adapter needs."""
        shifts = adapter_name in self.soda_shift
        return self.pristine.decomposed(self.adapters[adapter_name].decomposition if shifts else None)

    def _trainable(self, adapter_name: str) -> TrainableLayer:
        """An adapter with its parameters as they are now."""
        kind, base = self.adapters[adapter_name].decomposition, self.base_weight(adapter_name)
        dtype = result_dtype(base.stored)
        factors = [R.to(dtype) for R in self.factors(adapter_name)]
        layer = TrainableLayer(base.shape, tuple(len(R) for R in factors), kind, None)
        layer.factors, layer.groups = factors, grouped(factors) if factors else []
        if adapter_name in self.soda_shift:
            layer.spectrum, layer.shift = base.spectrum(kind), self.soda_shift[adapter_name].to(dtype)
            if isinstance(layer.spectrum, SvdSpectrum) and layer.shift.numel() < layer.rank:
                layer.heights = layer.shift
                layer.shift = layer.spectrum.knots(layer.heights.numel()) @ layer.heights
        return layer

    # -------------------------------------------------------------------------------------------------------- forward

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        active = [name for name in self.active_adapters if name in self.adapters]
        if self.disable_adapters or self.merged or not active:
            return self.base_layer(x, *args, **kwargs)
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):  # rotations want float32
            if len(active) == 1 and self.scaling[active[0]] == 1.0:
                return AdaptedForward(_Frozen(self), self._trainable(active[0]))(x)
            product = self.convolution or nn.functional.linear
            return product(x, self._with(active).to(x), _Frozen(self).bias(x))

    def _with(self, adapter_names: Iterable[str]) -> Tensor:
        """W0 with adapters, in float32 or better; differentiable in their parameters."""
        return sum((self._delta(name) for name in adapter_names), self.pristine.exact())

    def _delta(self, adapter_name: str) -> Tensor:
        weight = self.pristine.exact()
        return self.scaling[adapter_name] * (self._trainable(adapter_name).weight(weight) - weight)

    # ---------------------------------------------------------------------------------------------------------- merge

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write adapters into the base layer, whose own weight is kept until :meth:`unmerge`.

        Args:
            safe_merge: refuse to write NaN or infinite values.
            adapter_names: the active ones by default.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.adapters]
        if not names:
            return
        weight = self._with([*self.merged_adapters, *names])
        if safe_merge and not bool(torch.isfinite(weight).all()):
            raise SodaError(f"NaN or infinite values in a weight merged with {names}; the adapter is broken")
        self.pristine.replace(weight)
        self.merged_adapters += names

    def unmerge(self) -> None:
        """Give the base layer its own weight back, to the bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.pristine.restore()
        self.merged_adapters.clear()

    @torch.no_grad()
    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """What merging an adapter adds to W0, in float32 or better."""
        return self._delta(adapter_name)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    # ------------------------------------------------------------------------------------------------------- strength

    def set_scale(self, adapter: str, scale: float) -> None:
        """Linear strength of an adapter: 0 = base, 1 = as trained."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale

    def scale_layer(self, scale: float) -> None:
        """Multiply the strengths of the active adapters."""
        for name in self.active_adapters:
            self.set_scale(name, self.scaling.get(name, 1.0) * scale)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Undo :meth:`scale_layer`, all of it where no scale is given."""
        for name in self.active_adapters:
            self.set_scale(name, 1.0 if scale is None else self.scaling.get(name, 1.0) / scale)

    # ------------------------------------------------------------------------------------------------------ conversion

    @torch.no_grad()
    def soda_layer(self, adapter_name: str) -> SodaLayer:
        """An adapter of this layer as our files hold it, with its base check."""
        layer = self._trainable(adapter_name)

        def copied(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach().to("cpu", torch.float32, copy=True)

        soda = SodaLayer(
            layer.decomposition,
            [R.detach().to("cpu", torch.float32, copy=True) for R in layer.factors],
            copied(layer.shift),
            knots=copied(layer.heights),
        )
        return soda.with_base_check(self.base_weight(adapter_name))

    @torch.no_grad()
    def set_soda_layer(self, adapter_name: str, soda: SodaLayer) -> None:
        """Take values over into an adapter of this layer; what ``soda`` leaves out changes nothing."""
        for R, value in zip(self.factors(adapter_name), soda.factors, strict=False):
            R.copy_(value)
        if soda.shift is not None:
            parameter = self.soda_shift[adapter_name]
            curve = soda.knots is not None and soda.knots.shape == parameter.shape
            parameter.copy_(soda.knots if curve else soda.shift)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """PEFT's own also casts to the base layer's dtype."""
        device = device or self.get_base_layer().weight.device
        for parameters in (self.soda_factors, self.soda_shift):
            if adapter_name in parameters:
                parameters[adapter_name] = parameters[adapter_name].to(device)

    def __repr__(self) -> str:
        return f"soda.{super().__repr__()}"


class _Frozen:
    """The base layer for :class:`...training.forward.AdaptedForward`."""

    def __init__(self, layer: SodaTunerLayer) -> None:
        self.layer, self.convolution = layer, layer.convolution

    def weight_and_bias(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.layer.pristine().to(x), self.bias(x)

    def bias(self, x: Tensor) -> Tensor | None:
        bias = self.layer.get_base_layer().bias
        return None if bias is None else bias.to(x)

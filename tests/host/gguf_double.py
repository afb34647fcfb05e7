# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for the packs that load GGUF bases: what such a pack offers and does, in its own words.

Weights are Q8_0 or Q4_0 blocks as the ``gguf`` package makes them. As in those packs, a tensor tells its real shape,
cannot be copied and carries its patches; a layer unpacks it and applies them; the patcher hands them over as it loads.
``SODA_GGUF_PACK`` names the folder of a real pack: then the tests run with its classes instead.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

Kind = gguf.GGMLQuantizationType


def write(path: Path, weights: dict[str, Tensor], kind: str) -> None:
    """A GGUF file: matrices of a transformer block in blocks of 32, everything else as float16 or float32."""
    writer = gguf.GGUFWriter(path, "sd1")
    for name, weight in weights.items():
        quantised = weight.ndim == 2 and "transformer_blocks" in name
        chosen = Kind[kind] if quantised else Kind.F16 if weight.ndim > 1 else Kind.F32
        data = gguf.quants.quantize(weight.float().numpy(), chosen)
        if weight.ndim > 1 and not quantised:
            data = data.reshape(tuple(weight.shape))
        writer.add_tensor(name, data, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(path: Path) -> Any:
    """A MODEL of a GGUF file; in inference mode, as nodes run."""
    pack = os.environ.get("SODA_GGUF_PACK")
    return _of_pack(Path(pack), path) if pack else _of_double(path)


def _of_pack(folder: Path, path: Path) -> Any:
    name = "real_gguf_pack"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    import folder_paths

    folder_paths.add_model_folder_path("unet", str(path.parent))
    nodes = sys.modules[f"{name}.nodes"]
    return nodes.UnetLoaderGGUF().load_unet(path.name)[0]


# ----------------------------------------------------------------------------------------------------------- the double


class PackedTensor(Tensor):
    """Blocks of a quantised weight."""

    @staticmethod
    def of(data: Tensor, tensor_type: Kind, tensor_shape: torch.Size) -> PackedTensor:
        made = data.as_subclass(PackedTensor)
        made.tensor_type, made.tensor_shape, made.patches = tensor_type, tensor_shape, []
        return made

    def to(self, *args: Any, **kwargs: Any) -> Any:
        moved = super().to(*args, **kwargs)
        moved.tensor_type, moved.tensor_shape = self.tensor_type, self.tensor_shape
        moved.patches = list(self.patches)
        return moved

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def detach(self) -> Any:
        return self

    @property
    def shape(self) -> Any:
        return getattr(self, "tensor_shape", None) or self.size()


def packed(weight: Any) -> bool:
    return getattr(weight, "tensor_type", None) not in (None, Kind.F32, Kind.F16)


def operations() -> Any:
    """The host's layers, of packed weights."""
    import comfy.lora
    import comfy.ops

    class Unpacking:
        comfy_cast_weights = True

        def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
            if not isinstance(self, torch.nn.Linear) and not packed(state.get(f"{prefix}weight")):
                super()._load_from_state_dict(state, prefix, *rest)
                return
            for part in ("weight", "bias"):
                if state.get(prefix + part) is not None:
                    setattr(self, part, torch.nn.Parameter(state[prefix + part], requires_grad=False))

        def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
            for part in ("weight", "bias"):
                if getattr(self, part) is not None:
                    destination[prefix + part] = torch.zeros_like(getattr(self, part), device="meta")

        def get_weight(self, tensor: Any, dtype: torch.dtype) -> Any:
            if tensor is None:
                return None
            if packed(tensor):
                found = gguf.quants.dequantize(tensor.as_subclass(Tensor).cpu().numpy(), tensor.tensor_type)
                weight = torch.from_numpy(found).reshape(tensor.tensor_shape).to(dtype)
            else:
                weight = tensor.as_subclass(Tensor).to(dtype)
            for patches, key in getattr(tensor, "patches", []):
                weight = comfy.lora.calculate_weight(patches, weight, key)
            return weight

        def cast_bias_weight(self, input: Any = None, dtype: Any = None, device: Any = None, **_: Any) -> Any:
            dtype, device = dtype or input.dtype, device or input.device
            return tuple(
                None if part is None else self.get_weight(part.to(device), dtype).to(dtype)
                for part in (self.weight, self.bias)
            )

        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            weight, bias = self.cast_bias_weight(input)
            return self.product(input, weight, bias)

    class Operations(comfy.ops.manual_cast):
        class Linear(Unpacking, comfy.ops.manual_cast.Linear):
            def __init__(self, inputs: int, outputs: int, bias: bool = True, device: Any = None, dtype: Any = None):
                torch.nn.Module.__init__(self)
                self.in_features, self.out_features, self.weight, self.bias = inputs, outputs, None, None

            def product(self, *args: Any) -> Tensor:
                return torch.nn.functional.linear(*args)

        class Conv2d(Unpacking, comfy.ops.manual_cast.Conv2d):
            def product(self, *args: Any) -> Tensor:
                return self._conv_forward(*args)

    return Operations


def patcher_class() -> Any:
    import comfy.model_patcher
    import comfy.utils

    class Patcher(comfy.model_patcher.ModelPatcher):
        def patch_weight_to_device(self, key: str, device_to: Any = None, *rest: Any, **more: Any) -> Any:
            weight = comfy.utils.get_attr(self.model, key)
            if not packed(weight):
                return super().patch_weight_to_device(key, device_to, *rest, **more)
            if key in self.patches:
                moved = weight.to(device_to)
                moved.patches = [(self.patches[key], key)]
                comfy.utils.set_attr_param(self.model, key, moved)
            return None

        def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:
            if unpatch_weights:
                for weight in filter(packed, self.model.parameters()):
                    weight.patches = []
            return super().unpatch_model(device_to=device_to, unpatch_weights=unpatch_weights)

        def load(self, *args: Any, force_patch_weights: bool = False, **kwargs: Any) -> Any:
            return super().load(*args, force_patch_weights=True, **kwargs)

        def clone(self, *args: Any, **kwargs: Any) -> Any:
            own, self.__class__ = self.__class__, Patcher
            made = super().clone(*args, **kwargs)
            self.__class__ = own
            return made

    return Patcher


def _of_double(path: Path) -> Any:
    import comfy.sd

    weights = {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = torch.Size(int(side) for side in reversed(tensor.shape))
        data = torch.from_numpy(tensor.data.copy())
        if tensor.tensor_type in (Kind.F32, Kind.F16):
            data = data.view(*shape)
        weights[tensor.name] = PackedTensor.of(data, tensor.tensor_type, shape)
    model = comfy.sd.load_diffusion_model_state_dict(weights, model_options={"custom_operations": operations()})
    return patcher_class().clone(model)

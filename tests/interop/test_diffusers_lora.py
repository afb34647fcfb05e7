# SPDX-License-Identifier: GPL-3.0-or-later
"""diffusers' own loader reads the exported files: with its names, and with kohya's, which it converts itself."""

from __future__ import annotations

import pytest
import torch

from soda_core import SodaAdapter, SodaLayer
from soda_core.base_weight import BaseWeight
from soda_core.interop.layer_map import LayerMap, joined
from soda_core.interop.lora import export
from soda_core.interop.lora_settings import LoraSettings
from soda_core.interop.names import unet_paths
from soda_core.kronecker import factor_sizes
from testbed import checkpoints, diffusers_models

from ..core.conftest import random_rotation

BLOCKS = {
    "block_out_channels": (32, 64), "layers_per_block": 2, "cross_attention_dim": 32, "norm_num_groups": 8,
    "attention_head_dim": 8, "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
SDXL = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "use_linear_projection": True,
    "projection_class_embeddings_input_dim": 48, "transformer_layers_per_block": 2,
}  # fmt: skip
KINDS = {"SD 1": {}, "SDXL": SDXL}


def make_unet(kind: str):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(**BLOCKS, **KINDS[kind])


def layer_names(kind: str, modules: set[str]) -> list[str]:
    """What a checkpoint of such a UNet calls its layers."""
    names = ["input_blocks.0.0", "time_embed.0", "time_embed.2", "out.0", "out.2"]
    attention = sorted({path.split(".attentions.0.")[1] for path in modules if ".attentions.0." in path})
    residual = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
    for block in (1, 2, 4, 5):
        names += [f"input_blocks.{block}.0.{n}" for n in residual] + [f"input_blocks.{block}.1.{n}" for n in attention]
    for block in range(6):
        names += [f"output_blocks.{block}.0.{n}" for n in (*residual, "skip_connection")]
        names += [f"output_blocks.{block}.1.{n}" for n in attention]
    names += [f"middle_block.{i}.{n}" for i in (0, 2) for n in residual] + [f"middle_block.1.{n}" for n in attention]
    names += ["input_blocks.3.0.op", "output_blocks.2.2.conv", "input_blocks.4.0.skip_connection"]
    names += ["label_emb.0.0", "label_emb.0.2"] if kind == "SDXL" else []
    return [f"diffusion_model.{name}" for name in names]


def weighted_modules(model) -> dict[str, torch.nn.Module]:
    return {name: module for name, module in model.named_modules() if getattr(module, "weight", None) is not None}


@pytest.mark.parametrize("kind", list(KINDS))
def test_paths_are_the_modules_of_diffusers(kind) -> None:
    """Every path is one of a real UNet, and every module with a weight is the path of one name."""
    modules = set(weighted_modules(make_unet(kind)))
    names = layer_names(kind, modules)
    paths = unet_paths(names)
    assert set(paths.values()) == modules and set(paths) == set(names) and len(paths) == len(modules)


@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_diffusers_loads_the_change(kind, naming) -> None:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    unet = make_unet(kind)
    modules = weighted_modules(unet)
    names = layer_names(kind, set(modules))
    paths = unet_paths(names)
    before = {name: modules[path].weight.detach().clone() for name, path in paths.items()}
    kinds = ("in_layers.2", "0.op", "proj_in", "to_q", "to_k", "to_v", "to_out.0", "ff.net.2")
    layers = {}
    for i, (name, W) in enumerate(before.items()):
        if W.ndim > 1 and name.endswith(kinds):
            factors = [random_rotation(k, 0.2, seed=i) for k in factor_sizes(W[0].numel())]
            layers[name] = SodaLayer("svd", factors, None, tuple(W.shape))
    assert {W.ndim for name, W in before.items() if name in layers} == {2, 4}
    adapter = SodaAdapter(layers, {"title": "x"})
    made = export(adapter, {n: BaseWeight(W) for n, W in before.items()}, LoraSettings(naming, dtype="float32", rank=8))
    assert 0.05 < made.report.error < 0.9

    pipeline = StableDiffusionXLPipeline if kind == "SDXL" else StableDiffusionPipeline
    found = pipeline.lora_state_dict(dict(made.tensors), unet_config=unet.config)
    pipeline.load_lora_into_unet(found[0], found[1], unet, adapter_name="x")
    unet.fuse_lora()
    for name, path in paths.items():
        module = dict(unet.named_modules())[path]
        W = getattr(module, "base_layer", module).weight.detach()
        if name not in layers or not made.report.layers[name].rank:
            assert torch.equal(W, before[name]), name
            continue
        delta = layers[name].delta(before[name])
        left_out = float((W - before[name] - delta).norm())
        assert left_out == pytest.approx(made.report.layers[name].left_out, rel=1e-3, abs=1e-5), name
        assert left_out < delta.norm()


@pytest.mark.parametrize("preset", ["sd35-d2-dual", "flux-d1"])
def test_fused_layers_are_split_for_diffusers(preset) -> None:
    """Queries, keys and values are one layer here and three there; so are more in Flux's single blocks."""
    tensors = checkpoints.build(preset, clip="none", seed=3)["unet"]
    before = {
        name.removeprefix("model.").removesuffix(".weight"): W.float()
        for name, W in tensors.items()
        if name.endswith(".weight")
    }
    kinds = ("qkv", "linear1", "linear2", "proj", "lin", "final_layer.adaLN_modulation.1")
    model = diffusers_models.build(preset, tensors)
    parts = LayerMap(model).parts
    layers = {
        name: SodaLayer(
            "svd", [random_rotation(k, 0.2, seed=i) for k in factor_sizes(W.shape[1])], None, tuple(W.shape)
        )
        for i, (name, W) in enumerate(before.items())
        if name.endswith(kinds) and W.ndim == 2 and name in parts
    }
    assert {len(parts[name]) for name in layers} == ({1, 3} if preset.startswith("sd3") else {1, 3, 4})
    settings = LoraSettings("diffusers", dtype="float32", rank=16)
    made = export(SodaAdapter(layers, {"title": "x"}), {n: BaseWeight(W) for n, W in before.items()}, settings)
    assert 0.05 < made.report.error < 0.99
    model.load_lora_adapter(dict(made.tensors), prefix="transformer")
    model.fuse_lora()
    modules = dict(model.named_modules())
    for name in parts:
        weights = {p.module: getattr(modules[p.module], "base_layer", modules[p.module]).weight for p in parts[name]}
        W = joined(parts[name], weights).detach()
        if name not in layers or not made.report.layers[name].rank:
            assert torch.equal(W, before[name]), name
            continue
        left_out = float((W - before[name] - layers[name].delta(before[name])).norm())
        assert left_out == pytest.approx(made.report.layers[name].left_out, rel=1e-3, abs=1e-5), name
        assert left_out < made.report.layers[name].norm

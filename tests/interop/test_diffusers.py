# SPDX-License-Identifier: GPL-3.0-or-later
"""ComfyUI and diffusers predict the same from the same latents, with and without adapters."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor

from soda_core import SodaAdapter, SodaLayer, merge
from soda_core.errors import BaseMismatchError, SettingsError, ShapeError
from soda_core.interop.diffusers import load, unload
from soda_core.interop.layer_map import LayerMap, Part, Rows, joined, separated
from soda_core.spectrum_store import SpectrumStore
from soda_core.training.settings import TrainSettings
from testbed import checkpoints, demo_base, diffusers_models
from testbed.checkpoints.diffusion import Flux, MMDiT
from testbed.predictions import PREDICTIONS

from ..core.conftest import random_rotation

pytestmark = pytest.mark.host

#: float32 products in another order differ by 1e-6 (``python dev.py bench diffusers``)
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=PREDICTIONS)
def pair(request, host, tmp_path_factory):
    """A base model both ways: ``pair.comfy`` a MODEL, ``pair.fresh()`` diffusers' with pristine weights."""
    import comfy.sd

    preset = request.param
    if preset == demo_base.PRESET:
        parts = demo_base.parts()
        path = checkpoints.write(tmp_path_factory.mktemp("demo") / "base.safetensors", parts, "f32")
    else:
        path, parts = host.checkpoint(preset, "f32"), checkpoints.build(preset, clip="none", seed=3)
    with torch.inference_mode():
        model = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False, output_clip=False)[0]
    ours = diffusers_models.build(preset, parts["unet"])
    in_comfy, in_diffusers, inputs = PREDICTIONS[preset]

    def comfy_prediction(patched) -> Tensor:
        with torch.inference_mode():
            comfy.model_management.load_models_gpu([patched])
            assert patched.model.get_dtype() == torch.float32
            return in_comfy(patched.model.diffusion_model, inputs).clone()

    def diffusers_prediction(model) -> Tensor:
        with torch.inference_mode():
            return in_diffusers(model, inputs).clone()

    return SimpleNamespace(
        preset=preset,
        comfy=model,
        fresh=lambda: copy.deepcopy(ours),
        predict_comfy=comfy_prediction,
        predict=diffusers_prediction,
        layers=host.core("host.base").layer_shapes(model),
        apply=host.core("host.apply").apply_adapter,
        core=host.core,
    )


def an_adapter(pair, decomposition: str = "qr", seed: int = 0, title: str = "fox", only: str = "") -> SodaAdapter:
    """Rotations and shifts on the first and the last layer of every kind, linear and convolution."""
    g = torch.Generator().manual_seed(seed)
    settings = TrainSettings(decomposition=decomposition)
    layers = {}
    names = [name for name in pair.layers if only in name]
    kinds = [re.sub(r"\d+", "*", name) for name in names]
    first, last = dict(zip(reversed(kinds), reversed(names), strict=True)), dict(zip(kinds, names, strict=True))
    for i, name in enumerate(sorted({*first.values(), *last.values()})):
        shape = pair.layers[name]
        rank = min(shape[0], torch.Size(shape[1:]).numel())
        try:
            sizes = settings.rotation_sizes(shape)
        except SettingsError:  # a prime width
            sizes = ()
        layers[name] = SodaLayer(
            decomposition,
            [random_rotation(k, angle=0.1, seed=seed + i) for k in sizes],
            0.02 * torch.randn(rank, generator=g),
            shape=tuple(shape),
        )
    return SodaAdapter(layers, {"title": title, "base_model": {"name": pair.preset}})


def in_host(pair, adapter: SodaAdapter, tmp_path):
    """The adapter as the pack in the host reads it from its file."""
    adapter.save(tmp_path / "adapter.safetensors")
    return pair.core("adapter").SodaAdapter.load(tmp_path / "adapter.safetensors")


#: Models as they are published, and what their checkpoints hold.
PUBLISHED = {
    "SD 1.5": (UNet2DConditionModel, {"cross_attention_dim": 768}, checkpoints.PRESETS["sd15-full"][1]),
    "SDXL": (
        UNet2DConditionModel,
        {
            "cross_attention_dim": 2048,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "use_linear_projection": True,
            "attention_head_dim": (5, 10, 20),
        },
        checkpoints.PRESETS["sdxl-full"][1],
    ),
    "SD 3.5 medium": (
        SD3Transformer2DModel,
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "qk_norm": "rms_norm",
            "dual_attention_layers": tuple(range(13)),
            "pos_embed_max_size": 16,
        },
        MMDiT(24, query_key_norm=True, positions=16, dual=13),
    ),
    "Flux": (FluxTransformer2DModel, {"guidance_embeds": True}, Flux(19, 38, heads=24)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_layer_of_a_published_model_is_found_whole(name) -> None:
    kind, config, sizes = PUBLISHED[name]
    with torch.device("meta"):
        model = kind(**config)
    weights = {module: layer.weight for module, layer in model.named_modules() if hasattr(layer, "weight")}
    places = LayerMap(model).parts
    found = {layer: tuple(joined(parts, weights).shape) for layer, parts in places.items()}
    expected = {
        f"diffusion_model.{key.removesuffix('.weight')}": shape
        for key, shape in sizes.shapes().items()
        if key.endswith(".weight") and len(shape) >= 2
    }
    assert found == expected


def test_what_is_joined_is_separated_again() -> None:
    halves = (Fraction(0), Fraction(1, 2)), (Fraction(1, 2), Fraction(1))
    parts = [Part("a", (halves[1],)), Part("b", (halves[0],))]
    weights = {"a": torch.ones(3, 2), "b": torch.zeros(3, 2)}
    whole = joined(parts, weights)
    assert whole[:3].eq(0).all() and whole[3:].eq(1).all()
    assert all(torch.equal(part, weights[name]) for name, part in separated(parts, whole).items())
    turned = [Part("a", (halves[1], halves[0]))]
    assert torch.equal(joined(turned, {"a": whole}), torch.cat([whole[3:], whole[:3]]))
    with pytest.raises(ShapeError, match="only some of a layer's rows: 1/2 to 1 of 1"):
        joined(parts[:1], weights)
    with pytest.raises(NotImplementedError, match=r"of a checkpoint's tensor cannot be followed"):
        torch.flip(Rows("qkv"), (0,))


# ---------------------------------------------------------------------------------------------------------------- tests


def test_the_base_model_predicts_the_same(pair) -> None:
    expected = pair.predict_comfy(pair.comfy)
    found = pair.predict(pair.fresh())
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_every_layer_has_its_place(pair) -> None:
    """Names in the host's order and nothing left over; sd15-11 and koala lack some attention that diffusers has."""
    places = LayerMap(pair.fresh()).parts
    assert set(pair.layers) <= set(places)
    modules = [part.module for name in pair.layers for part in places[name]]
    assert len(modules) == len(set(modules))


@pytest.mark.parametrize("mode", ["linear", "geodesic"])
def test_an_adapter_predicts_the_same(pair, mode, tmp_path) -> None:
    adapter = an_adapter(pair)
    with torch.inference_mode():
        patched, _ = pair.apply(pair.comfy, None, in_host(pair, adapter, tmp_path), 0.7, mode=mode)
    expected = pair.predict_comfy(patched)
    model = pair.fresh()
    base = pair.predict(model)
    load(SimpleNamespace(unet=None, transformer=model), adapter, 0.7, mode)
    found = pair.predict(model)
    assert (expected - base).abs().max() > 20 * TOLERANCE, "the adapter must do something"
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    unload(model)
    assert torch.equal(pair.predict(model), base)


def test_singular_values_are_those_of_the_fused_matrix(pair, tmp_path) -> None:
    """An SVD shift of fused projections is not that of the parts."""
    adapter = an_adapter(pair, "svd", only="attn1" if any(".attn1." in n for n in pair.layers) else "blocks.0.")
    with torch.inference_mode():
        patched, _ = pair.apply(pair.comfy, None, in_host(pair, adapter, tmp_path))
    model = pair.fresh()
    load(model, tmp_path / "adapter.safetensors")
    torch.testing.assert_close(pair.predict(model), pair.predict_comfy(patched), atol=TOLERANCE, rtol=0)


def test_adapters_come_and_go_in_any_order(pair) -> None:
    one, other = an_adapter(pair, seed=1, title="fox"), an_adapter(pair, seed=2, title="ink", only=".0.")
    model = pair.fresh()
    pristine = {name: value.clone() for name, value in model.state_dict().items()}

    def weights() -> dict[str, Tensor]:
        return {name: value.clone() for name, value in model.state_dict().items()}

    def same(a, b) -> bool:
        return all(torch.equal(a[name], b[name]) for name in a)

    load(model, one, 0.5)
    only_one = weights()
    load(model, other, -0.8)
    both = weights()
    unload(model, "fox")
    only_other = weights()
    load(model, one, 0.5)
    assert same(weights(), both) and not same(both, only_one) and not same(only_one, pristine)
    unload(model, "ink")
    assert same(weights(), only_one) and not same(only_other, only_one)
    unload(model)
    assert same(weights(), pristine)
    load(model, merge(one, other, 0.5, -0.8))
    for name, value in weights().items():
        torch.testing.assert_close(value, both[name], atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def small(host):
    """A transformer with fused projections, and adapters for it; no prediction."""
    parts = checkpoints.build("sd35-d2-dual", clip="none", seed=3)["unet"]
    shapes = {
        name.removeprefix("model.").removesuffix(".weight"): tuple(value.shape)
        for name, value in parts.items()
        if name.endswith(".weight") and value.ndim >= 2
    }
    model = diffusers_models.build("sd35-d2-dual", parts)
    return SimpleNamespace(preset="sd35-d2-dual", layers=shapes, model=model, parts=parts)


QKV = "diffusion_model.joint_blocks.0.x_block.attn.qkv"


def checked(small, factor: float = 1.0) -> SodaAdapter:
    """Trained on the fused weight times a factor."""
    adapter = an_adapter(small, "svd", only="x_block.attn.qkv")
    layers = {
        name: layer.with_base_check(factor * small.parts[f"model.{name}.weight"])
        for name, layer in adapter.layers.items()
    }
    return SodaAdapter(layers, adapter.metadata)


def test_the_base_is_checked_on_the_fused_weight(small, caplog) -> None:
    model = copy.deepcopy(small.model)
    report = load(model, checked(small))
    assert report.spectral_error < 1e-4 and report.base_distance < 1e-6 and set(report.layers) > {QKV}
    unload(model)
    assert not caplog.records
    noisy = checked(small)
    with torch.no_grad():
        model.transformer_blocks[0].attn.to_k.weight.mul_(1.5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BaseMismatchError, match="does not fit this base model"):
        load(model, noisy)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "nothing half-written"
    assert load(model, noisy, ignore_base_check=True).spectral_error > 0.2
    assert "SODA: fox was trained on" in caplog.text


def test_decompositions_are_kept_where_asked(small, tmp_path) -> None:
    adapter = checked(small)
    store = SpectrumStore(tmp_path, memory_limit=0, disk_limit=2**30)
    first, second = copy.deepcopy(small.model), copy.deepcopy(small.model)
    load(first, adapter, store=store)
    computed = store.computed
    load(second, adapter, store=store)
    assert store.computed == computed == len(adapter.layers)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_half_precision_comes_back_to_the_bit(small) -> None:
    adapter = an_adapter(small, only="attn")
    for dtype in (torch.float16, torch.bfloat16):
        model = copy.deepcopy(small.model).to(dtype)
        q = model.transformer_blocks[1].attn.add_q_proj.weight
        pristine = q.clone()
        load(model, adapter)
        expected = adapter.layers["diffusion_model.joint_blocks.1.context_block.attn.qkv"].adapt(
            torch.cat([small.parts[f"model.{name}.weight"] for name in [QKV.replace("0.x_", "1.context_")]]).to(dtype)
        )[: len(q)]
        # once rounded with the change, once after it
        torch.testing.assert_close(q, expected, atol=2 * torch.finfo(dtype).eps * float(q.abs().max()), rtol=0)
        assert q.dtype == dtype and not torch.equal(q, pristine)
        unload(model, "fox")
        assert torch.equal(q, pristine)


def test_a_copy_of_an_adapted_model_can_be_restored(small) -> None:
    model = copy.deepcopy(small.model)
    load(model, an_adapter(small, only="attn"))
    twin = copy.deepcopy(model)
    unload(twin)
    for name, value in twin.state_dict().items():
        assert torch.equal(value, small.model.state_dict()[name])
    assert not torch.equal(model.transformer_blocks[0].attn.to_q.weight, twin.transformer_blocks[0].attn.to_q.weight)


def test_beside_a_lora(small) -> None:
    """PEFT wraps the layers it adapts; ours are the ones inside."""
    from peft import LoraConfig

    model = copy.deepcopy(small.model)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    adapter = an_adapter(small, only="attn")
    load(model, adapter)
    alone = copy.deepcopy(small.model)
    load(alone, adapter)
    inside = model.transformer_blocks[0].attn.to_q.base_layer.weight
    assert torch.equal(inside, alone.transformer_blocks[0].attn.to_q.weight)
    unload(model)
    assert torch.equal(inside, small.model.transformer_blocks[0].attn.to_q.weight)


# --------------------------------------------------------------------------------------------------------------- errors


def renamed(adapter: SodaAdapter, **names: str) -> SodaAdapter:
    old, new = names["old"], names["new"]
    return replace(adapter, layers={n.replace(old, new): layer for n, layer in adapter.layers.items()})


def a_unet() -> Any:
    return diffusers_models.build("sd15-min", checkpoints.build("sd15-min", clip="none")["unet"])


def test_errors_say_what_and_where(small) -> None:
    model = copy.deepcopy(small.model)
    adapter = an_adapter(small, only="attn")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        BaseMismatchError, match=r"1 of the 9 layers of fox .* first is 'diffusion_model.joint_blocks.7"
    ):
        load(model, renamed(adapter, old="joint_blocks.0.x_block.attn2.qkv", new="joint_blocks.7.x_block.attn.qkv"))
    with pytest.raises(BaseMismatchError, match=r"9 of the 9 .* UNet2DConditionModel.*trained on sd35-d2-dual"):
        load(a_unet(), adapter)
    with pytest.raises(
        BaseMismatchError, match=r"mlp.fc2' was trained on a weight of shape \(384, 128\).*\(128, 512\)"
    ):
        load(model, renamed(adapter, old="x_block.attn.qkv", new="x_block.mlp.fc2"))
    twice = {**adapter.layers, "transformer_blocks.0.attn.to_q": SodaLayer()}
    with pytest.raises(BaseMismatchError, match="are both module 'transformer_blocks.0.attn.to_q'"):
        load(model, replace(adapter, layers=twice))
    with pytest.raises(BaseMismatchError, match="text_encoders.clip_l"):
        load(model, renamed(adapter, old="diffusion_model.joint_blocks.0", new="text_encoders.clip_l"))
    with pytest.raises(BaseMismatchError, match=r"into Linear; expected a pipeline of SD 1.5"):
        load(torch.nn.Linear(2, 2), adapter)
    with pytest.raises(SettingsError, match="unknown strength mode 'cubic'"):
        load(model, adapter, mode="cubic")
    with pytest.raises(SettingsError, match=r"no adapter 'ink' is loaded; loaded are \[\]"):
        unload(model, "ink")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "nothing half-written"
    load(model, adapter)
    with pytest.raises(SettingsError, match="'fox' is loaded already"):
        load(model, adapter)
    load(model, adapter, name="fox again")
    with pytest.raises(SettingsError, match=r"loaded are \['fox', 'fox again'\]"):
        unload(model, "ink")


def test_weights_that_cannot_be_changed_are_refused(small) -> None:
    adapter = an_adapter(small, only="attn")
    fused = copy.deepcopy(small.model)
    fused.fuse_qkv_projections()
    with pytest.raises(SettingsError, match="unfuse_qkv_projections"):
        load(fused, adapter)
    with pytest.raises(SettingsError, match=r"cannot be changed where it is .* on meta"):
        load(copy.deepcopy(small.model).to("meta"), adapter)

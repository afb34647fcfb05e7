# SPDX-License-Identifier: GPL-3.0-or-later
"""Trained with PEFT on diffusers' models, used in ComfyUI, and the other way round."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import get_peft_model
from torch import Tensor

from soda_core import SodaAdapter
from soda_core.errors import BaseMismatchError
from soda_core.interop.diffusers import load, unload
from soda_core.interop.peft import SodaConfig, SodaTunerLayer, create_optimizer, from_adapter, to_adapter
from testbed import checkpoints, diffusers_models
from testbed.predictions import PREDICTIONS

from ..host.conftest import make_family

pytestmark = pytest.mark.host
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TOLERANCE = 1e-3
INPUTS_OF = {"sd15-min": "sd15-11", "sd35-d2-dual": "sd35-d2-dual"}  #: and whose inputs they take


def a_model(preset: str):
    return diffusers_models.build(preset, checkpoints.build(preset, clip="none", seed=3)["unet"])


def predict(preset: str, model) -> Tensor:
    _, in_diffusers, inputs = PREDICTIONS[INPUTS_OF[preset]]
    with torch.no_grad():
        return in_diffusers(model, inputs).clone()


def trained(preset: str, model, **settings):
    """A few steps away from the base model, under accelerate as training scripts do it."""
    _, in_diffusers, inputs = PREDICTIONS[INPUTS_OF[preset]]
    model = get_peft_model(model, SodaConfig(**{"target_modules": ATTENTION} | settings))
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, create_optimizer(model, 0.05, 0.05))
    for _ in range(3):
        optimizer.zero_grad()
        loss = (in_diffusers(model, inputs) - inputs.latents).square().mean()
        accelerator.backward(loss)
        optimizer.step()
    return accelerator.unwrap_model(model)


def test_trained_with_peft_and_loaded_in_comfyui(host, tmp_path) -> None:
    import comfy.model_management

    unet = a_model("sd15-min")
    unet.register_to_config(_name_or_path="/home/anna/bases/photo-1.5")
    model = trained("sd15-min", unet)
    expected = predict("sd15-min", model)
    to_adapter(model, metadata={"title": "fox"}).save(tmp_path / "fox.safetensors")
    adapter = host.core("adapter").SodaAdapter.load(tmp_path / "fox.safetensors")
    assert adapter.trained_on == "photo-1.5 (float32)", "no folders in files"
    assert all(name.startswith("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn") for name in adapter.layers)
    in_comfy, _, inputs = PREDICTIONS["sd15-11"]
    with torch.inference_mode():
        base = host.model("sd15-min", "f32")
        patched, _ = host.core("host.apply").apply_adapter(base, None, adapter)
        comfy.model_management.load_models_gpu([patched])
        found = in_comfy(patched.model.diffusion_model, inputs)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    assert (expected - predict("sd15-min", a_model("sd15-min"))).abs().max() > 20 * TOLERANCE


def test_trained_in_comfyui_and_loaded_in_both(host, tmp_path) -> None:
    """A file of the training node, with the base check of what it was trained on."""
    family = make_family(host, "sd15-min", steps=6, rotation_lr=0.1)
    family.adapter.save(tmp_path / "node.safetensors")
    adapter = SodaAdapter.load(tmp_path / "node.safetensors")
    model = a_model("sd15-min")
    base = predict("sd15-min", model)
    report = load(model, adapter)
    loaded = predict("sd15-min", model)
    assert report.spectral_error < 0.02 and (loaded - base).abs().max() > 20 * TOLERANCE
    unload(model)
    tuned = from_adapter(model, adapter)
    torch.testing.assert_close(predict("sd15-min", tuned), loaded, atol=TOLERANCE, rtol=0)
    again = to_adapter(tuned)
    assert again.layers.keys() == adapter.layers.keys()
    for name, layer in adapter.layers.items():
        assert all(torch.equal(a, b) for a, b in zip(again.layers[name].factors, layer.factors, strict=True))
        assert torch.equal(again.layers[name].knots, layer.knots)
        # the same curve, over the singular values of a copy that is not rounded to fp16 as the node's was
        torch.testing.assert_close(again.layers[name].shift, layer.shift, atol=2e-4, rtol=0)


def test_parts_of_a_fused_layer_keep_their_own_names(tmp_path) -> None:
    """Queries, keys and values trained apart are no single layer of ComfyUI's."""
    preset = "sd35-d2-dual"
    model = trained(preset, a_model(preset), train="rotation only")
    expected = predict(preset, model)
    to_adapter(model).save(tmp_path / "parts.safetensors")
    adapter = SodaAdapter.load(tmp_path / "parts.safetensors")
    assert "transformer_blocks.0.attn.to_q" in adapter.layers
    plain = a_model(preset)
    load(plain, adapter)
    torch.testing.assert_close(predict(preset, plain), expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(predict(preset, from_adapter(a_model(preset), adapter)), expected, atol=0, rtol=0)

    whole = trained(preset, a_model(preset), target_modules=["ff.net.0.proj", "norm1.linear"])
    named = to_adapter(whole)
    assert "diffusion_model.joint_blocks.1.x_block.mlp.fc1" in named.layers
    torch.testing.assert_close(predict(preset, from_adapter(a_model(preset), named)), predict(preset, whole))
    layer = named.layers["diffusion_model.joint_blocks.0.x_block.mlp.fc1"]
    fused = SodaAdapter({"diffusion_model.joint_blocks.0.x_block.attn.qkv": layer}, {"title": "fox"})
    with pytest.raises(
        BaseMismatchError, match=r"attn.qkv' of fox is not a module .* soda_core.interop.diffusers.load"
    ):
        from_adapter(a_model(preset), fused)


def test_diffusers_own_calls_know_the_method() -> None:
    """``add_adapter`` puts the layers in without a PEFT model around them."""
    unet = a_model("sd15-min")
    base = predict("sd15-min", unet)
    unet.add_adapter(SodaConfig(target_modules=ATTENTION, decomposition="qr"), "fox")
    optimizer = create_optimizer(unet, 0.05, 0.05)
    predict_with_gradient = PREDICTIONS["sd15-11"][1]
    predict_with_gradient(unet, PREDICTIONS["sd15-11"][2]).square().mean().backward()
    optimizer.step()
    adapted = predict("sd15-min", unet)
    unet.disable_adapters()
    assert torch.equal(predict("sd15-min", unet), base)
    unet.enable_adapters()
    unet.set_adapters("fox", 0.5)
    half = predict("sd15-min", unet)
    assert 0 < (half - base).abs().max() < (adapted - base).abs().max()
    plain = a_model("sd15-min")
    load(plain, to_adapter(unet, "fox"), 0.5)
    torch.testing.assert_close(predict("sd15-min", plain), half, atol=TOLERANCE, rtol=0)


def test_a_pipeline_draws_with_the_adapter_and_without() -> None:
    unet = a_model("sd15-min")
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipeline = StableDiffusionPipeline(
        **parts, unet=unet, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    context = PREDICTIONS["sd15-11"][2].context

    def picture() -> Tensor:
        return pipeline(
            prompt_embeds=context,
            negative_prompt_embeds=torch.zeros_like(context),
            num_inference_steps=2,
            height=64,
            width=64,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images

    base = picture()
    load(pipeline, to_adapter(trained("sd15-min", copy.deepcopy(unet))), 0.8, name="fox")
    adapted = picture()
    unload(pipeline, "fox")
    assert torch.equal(picture(), base) and (adapted - base).abs().max() > 1e-2


def test_a_whole_unet_trains_its_convolutions_too() -> None:
    model = trained(
        "sd15-min", a_model("sd15-min"), target_modules=["conv1", "proj_in", "conv_shortcut"], decomposition="qr"
    )
    tuners = [module for module in model.modules() if isinstance(module, SodaTunerLayer)]
    names = set(to_adapter(model).layers)
    assert len(names) == len(tuners) and "diffusion_model.input_blocks.1.0.in_layers.2" in names
    assert "diffusion_model.output_blocks.0.0.skip_connection" in names

# SPDX-License-Identifier: GPL-3.0-or-later
"""Strengths by blocks, and the host's hooks: the same weights as the plain strength gives, whatever path they take."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from .conftest import make_family
from .test_apply import denoise, live_weights

pytestmark = pytest.mark.host
#: (the small model has attention in one block only)
BLOCKS = "image 0.5, text 0"


@pytest.fixture(scope="module")
def family(host):
    return make_family(host, "sd15-min")


def expected_weights(family, base, mode) -> dict[str, torch.Tensor]:
    """At strength 0.8 with :data:`BLOCKS`."""
    return {name: family.adapter.adapt(name, W0, 0.4 if ".attn1." in name else 0.0, mode) for name, W0 in base.items()}


@pytest.mark.parametrize("mode", ["linear", "geodesic"])
def test_strengths_by_blocks_in_a_full_and_a_partial_load(host, family, mode) -> None:
    apply = host.core("host.apply").apply_adapter
    base = live_weights(family.model, family.adapter)
    with torch.inference_mode():
        patched, _ = apply(family.model, None, family.adapter, 0.8, mode=mode, blocks=BLOCKS)
        found = live_weights(patched, family.adapter)
        full = denoise(patched, family.preset)
        patched.detach()
        patched.load(patched.load_device, lowvram_model_memory=1)
        low = denoise(patched, family.preset, load=False)
        patched.detach()
    for name, weight in expected_weights(family, base, mode).items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-5)
        assert torch.equal(found[name], base[name]) == (".attn2." in name)
    torch.testing.assert_close(low, full, atol=2e-5, rtol=1e-4)


def test_wrong_blocks_are_answered_with_those_there_are(host, family) -> None:
    errors, apply = host.core("errors"), host.core("host.apply").apply_adapter
    with torch.inference_mode(), pytest.raises(errors.SettingsError, match="has no blocks 'upper', but all, down"):
        apply(family.model, None, family.adapter, blocks="upper 0")


def hooked_weights(model, hooks, adapter, keyframe: float = 1.0) -> dict[str, torch.Tensor]:
    """The weights a conditioning with these hooks is computed with, at a keyframe's strength."""
    import comfy.hooks
    import comfy.model_management
    import comfy.utils

    with torch.inference_mode():
        hooks = hooks.clone()
        keyframes = comfy.hooks.HookKeyframeGroup()
        keyframes.add(comfy.hooks.HookKeyframe(strength=keyframe))
        hooks.set_keyframes_on_hooks(keyframes)
        model = model.clone()
        model.register_all_hook_patches(hooks, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model))
        comfy.model_management.load_models_gpu([model])
        model.patch_hooks(hooks)
        found = {name: comfy.utils.get_attr(model.model, f"{name}.weight").clone() for name in adapter.layers}
        model.unpatch_hooks()
    return found


@pytest.mark.parametrize("mode", ["linear", "geodesic"])
def test_hooks_give_the_weights_of_the_patch_and_follow_keyframes(host, family, mode) -> None:
    changes = host.core("host.apply").changes
    base = live_weights(family.model, family.adapter)
    with torch.inference_mode():
        hooks = changes(family.model, None, family.adapter, 0.8, mode=mode, blocks=BLOCKS).hooks()
    expected = expected_weights(family, base, mode)
    whole, half = (hooked_weights(family.model, hooks, family.adapter, keyframe) for keyframe in (1.0, 0.5))
    for name, W0 in base.items():
        torch.testing.assert_close(whole[name], expected[name], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(half[name], W0 + 0.5 * (expected[name] - W0), atol=1e-6, rtol=1e-5)
    changed = [name for name, W0 in base.items() if not torch.equal(whole[name], W0)]
    assert changed and all(".attn1." in name for name in changed)
    again = live_weights(family.model, family.adapter)
    assert all(torch.equal(again[name], W0) for name, W0 in base.items()), "the base comes back"


def test_an_adapter_at_strength_0_has_no_hooks(host, family) -> None:
    changes = host.core("host.apply").changes
    with torch.inference_mode():
        assert len(changes(family.model, None, family.adapter, 0.0).hooks()) == 0


def test_hooks_of_text_encoder_layers_are_for_the_clip(host) -> None:
    import comfy.hooks

    apply = host.core("host.apply")
    model, clip = host.model_and_clip("sd15-min")
    key = next(k for k in clip.patcher.model_state_dict() if k.endswith("q_proj.weight"))
    name = f"text_encoders.{key.removesuffix('.weight')}"
    layer = host.core("layer").SodaLayer("qr", [], 0.1 * torch.ones(768))
    adapter = host.core("adapter").SodaAdapter({name: layer})
    with torch.inference_mode():
        change = apply.changes(model, clip, adapter, 1.0, 0.5, blocks="clip_l 0.5")
    (hook,) = change.hooks().hooks
    assert (hook.strength_model, hook.strength_clip) == (0.0, 0.25)
    assert hook.weights == {} and list(hook.weights_clip) == [key]
    assert dataclasses.is_dataclass(change) and isinstance(change.hooks(), comfy.hooks.HookGroup)

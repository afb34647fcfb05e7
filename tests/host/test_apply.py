# SPDX-License-Identifier: GPL-3.0-or-later
"""Patched = hooked = saved and reloaded, whatever path the host takes to a weight."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from .conftest import conditioning, latents, make_family

STRENGTHS = [0.0, 0.5, 1.0, -1.0]
pytestmark = pytest.mark.host


def pristine(model) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.model.state_dict().items()}


def live_weights(model, adapter) -> dict[str, torch.Tensor]:
    """The weights sampling would use after an ordinary full load."""
    import comfy.model_management
    import comfy.utils

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        return {name: comfy.utils.get_attr(model.model, f"{name}.weight").clone() for name in adapter.layers}


def denoise(model, preset: str, load=True) -> torch.Tensor:
    """One prediction of the model as it stands."""
    import comfy.model_management

    conds = {"c_crossattn": conditioning(preset)[0][0]}
    pooled = conditioning(preset)[0][1].get("pooled_output")
    if pooled is not None:
        vector = torch.zeros(1, 2816) if "sdxl" in preset else pooled
        vector[:, : pooled.shape[1]] = pooled
        conds["y"] = vector
    with torch.inference_mode():
        if load:
            comfy.model_management.load_models_gpu([model])
        x = latents(model, 1)["samples"]
        return model.model.apply_model(x, torch.tensor([0.7]), **conds).clone()


@pytest.mark.parametrize("mode", ["linear", "geodesic"])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_loaded_weights_are_the_adapted_ones(host, family, strength, mode) -> None:
    apply = host.core("host.apply").apply_adapter
    base = live_weights(family.model, family.adapter)
    with torch.inference_mode():
        patched, clip = apply(family.model, None, family.adapter, strength, mode=mode)
    assert clip is None
    found = live_weights(patched, family.adapter)
    for name, W0 in base.items():
        expected = family.adapter.adapt(name, W0, strength, mode)
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5)
        assert torch.equal(found[name], W0) == (strength == 0.0), name
    again = live_weights(family.model, family.adapter)
    assert all(torch.equal(again[name], W0) for name, W0 in base.items()), "the base comes back"


@pytest.mark.parametrize("strength", STRENGTHS)
def test_partial_load_gives_the_same_picture(host, family, strength) -> None:
    """Low VRAM: weights stay where they are and are patched at every forward."""
    apply = host.core("host.apply").apply_adapter
    with torch.inference_mode():
        patched, _ = apply(family.model, None, family.adapter, strength)
        full = denoise(patched, family.preset)
        base = denoise(family.model, family.preset)
        patched.detach()
        patched.load(patched.load_device, lowvram_model_memory=1)
        assert patched.model.model_lowvram and (patched.model.lowvram_patch_counter > 0) == (strength != 0)
        low = denoise(patched, family.preset, load=False)
        patched.detach()
    torch.testing.assert_close(low, full, atol=2e-5, rtol=1e-4)
    assert torch.equal(full, base) == (strength == 0.0)


def test_trained_forward_equals_applied_equals_reloaded(host, family) -> None:
    training, apply = host.core("host.training.run"), host.core("host.apply")
    folders = host.core("host.folders")
    options, sessions = training.RunOptions(filename_prefix="t/forward"), host.core("host.training.session")
    with (
        torch.inference_mode(),
        sessions.TrainingSession.open(family.model, family.settings) as session,
        torch.no_grad(),
    ):
        run = training.Run(session, family.data, options)
        with torch.enable_grad():
            result = run.train()
        example, sigma = run.examples.pictures.groups[0][0], torch.tensor([0.7])
        trained = session.denoise(example.latent, sigma, [example.conds])
        with run.trainable.disabled():
            untouched = session.denoise(example.latent, sigma, [example.conds])
        conds = host.core("host.training.dataset").batch_conds([example.conds], session.device)

    def predict(model):
        import comfy.model_management

        with torch.inference_mode():
            comfy.model_management.load_models_gpu([model])
            return model.model.apply_model(example.latent, sigma, **conds)

    with torch.inference_mode():
        applied, _ = apply.apply_adapter(family.model, None, result.adapter)
        reloaded, _ = apply.apply_adapter(family.model, None, folders.load_adapter(result.saved_name))
    torch.testing.assert_close(predict(applied), trained, atol=5e-5, rtol=1e-4)
    assert torch.equal(predict(reloaded), predict(applied))
    torch.testing.assert_close(predict(family.model), untouched, atol=5e-5, rtol=1e-4)
    assert (trained - untouched).abs().max() > 1e-3


def random_lora(adapter, base) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(8)
    file = {}
    for name, W in base.items():
        file[f"{name}.lora_up.weight"] = 0.1 * torch.randn(W.shape[0], 2, generator=g)
        file[f"{name}.lora_down.weight"] = 0.1 * torch.randn(2, W[0].numel(), generator=g)
    return file


def test_chained_adapters_and_a_lora_commute_and_equal_the_delta_merge(host, family) -> None:
    import comfy.sd

    apply, merge = host.core("host.apply").apply_adapter, host.core("merge").merge
    base = live_weights(family.model, family.adapter)
    second = dataclasses.replace(
        family.adapter, layers={n: layer.at_strength(-0.6) for n, layer in family.adapter.layers.items()}
    )
    lora = random_lora(family.adapter, base)

    def chain(*steps):
        model = family.model
        with torch.inference_mode():
            for kind in steps:
                if kind == "lora":
                    model, _ = comfy.sd.load_lora_for_models(model, None, lora, 0.7, 0.0)
                else:
                    model, _ = apply(model, None, *kind, ignore_base_check=True)
                live_weights(model, family.adapter)  # loading in between must not change what comes next
        return live_weights(model, family.adapter)

    a, b = (family.adapter, 0.8), (second, 0.5)
    expected = chain(a, b, "lora")
    for order in (("lora", a, b), (b, "lora", a), (b, a, "lora")):
        found = chain(*order)
        for name in base:
            torch.testing.assert_close(found[name], expected[name], atol=2e-6, rtol=1e-5)
    merged = chain((merge(family.adapter, second, 0.8, 0.5), 1.0), "lora")
    for name, W0 in base.items():
        torch.testing.assert_close(merged[name], expected[name], atol=2e-6, rtol=1e-5)
        assert (expected[name] - W0).abs().max() > 1e-3


def test_two_graphs_share_one_model(host, family) -> None:
    apply = host.core("host.apply").apply_adapter
    with torch.inference_mode():
        one, _ = apply(family.model, None, family.adapter, 1.0)
        other, _ = apply(family.model, None, family.adapter, -1.0)
    first, opposite = live_weights(one, family.adapter), live_weights(other, family.adapter)
    assert all(torch.equal(W, live_weights(one, family.adapter)[n]) for n, W in first.items())
    assert not any(torch.equal(first[n], opposite[n]) for n in first)


def test_model_merge_and_checkpoint_save_carry_the_change(host, tmp_path) -> None:
    carried_by_model_merge_and_checkpoint(host, make_family(host, "sd15-min"), tmp_path)


def carried_by_model_merge_and_checkpoint(host, family, tmp_path) -> None:
    import comfy.sd

    apply = host.core("host.apply").apply_adapter
    with torch.inference_mode():
        patched, _ = apply(family.model, None, family.adapter)
        blended = family.model.clone()  # what ModelMergeSimple does at ratio 0.5
        patches = patched.get_key_patches("diffusion_model.")
        for key, value in patches.items():
            blended.add_patches({key: value}, 0.5, 0.5)
        base, full = live_weights(family.model, family.adapter), live_weights(patched, family.adapter)
        half = live_weights(blended, family.adapter)
        path = tmp_path / "baked.safetensors"
        comfy.sd.save_checkpoint(str(path), patched)
        baked = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False, output_clip=False)[0]
    reloaded = live_weights(baked, family.adapter)
    for name in base:
        torch.testing.assert_close(half[name], 0.5 * base[name] + 0.5 * full[name], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(reloaded[name], full[name], atol=1e-6, rtol=1e-5)


def test_a_hook_lora_beside_soda(host) -> None:
    import comfy.hooks

    family = make_family(host, "sd15-min")
    apply = host.core("host.apply").apply_adapter
    base = live_weights(family.model, family.adapter)
    lora = random_lora(family.adapter, base)
    with torch.inference_mode():
        patched, _ = apply(family.model, None, family.adapter)
        group = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
        patched.register_all_hook_patches(group, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model))
        live = live_weights(patched, family.adapter)
        patched.patch_hooks(group)
        name = next(iter(family.adapter.layers))
        hooked = comfy.utils.get_attr(patched.model, f"{name}.weight").clone()
        # while the hook is on, the pristine weight is still found
        found = host.core("host.base").pristine_weight(patched, f"{name}.weight")
        assert torch.equal(found, base[name])
        patched.unpatch_hooks()
    low_rank = lora[f"{name}.lora_up.weight"] @ lora[f"{name}.lora_down.weight"]
    torch.testing.assert_close(hooked, live[name] + low_rank, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("f16", 1e-3), ("bf16", 1e-2), ("f8", 0.1)])
def test_half_and_fp8_weights_in_memory(host, dtype, tolerance) -> None:
    """Weights kept as the file stores them: the adapted weight is right to the storage's own precision."""
    kinds = {"f16": torch.float16, "bf16": torch.bfloat16, "f8": torch.float8_e4m3fn}
    family = make_family(host, "sd15-min", decomposition="qr")
    model = host.model("sd15-min", dtype, dtype=kinds[dtype])
    apply = host.core("host.apply").apply_adapter
    base = live_weights(model, family.adapter)
    assert next(iter(base.values())).dtype == kinds[dtype]
    with torch.inference_mode():
        patched, _ = apply(model, None, family.adapter, ignore_base_check=True)
    found = live_weights(patched, family.adapter)
    for name, W0 in base.items():
        expected = family.adapter.adapt(name, W0.float())
        error = (found[name].float() - expected).norm() / expected.norm()
        assert error < tolerance, name
        assert found[name].dtype == kinds[dtype]
        assert not torch.equal(found[name].float(), W0.float())


def test_fp8_base_is_refused_to_single_shifts_and_taken_by_a_curve(host, caplog) -> None:
    """A number for each singular value, trained on fp16 weights, does not survive fp8 storage; the loader says so."""
    single, curve = (
        make_family(host, "sd15-min", train="shift only", steps=20, shift_lr=0.05, shift_knots=knots)
        for knots in (0, 16)
    )
    errors, apply = host.core("errors"), host.core("host.apply").apply_adapter
    model = host.model("sd15-min", "f8", dtype=torch.float8_e4m3fn)
    with torch.inference_mode():
        apply(model, None, curve.adapter)
        with pytest.raises(
            errors.BaseMismatchError, match=r"does not fit.*\d+\.\d+%.*SD 1.5, float.*ignore_base_check"
        ):
            apply(model, None, single.adapter)
        apply(model, None, single.adapter, ignore_base_check=True)
    assert any("base check" in r.message and r.levelname == "WARNING" for r in caplog.records)


def test_a_rotation_on_another_base_is_said(host, caplog) -> None:
    """There is no shift to be off, so nothing stops; but fp8 rounding passes in silence and other weights do not."""
    family = make_family(host, "sd15-min", train="rotation only")
    apply, base = host.core("host.apply").apply_adapter, host.core("host.base")
    fp8, other = host.model("sd15-min", "f8", dtype=torch.float8_e4m3fn), host.model("sd15-min")
    with torch.inference_mode(), caplog.at_level("WARNING"):
        apply(fp8, None, family.adapter)
        assert not caplog.records
        for name in family.adapter.layers:
            weight = base.pristine_weight(other, base.weight_key(name))
            weight += 0.3 * weight.std() * torch.randn(weight.shape).to(weight)
        apply(other, None, family.adapter)
    (warning,) = [r.message for r in caplog.records]
    assert "was trained on sd15-min" in warning and "base weights differ by" in warning


def test_wrong_models_are_refused_by_name(host) -> None:
    errors, apply = host.core("errors"), host.core("host.apply").apply_adapter
    family = make_family(host, "sd15-min")
    with torch.inference_mode():
        with pytest.raises(errors.BaseMismatchError, match=r"no layer of sd15-min\S* matches.*SD 1.5.*SD3"):
            apply(host.model("sd3-d2"), None, family.adapter)
        name, layer = next(iter(family.adapter.layers.items()))
        wrong = dataclasses.replace(layer, shape=(64, 64))
        with pytest.raises(errors.BaseMismatchError, match=rf"{name}.*\(64, 64\).*\(320, 320\)"):
            apply(family.model, None, dataclasses.replace(family.adapter, layers={name: wrong}))


def test_decompositions_are_kept_in_memory_and_on_disk(host) -> None:
    family = make_family(host, "sd15-min")
    spectra, apply = host.core("host.spectra"), host.core("host.apply").apply_adapter
    store = spectra.store()
    with torch.inference_mode():
        apply(family.model, None, family.adapter)
        before = store.computed
        apply(family.model, None, family.adapter, 0.5)
        store.clear_memory()
        first, _ = apply(family.model, None, family.adapter)
        assert store.computed == before, "neither memory nor disk may decompose again"
        for path in store.folder.glob("*.safetensors"):
            path.write_bytes(b"damaged")
        store.clear_memory()
        host.core("host.apply").DELTAS.clear()  # first holds them
        second, _ = apply(family.model, None, family.adapter)
    assert store.computed > before, "a damaged entry is computed anew"
    a, b = live_weights(first, family.adapter), live_weights(second, family.adapter)
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_another_strength_computes_nothing_anew(host) -> None:
    apply = host.core("host.apply")
    start = apply.DELTAS.computed

    def computed() -> int:
        return apply.DELTAS.computed - start

    family = make_family(host, "sd15-min")
    count = len(family.adapter.layers)
    with torch.inference_mode():
        first, _ = apply.apply_adapter(family.model, None, family.adapter, 1.0)
        assert computed() == count
        second, _ = apply.apply_adapter(family.model, None, family.adapter, 0.5)
        again, _ = apply.apply_adapter(second, None, family.adapter, 0.25)  # chained: from the pristine weights too
        assert computed() == count
        apply.apply_adapter(family.model, None, family.adapter, 0.5, mode="geodesic")
        assert computed() == 2 * count, "a geodesic delta depends on the strength"
    half, quarter = live_weights(second, family.adapter), live_weights(again, family.adapter)
    base = live_weights(family.model, family.adapter)
    for name, W0 in base.items():
        torch.testing.assert_close(half[name], family.adapter.adapt(name, W0, 0.5), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(quarter[name] - W0, 1.5 * (half[name] - W0), atol=1e-6, rtol=1e-4)

    other = host.model("sd15-min")
    with torch.inference_mode():
        key = next(iter(family.adapter.layers)) + ".weight"
        other.model.state_dict()[key][3, 5] += 1e-3
        apply.apply_adapter(other, None, family.adapter, 0.5)
        assert computed() == 2 * count + 1, "one weight of the base is another: its delta is computed anew"
        del first, second, again
        import gc

        gc.collect()
        apply.apply_adapter(family.model, None, family.adapter, 0.5)
        assert computed() == 3 * count + 1, "deltas live as long as a MODEL holds them"


def test_another_merge_of_the_same_parents_is_another_change(host) -> None:
    """Merges differ in their strengths alone, and the host holds the last MODEL while the next is made."""
    apply, merge = host.core("host.apply").apply_adapter, host.core("merge").merge
    family = make_family(host, "sd15-min")
    base, held = live_weights(family.model, family.adapter), []
    for strength in (1.0, 0.25):
        merged = merge(family.adapter, family.adapter, 1.0, strength)
        with torch.inference_mode():
            held.append(apply(family.model, None, merged)[0])
        found = live_weights(held[-1], family.adapter)
        for name, W0 in base.items():
            torch.testing.assert_close(found[name], merged.adapt(name, W0), atol=1e-6, rtol=1e-5)


def test_text_encoder_layers_patch_the_clip(host, caplog) -> None:
    """A file may hold text encoder layers beside the model's; each gets its own strength."""
    import comfy.model_management
    import comfy.utils

    apply, soda = host.core("host.apply").apply_adapter, host.core("layer")
    kronecker = host.core("kronecker")
    model, clip = host.model_and_clip("sd15-min")
    name = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"
    R = torch.linalg.matrix_exp(0.05 * (lambda A: A - A.T)(torch.randn(8, 8)))
    layer = soda.SodaLayer("qr", [R, *kronecker.identity_factors([8, 12])], 0.01 * torch.randn(768))
    adapter = host.core("adapter").SodaAdapter({name: layer}, {"title": "words"})
    key = name.removeprefix("text_encoders.") + ".weight"
    with torch.inference_mode():
        W0 = comfy.utils.get_attr(clip.patcher.model, key).clone()
        same_model, patched = apply(model, clip, adapter, strength_model=0.0, strength_clip=0.5)
        comfy.model_management.load_models_gpu([patched.patcher])
        found = comfy.utils.get_attr(clip.patcher.model, key).clone()
        comfy.model_management.load_models_gpu([clip.patcher])
        restored = comfy.utils.get_attr(clip.patcher.model, key).clone()
        assert not same_model.patches and torch.equal(restored, W0)
        torch.testing.assert_close(found.float(), layer.adapt(W0.float(), 0.5), atol=2e-4, rtol=2e-3)
        assert (found - W0).abs().max() > 1e-3
        errors = host.core("errors")
        with pytest.raises(errors.BaseMismatchError, match="no layer of words"):
            apply(model, None, adapter)
        assert any("connect CLIP" in r.message for r in caplog.records)

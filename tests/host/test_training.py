# SPDX-License-Identifier: GPL-3.0-or-later
"""Training in the real host: what it leaves behind, what it refuses, what it repeats."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from .conftest import conditioning, latents

pytestmark = pytest.mark.host
PRESET = "sd15-min"


@pytest.fixture(scope="module")
def model(host):
    return host.model(PRESET)


def train(host, model, data=None, options=None, preset=PRESET, **settings):
    training, config = host.core("host.training.run"), host.core("training.settings")
    values = {"steps": 3, "rotation_lr": 1e-3, "shift_lr": 1e-3, "loss": "mse", "seed": 1} | settings
    with torch.inference_mode():
        data = data or training.TrainingData([latents(model)], [conditioning(preset)])
        options = options or training.RunOptions(filename_prefix="t/run")
        return training.train_in_graph(model, data, config.TrainSettings(**values), options)


def opened(host, model, **settings):
    """A training session."""
    chosen = host.core("training.settings").TrainSettings(**settings)
    return host.core("host.training.session").TrainingSession.open(model, chosen)


def state(model):
    """Everything a training run might disturb."""
    import comfy.model_management as mm

    modules = {
        n: (type(m.forward), m.__dict__.get("weight_function"), m.training) for n, m in model.model.named_modules()
    }
    weights = {k: (v.data_ptr(), v.clone(), v.requires_grad) for k, v in model.model.named_parameters()}
    flags = (mm.in_training, mm.training_fp8_bwd, len(mm.current_loaded_models), len(model.patches), len(model.backup))
    return modules, weights, flags, torch.random.get_rng_state(), torch.is_grad_enabled(), model.model.current_patcher


def assert_same(before, after) -> None:
    assert before[0] == after[0]
    for name, (pointer, weight, grad) in before[1].items():
        assert after[1][name][0] == pointer and torch.equal(after[1][name][1], weight) and after[1][name][2] == grad
    assert before[2] == after[2]
    assert torch.equal(before[3], after[3])
    assert before[4:] == after[4:]


@pytest.fixture
def untouched(model):
    with torch.inference_mode():
        before = state(model)
        yield
        assert_same(before, state(model))


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("loss", ["mse", "min-snr", "dco"])
def test_every_loss_trains_and_leaves_no_trace(host, model, loss) -> None:
    result = train(host, model, loss=loss)
    assert len(result.losses) == 3 and all(torch.isfinite(torch.tensor(result.losses)))
    folder = host.base / "models" / "soda"
    assert (folder / result.saved_name).is_file()
    assert result.saved_name in host.core("host.folders").adapter_names()
    meta = host.core("host.folders").load_adapter(result.saved_name).metadata
    assert meta["base_model"]["family"] == "SD 1.5" and len(meta["base_model"]["hash"]) == 64
    assert meta["steps"] == 3 and meta["settings"]["loss"] == loss
    assert str(host.base) not in str(meta), "no folder paths in the file"


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("where", ["step", "callback", "forward", "preview", "error"])
def test_cancel_and_errors_leave_no_trace_and_keep_the_work(host, model, monkeypatch, where) -> None:
    import comfy.model_management as mm
    import comfy.sample

    training, session = host.core("host.training"), host.core("host.training.session")
    seen, calls, original = [], 0, session.TrainingSession.denoise

    def on_step(progress):
        seen.append(progress.step)
        if where == "step" and progress.step == 3:
            mm.interrupt_current_processing(True)
        if where == "callback" and progress.step == 3:
            raise mm.InterruptProcessingException

    def denoise(self, *args):
        nonlocal calls
        calls += 1
        if calls == 5 and where in ("forward", "error"):  # two are no steps: what a model keeps, and the estimate
            if where == "error":
                raise RuntimeError("out of memory, say")
            mm.interrupt_current_processing(True)  # the host takes it in the next layer
        return original(self, *args)

    def sample(*args, **kwargs):
        if seen:
            raise mm.InterruptProcessingException
        return args[-1]

    monkeypatch.setattr(session.TrainingSession, "denoise", denoise)
    monkeypatch.setattr(comfy.sample, "sample", sample)
    options = training.RunOptions(
        filename_prefix=f"t/{where}", preview_every=2 if where == "preview" else 0, on_step=on_step
    )
    expected = RuntimeError if where == "error" else mm.InterruptProcessingException
    try:
        with pytest.raises(expected):
            train(host, model, options=options, steps=10)
    finally:
        mm.interrupt_current_processing(False)
    done = 3 if where in ("step", "callback") else 2
    assert seen == list(range(1, done + (where != "preview")))
    saved = [n for n in host.core("host.folders").adapter_names() if f"{where}-interrupted" in n]
    assert len(saved) == 1
    assert host.core("host.folders").load_adapter(saved[0]).metadata["steps"] == done


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("decomposition", ["svd", "qr"])
def test_bfloat16_learns_the_same_and_its_files_pass_the_base_check(host, model, decomposition) -> None:
    def trained(dtype):
        options = host.core("host.training").RunOptions(filename_prefix="t/run", training_dtype=dtype)
        return train(host, model, options=options, decomposition=decomposition, steps=2)

    exact, half = trained("fp32"), trained("bf16")
    assert half.losses == pytest.approx(exact.losses, rel=0.02)
    agreement, layers = 0.0, half.adapter.layers
    for name, layer in layers.items():
        weight = host.core("host.base").pristine_weight(model, f"{name}.weight")
        assert layer.check_base(weight).spectral_error < 0.01
        agreement += float(torch.cosine_similarity(layer.shift, exact.adapter.layers[name].shift, dim=0))
    assert agreement / len(layers) > 0.9


def test_a_decomposition_that_a_node_asked_for_serves_training_too(host, model) -> None:
    store = host.core("host.spectra").store()
    expected = train(host, model)
    store.clear_memory()
    with torch.inference_mode():  # as the host runs nodes
        for name in expected.adapter.layers:
            store.get(host.core("host.base").base_weight(model, name), "svd")
    computed = store.computed
    assert train(host, model).losses == expected.losses
    assert store.computed == computed


def test_the_same_seed_gives_the_same_adapter_and_another_does_not(host, model) -> None:
    def tensors(seed):
        adapter = train(host, model, seed=seed, batch_size=2).adapter
        return [t for layer in adapter.layers.values() for t in (*layer.factors, layer.shift)]

    first, again, other = tensors(4), tensors(4), tensors(9)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_neither_previews_nor_saves_change_the_result(host, model) -> None:
    training = host.core("host.training.run")
    busy = training.RunOptions(filename_prefix="t/busy", save_every=1, preview_every=1, preview_steps=1)
    plain, previewed = train(host, model), train(host, model, options=busy)
    assert plain.losses == previewed.losses
    assert plain.adapter.identity() == previewed.adapter.identity()
    names = host.core("host.folders").adapter_names()
    assert sum("busy-step" in n for n in names) == 2
    assert len(list((host.base / "output" / "soda-previews" / "t").glob("busy-step*.png"))) == 4


@pytest.mark.parametrize("preset", ["sd15-min", "sdxl-koala-min", "sd3-d2"])
def test_checkpointing_gives_the_same_gradients(host, preset) -> None:
    model, training = host.model(preset), host.core("host.training.run")
    data = training.TrainingData([latents(model)], [conditioning(preset)])
    runs = [
        train(host, model, data, training.RunOptions(filename_prefix="t/ck", gradient_checkpointing=on), steps=2)
        for on in (False, True)
    ]
    for a, b in zip(*(r.adapter.layers.values() for r in runs), strict=True):
        torch.testing.assert_close(a.shift, b.shift, atol=1e-6, rtol=1e-4)
    assert len(host.core("host.training.checkpointing").checkpointed_blocks(model.model)) >= 2


def test_pictures_of_several_sizes_and_captions_one_each(host, model) -> None:
    training = host.core("host.training.run")
    pictures = [latents(model, 1, 8), latents(model, 2, 12, 1), latents(model, 1, 8, 2)]
    captions = [conditioning(PRESET, i) for i in range(4)]
    data = training.TrainingData(pictures, captions, captions, [latents(model, 1)], [conditioning(PRESET)])
    result = train(host, model, data, batch_size=3, accumulation=2, loss="dco")
    assert len(result.losses) == 3
    assert result.adapter.metadata["pictures"] == 4 and "64x64" in result.adapter.metadata["resolution"]


@pytest.mark.parametrize("preset", ["sd15-min", "sdxl-koala-min", "sd3-d2"])
def test_latents_are_scaled_as_the_model_wants(host, preset) -> None:
    """The objective sees ``process_in`` of the raw latents in every mode."""
    model, training = host.model(preset), host.core("host.training")
    raw = [latents(model, 1, 8), latents(model, 1, 12)]
    with torch.inference_mode(), opened(host, model, steps=1) as session:
        data = training.TrainingData(raw, [conditioning(preset)])
        examples = host.core("host.training.dataset").Examples.of(data, session.model, session.device)
    space = model.model.latent_format
    seen = [example.latent for group in examples.pictures.groups for example in group]
    for given, found in zip(raw, seen, strict=True):
        torch.testing.assert_close(found, space.process_in(given["samples"].clone()))
        assert not torch.equal(found, given["samples"])


@pytest.mark.parametrize("preset", ["sd15-min", "sd3-d2"])
def test_the_output_error_is_that_of_the_models_own_parametrisation(host, preset) -> None:
    """ε for SD 1.5, velocity (noise - x0) for SD 3: a perfect prediction has error 0, and units match."""
    objective = host.core("host.training.parametrisation")
    sampling = host.model(preset).model.model_sampling
    clean, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    sigma = objective.draw_sigmas(sampling, 3, torch.Generator().manual_seed(0), torch.device("cpu"))
    noised = sampling.noise_scaling(sigma, noise, clean, False)
    output = torch.randn(3, 4, 8, 8)  # what a model might say
    denoised = sampling.calculate_denoised(sigma, output, noised)
    target = noise if preset == "sd15-min" else noise - clean
    error = objective.output_error(sampling, sigma, denoised, clean)
    torch.testing.assert_close(error, output - target, atol=2e-3, rtol=1e-3)
    snr = objective.signal_to_noise(sampling, sigma)
    expected = sigma**-2 if preset == "sd15-min" else ((1 - sigma) / sigma) ** 2
    torch.testing.assert_close(snr, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["mse", "min-snr", "dco"])
def test_class_pictures_pull_as_much_as_the_training_pictures(host, model, loss) -> None:
    """At the first step, when both are the same pictures: twice the gradient, whatever the loss."""
    training = host.core("host.training.run")
    given = [latents(model)], [conditioning(PRESET)]
    data = training.TrainingData(*given, class_latents=given[0], class_positive=given[1])
    with torch.inference_mode(), opened(host, model, loss=loss) as session:
        run = training.Run(session, data, training.RunOptions())
        drawn = run.objective.draw(run.examples.pictures, torch.Generator().manual_seed(0))
        gradients = []
        for prior in (None, drawn):
            run.trainable.begin_step()
            gradients.append(torch.autograd.grad(run.objective.losses(drawn, prior).objective, run.trainable.shifts)[0])
    assert gradients[0].norm() > 0
    torch.testing.assert_close(gradients[1], 2 * gradients[0], rtol=1e-3, atol=1e-3 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("layers", ["attention", "attention + feed-forward", "all linear", "all linear + conv"])
def test_layer_presets_train(host, model, layers) -> None:
    counts = {"attention": 8, "attention + feed-forward": 10}
    result = train(host, model, layers=layers, steps=1, decomposition="qr", rotation_lr=1e-2)
    count = len(result.adapter.layers)
    assert count == counts.get(layers, count) and count >= 8
    with torch.inference_mode():
        patched, _ = host.core("host.apply").apply_adapter(model, None, result.adapter)
    assert len(patched.patches) == count


def test_a_lora_in_front_is_trained_on_top_of(host, model) -> None:
    """Patches on the MODEL stay in place while training, and loading behind the same LoRA gives what was trained."""
    import comfy.sd

    name = next(n for n in host.core("host.base").layer_shapes(model) if n.endswith("attn1.to_v"))
    lora = {f"{name}.lora_up.weight": torch.randn(320, 1), f"{name}.lora_down.weight": torch.randn(1, 320)}
    with torch.inference_mode():
        patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    assert train(host, patched, steps=1).losses != train(host, model, steps=1).losses
    trained, applied = trained_and_applied(host, patched)
    torch.testing.assert_close(applied, trained, atol=1e-4, rtol=1e-4)


def test_what_another_model_left_in_the_modules_is_not_trained_on(host, model) -> None:
    """MODELs of one checkpoint share modules, and the one that ran last leaves its sampling in them."""
    import comfy.model_management
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    expected = train(host, model, steps=2).losses
    with torch.inference_mode():
        (sibling,) = ModelSamplingDiscrete().patch(model, "v_prediction", False)
        comfy.model_management.load_models_gpu([sibling])
    assert train(host, model, steps=2).losses == expected
    assert train(host, sibling, steps=2).losses != expected


def test_attention_without_gradients_is_replaced(host, model) -> None:
    """As SageAttention computes, by the host's option or a node."""

    @torch.no_grad()
    def attention(function, *args, **kwargs):
        return function(*args, **kwargs)

    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = attention
    plain = train(host, model, steps=2)
    assert train(host, patched, steps=2).losses == plain.losses


def test_fast_fp8_computes_the_base_as_the_adapted_model(host) -> None:
    """There the host takes other products when no gradient is asked for, which dco would see as a difference."""
    import comfy.ops

    training = host.core("host.training.run")
    model = host.model(PRESET, "f8", dtype=torch.float8_e4m3fn, custom_operations=comfy.ops.fp8_ops)
    data = training.TrainingData([latents(model)], [conditioning(PRESET)])
    with torch.inference_mode(), opened(host, model, train="rotation only") as session:
        run = training.Run(session, data, training.RunOptions())
        example, sigma = run.examples.pictures.groups[0][0], torch.tensor([0.7])
        adapted = session.denoise(example.latent, sigma, [example.conds]).detach()
        with torch.no_grad(), run.trainable.disabled():
            base = session.denoise(example.latent, sigma, [example.conds])
    torch.testing.assert_close(adapted, base, rtol=1e-4, atol=1e-5)


def test_layers_that_no_gradient_reaches_are_said(host, model, monkeypatch, caplog) -> None:
    forward, trainables = host.core("training.forward").AdaptedForward, host.core("training.trainable")
    plain, attach = forward.__call__, host.core("host.training.session").TrainingSession.attach
    reached = []  # layers

    def call(self, x):
        with torch.set_grad_enabled(self.layer in reached):
            return plain(self, x)

    def attach_and_hide(self, trainable: trainables.TrainableAdapter) -> None:
        reached[:] = list(trainable.layers.values())[-1:] if reached is not None and keep_last else []
        attach(self, trainable)

    monkeypatch.setattr(forward, "__call__", call)
    monkeypatch.setattr(host.core("host.training.session").TrainingSession, "attach", attach_and_hide)
    keep_last = True
    train(host, model, steps=1)
    assert "does not depend on 7 of 8 adapted layers" in caplog.text
    keep_last = False
    with pytest.raises(host.core("errors").TrainingError, match="depends on none of the 8 adapted layers"):
        train(host, model, steps=1)


def trained_and_applied(host, model) -> tuple[torch.Tensor, torch.Tensor]:
    """One prediction by the model in training, and one by the loaded adapter."""
    training = host.core("host.training.run")
    data, sigma = training.TrainingData([latents(model)], [conditioning(PRESET)]), torch.tensor([0.7])
    settings = {"steps": 4, "rotation_lr": 0.05, "shift_lr": 0.05, "loss": "mse"}
    with torch.inference_mode(), opened(host, model, **settings) as session:
        run = training.Run(session, data, training.RunOptions(filename_prefix="t/twice"))
        adapter = run.train().adapter
        example = run.examples.pictures.groups[0][0]
        conds = host.core("host.training.dataset").batch_conds([example.conds], session.device)
        with torch.no_grad():
            trained = session.denoise(example.latent, sigma, [example.conds])
    return trained, applied_prediction(host, model, adapter, example.latent, sigma, conds)


def applied_prediction(host, model, adapter, latent, sigma, conds) -> torch.Tensor:
    """By the model with the adapter loaded."""
    import comfy.model_management

    with torch.inference_mode():
        applied, _ = host.core("host.apply").apply_adapter(model, None, adapter)
        comfy.model_management.load_models_gpu([applied])
        return applied.model.apply_model(latent, sigma, **conds)


def test_no_second_copy_of_the_model(host, model) -> None:
    copied = host.core("host.training.training_copy").training_copy(model)
    own = dict(model.model.named_parameters())
    for name, parameter in copied.model.named_parameters():
        original = model.backup[name].weight if name in model.backup else own[name]  # the model may be patched now
        assert parameter.data_ptr() == original.data_ptr() and not parameter.is_inference()


def test_a_quantised_base_trains_and_loads(host) -> None:
    """Scaled fp8; loading quantises the adapted weight again, so that the two are only nearly alike."""
    import comfy.sd

    quantised = {}
    for key, W in load_file(host.checkpoint(PRESET)).items():
        quantised[key] = W
        if "attn" in key and key.endswith(".weight") and W.ndim == 2:
            scale = W.float().abs().max() / torch.finfo(torch.float8_e4m3fn).max
            quantised[key] = (W.float() / scale).to(torch.float8_e4m3fn)
            said = json.dumps({"format": "float8_e4m3fn"}).encode()
            layer = key.removesuffix("weight")
            quantised[f"{layer}weight_scale"] = scale
            quantised[f"{layer}comfy_quant"] = torch.tensor(list(said), dtype=torch.uint8)
    path = host.base / "models" / "checkpoints" / "quantised.safetensors"
    save_file(quantised, path)
    with torch.inference_mode():
        model = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False, output_clip=False)[0]
    assert any(type(W).__name__ == "QuantizedTensor" for W in model.model.parameters())
    trained, applied = trained_and_applied(host, model)
    assert (applied - trained).norm() < 0.02 * trained.norm()


def test_a_quantised_weight_is_not_copied_either(host) -> None:
    from comfy.quant_ops import QuantizedTensor

    with torch.inference_mode():
        given = QuantizedTensor.from_float(torch.randn(32, 48), "TensorCoreFP8Layout")
        seen = given.dequantize()
    twin = host.core("host.training.training_copy").ordinary(torch.nn.Parameter(given, requires_grad=False))
    assert twin.data_ptr() == given.data_ptr()
    parts, _ = twin.__tensor_flatten__()
    assert len(parts) == 2, "values and their scale"
    assert not any(part.is_inference() for part in (twin, *(getattr(twin, name) for name in parts)))
    assert torch.equal(twin.dequantize(), seen)


class TestRefusals:
    def refuse(self, host, model, match, data=None, options=None, **settings):
        errors = host.core("errors")
        before = set(host.core("host.folders").adapter_names())
        with pytest.raises(errors.SodaError, match=match):
            train(host, model, data, options, **settings)
        assert set(host.core("host.folders").adapter_names()) == before, "nothing half-written"

    def data(self, host, *args, **kwargs):
        return host.core("host.training").TrainingData(*args, **kwargs)

    def test_no_pictures(self, host, model) -> None:
        empty = {"samples": torch.zeros(0, 4, 8, 8)}
        self.refuse(host, model, "no pictures", self.data(host, [empty], [conditioning(PRESET)]))
        self.refuse(host, model, "no pictures", self.data(host, [], [conditioning(PRESET)]))

    def test_counts_that_do_not_fit(self, host, model) -> None:
        two = [conditioning(PRESET)] * 2
        self.refuse(host, model, "^positive: 2 captions for 3 pictures", self.data(host, [latents(model, 3)], two))

    def test_a_nan_picture(self, host, model) -> None:
        bad = latents(model)
        bad["samples"][0, 0, 0, 0] = float("nan")
        self.refuse(host, model, "^latents: entry 1 holds NaN", self.data(host, [bad], [conditioning(PRESET)]))
        good = [latents(model)], [conditioning(PRESET)]
        data = self.data(host, *good, class_latents=[bad], class_positive=good[1])
        self.refuse(host, model, "^class_latents: entry 1 holds NaN", data)

    def test_latents_of_another_family(self, host, model) -> None:
        wrong = {"samples": torch.zeros(1, 16, 8, 8)}
        self.refuse(host, model, "16 latent channels.*has 4", self.data(host, [wrong], [conditioning(PRESET)]))

    def test_prior_without_captions(self, host, model) -> None:
        data = self.data(host, [latents(model)], [conditioning(PRESET)], class_latents=[latents(model)])
        self.refuse(host, model, "class_latents and class_positive", data)

    def test_a_name_that_cannot_be_written(self, host, model) -> None:
        training = host.core("host.training.run")
        options = training.RunOptions(filename_prefix="x" * 245)
        self.refuse(host, model, "cannot write.*another name", options=options)

    def test_a_model_that_works_by_hooks(self, host, model) -> None:
        from comfy.model_patcher import PatcherInjection

        hooked = model.clone()
        hooked.set_injections("bypass_lora", [PatcherInjection(lambda _: None, lambda _: None)])
        self.refuse(host, hooked, "injections.*bypass_lora")

    def test_a_pattern_that_matches_nothing(self, host, model) -> None:
        self.refuse(host, model, "matches none", layers="pattern", layer_pattern="*nothing*")

    @pytest.mark.parametrize("steps", [0, -3])
    def test_steps(self, host, model, steps) -> None:
        self.refuse(host, model, "steps must be 1 or more", steps=steps)

    def test_a_diverging_run_keeps_its_last_good_state(self, host, model) -> None:
        errors, training = host.core("errors"), host.core("host.training.run")
        options = training.RunOptions(filename_prefix="t/wild")
        with pytest.raises(errors.TrainingError, match="diverged at step.*learning rates.*saved as") as raised:
            train(host, model, options=options, steps=200, shift_lr=1e4, gradient_clip=0.0)
        names = [n for n in host.core("host.folders").adapter_names() if "wild-interrupted" in n]
        assert len(names) == 1
        kept = host.core("host.folders").load_adapter(names[0]).metadata["steps"]
        assert f"the adapter of step {kept} is saved as {names[0]}" in str(raised.value)


def test_what_one_folder_cannot_take_goes_to_the_next(host, model, caplog) -> None:
    result = train(host, model, steps=1)
    folders, errors = host.core("host.folders"), host.core("errors")
    (host.base / "models" / "soda" / "blocked").write_text("a file where a folder should be")
    with pytest.raises(errors.SodaError, match="cannot create the folder"):
        folders.check_writable("blocked/anna")
    with pytest.raises(errors.SodaError, match="cannot create the folder"):
        folders.save_adapter(result.adapter, "blocked/anna")
    kept = folders.keep_adapter(result.adapter, "blocked/anna")
    assert (host.base / "output" / "soda" / kept.name).is_file() and kept.name in folders.adapter_names()
    assert "trying the next folder" in caplog.text and not kept.warning


def test_the_estimate_is_printed_before_the_first_step(host, model, caplog) -> None:
    with caplog.at_level(logging.INFO):
        result = train(host, model)
    messages = [r.message for r in caplog.records if r.message.startswith("SODA")]
    estimate = next(i for i, m in enumerate(messages) if "parameters" in m and "layers" in m)
    first = next(i for i, m in enumerate(messages) if "step 1/" in m)
    assert estimate < first
    rotation = sum(R.numel() for layer in result.adapter.layers.values() for R in layer.factors)
    shift = 16 * len(result.adapter.layers)
    counts = f"{rotation + shift:,} trained parameters ({rotation:,} rotation, {shift:,} shift)"
    assert counts in messages[estimate] and result.adapter.num_parameters == rotation + shift


def test_settings_are_saved_whole(host, model) -> None:
    result = train(host, model)
    config = host.core("training.settings")
    saved = dict(result.adapter.metadata["settings"])
    saved.pop("dtype")
    assert config.TrainSettings(**saved) == dataclasses.replace(config.TrainSettings(**saved))
    assert saved["rotation_lr"] == 1e-3


def test_a_file_is_trained_further(host, model) -> None:
    """In a session of its own: the first prediction is that of the loaded adapter, and steps go on from there."""
    settings = {"rotation_lr": 0.02, "shift_lr": 0.02, "loss": "mse", "seed": 1}
    result = train(host, model, **settings)
    adapter = host.core("host.folders").load_adapter(result.saved_name)
    training, loop = host.core("host.training.objective"), host.core("training.loop")
    dataset, trainables = host.core("host.training.dataset"), host.core("training.trainable")
    data = host.core("host.training").TrainingData([latents(model)], [conditioning(PRESET)])
    with torch.inference_mode(), opened(host, model, steps=2, **settings) as session:
        trainable = trainables.TrainableAdapter.from_adapter(
            adapter, session.shapes, session.settings, session.spectra(), session.device
        )
        examples = dataset.Examples.of(data, session.model, session.device)
        session.load(examples.batch_shape(1))
        session.attach(trainable)
        example, sigma = examples.pictures.groups[0][0], torch.tensor([0.7])
        conds = dataset.batch_conds([example.conds], session.device)
        with torch.no_grad():
            start = session.denoise(example.latent, sigma, [example.conds])
        objective, progress = training.Objective(session, trainable, examples), loop.Progress()
        loop.train(trainable, session.settings, objective.batch_loss, lambda _: None, progress)
        further = trainable.to_adapter(session.weights, {})
    torch.testing.assert_close(applied_prediction(host, model, adapter, example.latent, sigma, conds), start,
                               atol=5e-5, rtol=1e-4)  # fmt: skip
    assert progress.step == 2 and progress.losses[0] < result.losses[0]
    assert further.identity() != adapter.identity()


def test_an_input_that_the_host_scales_is_scaled_once(host) -> None:
    """Some quantised layers do, before their weight: on every side as the host itself with the adapted weight."""
    import comfy.ops

    module = comfy.ops.mixed_precision_ops({}, compute_dtype=torch.float32).Linear(12, 10)
    module.weight = torch.nn.Parameter(torch.randn(10, 12), requires_grad=False)
    module.bias = torch.nn.Parameter(torch.randn(10), requires_grad=False)
    module.pre_quant_scale = torch.nn.Parameter(torch.rand(12) + 0.5, requires_grad=False)
    settings = host.core("training.settings").TrainSettings(shift_knots=0)
    spectra = {"x": host.core("spectral").decompose(module.weight, "svd")}
    trainable = host.core("training.trainable").TrainableAdapter({"x": (10, 12)}, settings, spectra)
    with torch.no_grad():
        for k, stack in trainable.rotations.items():
            stack.copy_(torch.linalg.qr(torch.randn(len(stack), int(k), int(k)))[0])
        trainable.shifts.uniform_(-1, 1)
    trainable.begin_step()
    layer, x = trainable.layers["x"], torch.randn(5, 12)
    plain, pristine = module(x), module.weight
    module.weight = torch.nn.Parameter(layer.weight(pristine).detach(), requires_grad=False)
    expected, module.weight = module(x), pristine
    host.core("host.training.frozen").adapt(module, layer, None)
    for sides in (("weight", "weight"), ("activations", "weight"), ("activations", "activations")):
        layer.sides = lambda *_, sides=sides: sides
        torch.testing.assert_close(module(x), expected, atol=1e-4, rtol=1e-4)
    with trainable.disabled():
        torch.testing.assert_close(module(x), plain)

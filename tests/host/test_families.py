# SPDX-License-Identifier: GPL-3.0-or-later
"""Every family of models the pack is for: what was trained in the graph is what its file gives, on every path there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from .families import FAMILIES, SETTINGS, close, data_of, predicted, trained

pytestmark = pytest.mark.host


def with_hook(patched: Any, names: list[str]) -> torch.Tensor:
    """What a hook LoRA makes of a weight, and that all of it goes again with the hook."""
    import comfy.hooks
    import comfy.utils

    name = names[0]
    key = f"{name}.weight"
    before = comfy.utils.get_attr(patched.model, key).clone()
    g = torch.Generator().manual_seed(8)
    rows, columns = before.shape[0], before[0].numel()
    up, down = 0.1 * torch.randn(rows, 2, generator=g), 0.1 * torch.randn(2, columns, generator=g)
    file = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    group = comfy.hooks.create_hook_lora(file, 1.0, 0.0)
    patched.register_all_hook_patches(group, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model))
    patched.patch_hooks(group)
    hooked = comfy.utils.get_attr(patched.model, key).clone()
    patched.unpatch_hooks()
    assert torch.equal(comfy.utils.get_attr(patched.model, key), before)
    torch.testing.assert_close(hooked, before + (up @ down).reshape(before.shape), atol=1e-5, rtol=1e-4)
    return hooked


@pytest.mark.parametrize("row", FAMILIES, ids=str)
def test_trained_is_loaded_from_disk_in_full_in_part_and_under_a_hook(host, row) -> None:
    apply, folders = host.core("host.apply").apply_adapter, host.core("host.folders")
    model = host.model(row.preset)
    run = trained(host, row, model)
    assert (run.prediction - run.untouched).abs().max() > 1e-3 * run.untouched.abs().max(), "(nothing would be proved)"
    adapter = folders.load_adapter(run.result.saved_name)
    base = adapter.metadata["base_model"]
    assert (base["family"], base["prediction_type"]) == (row.family, row.prediction)
    with torch.inference_mode():
        patched, _ = apply(model, None, adapter)
        full = predicted(patched, run)
        with_hook(patched, list(adapter.layers))
        assert torch.equal(predicted(patched, run), full)
        patched.detach()
        patched.load(patched.load_device, lowvram_model_memory=1)
        assert patched.model.lowvram_patch_counter > 0
        partial = predicted(patched, run, load=False)
        patched.detach()
    close(full, run.prediction)
    close(partial, full)
    close(predicted(model, run), run.untouched)
    previews = list((host.base / "output" / "soda-previews" / "families").glob(f"{row.preset}-step*.png"))
    assert len(previews) == 2


@pytest.mark.parametrize("preset", ["flux-d1", "flux2-d1", "wan-d2"])
def test_checkpointing_gives_the_same_gradients(host, preset) -> None:
    """Also where blocks change in place what they are given: computed again, they start from what it was."""
    row = next(row for row in FAMILIES if row.preset == preset)
    model, training = host.model(preset), host.core("host.training.run")
    settings = host.core("training.settings").TrainSettings(**SETTINGS)
    sessions, gradients = host.core("host.training.session"), []
    for checkpointing in (False, True):
        with (
            torch.inference_mode(),
            sessions.TrainingSession.open(model, settings, "fp32", checkpointing) as session,
        ):
            run = training.Run(session, data_of(host, row, model), training.RunOptions(filename_prefix="families/ck"))
            run.trainable.begin_step()
            loss = run.objective.batch_loss(torch.Generator().manual_seed(0)).objective
            gradients.append(torch.autograd.grad(loss, run.trainable.shifts)[0])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5 * float(gradients[0].abs().max()))


def sampled(kind: str, **arguments: Any) -> Callable[[Any], Any]:
    def patch(model: Any) -> Any:
        from comfy_extras import nodes_model_advanced as advanced

        return getattr(advanced, kind)().patch(model, **arguments)[0]

    return patch


#: What the host's own nodes can make of a model's parametrisation.
SAMPLINGS = {
    "discrete v": sampled("ModelSamplingDiscrete", sampling="v_prediction", zsnr=False),
    "discrete v, zero terminal": sampled("ModelSamplingDiscrete", sampling="v_prediction", zsnr=True),
    "discrete x0": sampled("ModelSamplingDiscrete", sampling="x0", zsnr=False),
    "discrete eps": sampled("ModelSamplingDiscrete", sampling="eps", zsnr=False),
    "EDM": sampled("ModelSamplingContinuousEDM", sampling="edm", sigma_max=80.0, sigma_min=0.002),
    "EDM eps": sampled("ModelSamplingContinuousEDM", sampling="eps", sigma_max=120.0, sigma_min=0.002),
    "EDM v": sampled("ModelSamplingContinuousEDM", sampling="v_prediction", sigma_max=120.0, sigma_min=0.002),
    "continuous v": sampled("ModelSamplingContinuousV", sampling="v_prediction", sigma_max=500.0, sigma_min=0.03),
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_every_parametrisation_trains_to_what_its_file_gives(host, name) -> None:
    row = FAMILIES[0]
    model = SAMPLINGS[name](host.model(row.preset))
    run = trained(host, row, model, steps=1, layers="pattern", layer_pattern="*attn1.to_v, *attn2.to_k")
    assert all(map(torch.isfinite, map(torch.tensor, run.result.losses)))
    with torch.inference_mode():
        patched, _ = host.core("host.apply").apply_adapter(model, None, run.result.adapter)
    close(predicted(patched, run), run.prediction)
    assert not torch.equal(run.prediction, run.untouched)


# ---------------------------------------------------------------------------------------------------------- guidance


@pytest.mark.parametrize(("preset", "given", "told"), [
    ("flux-d1", {}, 1.0), ("flux2-d1", {}, 1.0), ("flux-d1", {"guidance": 3.5}, 3.5), ("sd15-min", {}, None),
])  # fmt: skip
def test_models_with_guidance_train_at_1_unless_a_caption_says_otherwise(host, preset, given, told) -> None:
    row = next(row for row in FAMILIES if row.preset == preset)
    model = host.model(preset)
    with torch.inference_mode():
        data = data_of(host, row, model, **given)
        examples = host.core("host.training.dataset").Examples.of(data, model.model, torch.device("cpu"))
    conds = examples.pictures.groups[0][0].conds
    assert (float(conds["guidance"].cond) if "guidance" in conds else None) == told


# ------------------------------------------------------------------------------------------------------- not for SODA


def refuses(host, model: Any, data: Any, match: str) -> None:
    training, stepped = host.core("host.training"), []
    settings = host.core("training.settings").TrainSettings(**SETTINGS)
    with torch.inference_mode(), pytest.raises(host.core("errors").TrainingError, match=f"(?s){match}"):
        training.train_in_graph(model, data, settings, training.RunOptions(on_step=stepped.append))
    assert not stepped


def test_what_denoises_nothing_or_no_pictures_is_refused_before_it_is_decomposed(host) -> None:
    from comfy.model_base import ModelType

    row = FAMILIES[0]
    model = host.model(row.preset)
    data, computed = data_of(host, row, model), host.core("host.spectra").store().computed
    model.model.model_type = ModelType.IMG_TO_IMG
    refuses(host, model, data, "denoises nothing")
    model = host.model(row.preset)
    model.model.latent_format.latent_dimensions = 1
    refuses(host, model, data, "1 dimension.*sound")
    assert host.core("host.spectra").store().computed == computed


def test_captions_of_another_text_encoder_are_said_before_the_first_step(host) -> None:
    row = FAMILIES[0]
    model = host.model(row.preset)
    data = data_of(host, dataclasses.replace(row, text=(77, 1024)), model)
    refuses(host, model, data, "SD 1.5 cannot predict anything.*own text encoder")

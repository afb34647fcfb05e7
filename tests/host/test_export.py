# SPDX-License-Identifier: GPL-3.0-or-later
"""The stock Load LoRA reads what is exported, and the weights it makes are off by what the report says."""

from __future__ import annotations

import pytest
import torch

from .conftest import make_family
from .test_apply import live_weights

pytestmark = pytest.mark.host


def load_lora(model, name: str, strength: float = 1.0, clip=None):
    import nodes

    with torch.inference_mode():
        return nodes.LoraLoader().load_lora(model, clip, name, strength, strength)


def export(host, family, prefix: str, clip=None, **settings):
    """The report and the listed name of the file."""
    core = host.core
    chosen = core("interop.lora_settings").LoraSettings(**{"dtype": "float32", "rank": 8, **settings})
    with torch.inference_mode():
        made = core("host.export").export_adapter(family.model, clip, family.adapter, chosen)
    return made.report, core("host.folders").save_lora(made, prefix)


@pytest.mark.parametrize("naming", ["comfy", "kohya", "diffusers"])
def test_the_stock_loader_makes_the_weights_that_the_report_says(host, family, naming, caplog) -> None:
    report, name = export(host, family, f"t/{family.preset}-{naming}", naming=naming)
    assert 0 < report.error < 1 and not report.missing
    check_against_report(family, report, name)
    assert not [r.message for r in caplog.records if "not loaded" in r.message]


def check_against_report(family, report, name: str) -> None:
    """The weights that Load LoRA makes are off from the adapter's by what the report says."""
    base = live_weights(family.model, family.adapter)
    for strength in (1.0, 0.5):
        loaded, _ = load_lora(family.model, name, strength)
        found = live_weights(loaded, family.adapter)
        for layer, W0 in base.items():
            delta = family.adapter.layers[layer].delta(W0)
            change = (found[layer] - W0) / strength
            said = report.layers[layer]
            assert float((change - delta).norm()) == pytest.approx(said.left_out, rel=1e-3, abs=1e-4 * said.norm), layer
            assert said.rank == 0 or (change - delta).norm() < 0.999 * delta.norm(), layer


@pytest.mark.parametrize("naming", ["comfy", "kohya", "diffusers"])
def test_flux_goes_through_the_stock_loader(host, naming, caplog) -> None:
    """Its fused projections too, which diffusers' names have in parts."""
    pattern = {"layers": "pattern", "layer_pattern": "*attn.qkv, *attn.proj, *_mlp.0, *linear1, *linear2"}
    family = make_family(host, "flux-d1", decomposition="qr", rotation_lr=0.1, **pattern)
    assert len(family.adapter.layers) == 8
    report, name = export(host, family, f"t/flux-{naming}", naming=naming, by="error", error=0.3)
    assert 0.1 < report.error <= 0.3 and not report.missing
    check_against_report(family, report, name)
    assert not [r.message for r in caplog.records if "not loaded" in r.message]


@pytest.mark.parametrize("naming", ["comfy", "kohya"])
def test_the_exact_form_is_what_load_soda_makes(host, family, naming, caplog) -> None:
    report, name = export(host, family, f"t/exact-{naming}", naming=naming, by="exact")
    assert report.error == 0.0
    apply = host.core("host.apply").apply_adapter
    with torch.inference_mode():
        applied, _ = apply(family.model, None, family.adapter)
    expected = live_weights(applied, family.adapter)
    found = live_weights(load_lora(family.model, name)[0], family.adapter)
    base = live_weights(family.model, family.adapter)
    for layer, W0 in base.items():
        torch.testing.assert_close(found[layer], expected[layer], atol=1e-6, rtol=1e-5)
        assert (found[layer] - W0).abs().max() > 1e-3
    assert not [r.message for r in caplog.records if "not loaded" in r.message]


def test_convolutions_go_through_the_stock_loader(host, caplog) -> None:
    pattern = {"layers": "pattern", "layer_pattern": "*in_layers.2, *proj_in, *attn1.to_q"}
    family = make_family(host, "sd15-min", decomposition="qr", **pattern)
    assert {len(layer.shape) for layer in family.adapter.layers.values()} == {2, 4}
    base = live_weights(family.model, family.adapter)
    for naming in ("comfy", "kohya", "diffusers"):
        report, name = export(host, family, f"t/conv-{naming}", naming=naming, by="error", error=0.2)
        found = live_weights(load_lora(family.model, name)[0], family.adapter)
        assert 0.1 < report.error <= 0.2
        for layer, W0 in base.items():
            delta = family.adapter.layers[layer].delta(W0)
            left_out = float((found[layer] - W0 - delta).norm())
            assert left_out == pytest.approx(report.layers[layer].left_out, rel=1e-3), (naming, layer)
    assert not [r.message for r in caplog.records if "not loaded" in r.message]


@pytest.mark.parametrize("naming", ["comfy", "kohya", "diffusers"])
def test_text_encoder_layers_are_exported_with_clip(host, naming, caplog) -> None:
    from types import SimpleNamespace

    import comfy.model_management
    import comfy.utils

    soda, kronecker = host.core("layer"), host.core("kronecker")
    model, clip = host.model_and_clip("sd15-min")
    name = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"
    A = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
    R = torch.linalg.matrix_exp(0.1 * (A - A.T))
    layer = soda.SodaLayer("qr", [R, *kronecker.identity_factors([8, 12])], None)
    family = SimpleNamespace(model=model, adapter=host.core("adapter").SodaAdapter({name: layer}, {"title": "words"}))
    with pytest.raises(host.core("errors").BaseMismatchError, match="no layer of words"):
        export(host, family, "t/words", naming=naming)
    report, file = export(host, family, "t/words", clip, naming=naming, rank=768)
    key = name.removeprefix("text_encoders.") + ".weight"
    with torch.inference_mode():
        W0 = comfy.utils.get_attr(clip.patcher.model, key).clone().float()
        _, loaded = load_lora(model, file, clip=clip)
        comfy.model_management.load_models_gpu([loaded.patcher])
        found = comfy.utils.get_attr(clip.patcher.model, key).clone().float()
        comfy.model_management.load_models_gpu([clip.patcher])
    assert report.error < 1e-3
    torch.testing.assert_close(found, layer.adapt(W0), atol=2e-4, rtol=2e-3)
    assert (found - W0).abs().max() > 1e-3
    assert not [r.message for r in caplog.records if "not loaded" in r.message]


def test_files_are_counted_up_and_listed_at_once(host, family) -> None:
    import folder_paths

    prefix = f"t/count-{family.preset}"
    names = [export(host, family, prefix, rank=1)[1] for _ in range(2)]
    assert [name.replace("\\", "/") for name in names] == [f"{prefix}_0000{i}_.safetensors" for i in (1, 2)]
    assert set(names) <= set(folder_paths.get_filename_list("loras"))
    assert not set(names) & set(folder_paths.get_filename_list("soda"))
    for prefix in ("../out", "/tmp/out", ""):
        with pytest.raises(host.core("errors").SettingsError, match="not allowed"):
            export(host, family, prefix, rank=1)
    assert not list(host.base.rglob("*.partial"))


def test_a_cancel_ends_an_export(host, family) -> None:
    import comfy.model_management

    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        export(host, family, "t/cancelled", rank=1)
    comfy.model_management.interrupt_current_processing(False)

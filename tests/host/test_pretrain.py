# SPDX-License-Identifier: GPL-3.0-or-later
"""What pretraining makes is what the host reads: the model's layout, the autoencoder's, the exported checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from testbed import demo_base, model_files
from testbed.captions import Captions
from testbed.checkpoints import write
from testbed.classifier import load_classifier
from testbed.pretrain import autoencoder, classifier, data, export, flow, latents, model, samples
from testbed.pretrain.loop import STATE, progress
from testbed.text_encoder import filled
from testbed.world.render import SIDE, render
from testbed.world.scene import draw_scene

pytestmark = pytest.mark.host
TEXTS = ["a dog on a blue background, pixel art", ""]


@pytest.fixture(scope="module")
def pictures():
    """(4, 3, 192, 192) in 0..1"""
    random = np.random.default_rng(1)
    return data.floats(torch.from_numpy(np.stack([render(draw_scene(random), SIDE) for _ in range(4)])))


@pytest.fixture(scope="module")
def codec(host):
    """An autoencoder as training begins with it."""
    return autoencoder.build(model_files.load(model_files.AUTOENCODER))


@pytest.fixture(scope="module")
def exported(host, codec, tmp_path_factory):
    """The exported weights of fresh networks, and what the host makes of their checkpoint."""
    import comfy.sd

    folder, generator = tmp_path_factory.mktemp("export"), torch.Generator().manual_seed(2)
    # nothing is zero, as after training
    weights = {n: p + 0.02 * torch.randn(p.shape, generator=generator) for n, p in model.build().named_parameters()}
    some = latents.Latents(*[torch.empty(0)] * 3, [], middle=0.3, deviation=1.7)
    export.pack(
        folder,
        {
            export.MODEL: {name: value.detach() for name, value in weights.items()},
            export.AUTOENCODER: {n: p.detach() for n, p in codec.named_parameters()} | latents.host_scalars(some),
            export.CLASSIFIER: load_classifier().state_dict(),
        },
    )
    path = write(folder / "checkpoint.safetensors", demo_base.parts(folder), dtype="f32")
    with torch.inference_mode():
        patcher, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path))
    return {"folder": folder, "latents": some, "model": patcher.model, "clip": clip, "vae": vae}


def test_the_host_finds_the_layout_that_was_trained(exported) -> None:
    import comfy.model_base

    assert type(exported["model"]) is comfy.model_base.SD3
    theirs = {n: p.shape for n, p in exported["model"].diffusion_model.named_parameters()}
    ours = {name: torch.Size(shape) for name, shape in model.LAYOUT.shapes().items()}
    ours["context_embedder.weight"] = torch.Size((256, 4096))
    assert theirs == ours
    assert exported["model"].model_sampling.shift == flow.SHIFT


def test_the_hosts_model_predicts_what_the_trained_one_does(exported) -> None:
    generator = torch.Generator().manual_seed(3)
    x, times = torch.randn(2, 16, 24, 24, generator=generator), torch.tensor([0.3, 0.9]) * flow.TIMES
    ours = model.build()
    ours.load_state_dict(model_files.load(exported["folder"] / "model.safetensors"))
    captions = Captions()(TEXTS)
    with torch.inference_mode():
        theirs = exported["model"].diffusion_model.float()
        expected = ours(x, times, captions)
        assert expected.std() > 0.01
        assert torch.allclose(theirs(x, times, filled(captions)), expected, atol=1e-4)


@pytest.mark.parametrize("text", TEXTS)
def test_the_hosts_text_encoder_says_what_was_trained_on(exported, text: str) -> None:
    clip = exported["clip"]
    with torch.inference_mode():
        theirs = clip.encode_from_tokens(clip.tokenize(text)).float()
    ours = filled(Captions()([text]))
    assert torch.allclose(theirs, ours, atol=0.02)  # the host's text encoder is in half precision


def test_the_hosts_autoencoder_gives_the_latents_that_were_trained_on(exported, codec, pictures) -> None:
    codec.load_state_dict(model_files.load(exported["folder"] / "autoencoder.safetensors"))
    with torch.inference_mode():
        raw = codec.taesd_encoder(pictures)
        theirs = exported["vae"].encode(pictures.movedim(1, -1))
        normal = exported["model"].latent_format.process_in(theirs)
        assert torch.allclose(normal, (raw - exported["latents"].middle) / exported["latents"].deviation, atol=1e-3)
        again = exported["vae"].decode(theirs).movedim(-1, 1)
        assert torch.allclose(again, codec.taesd_decoder(raw).clamp(0, 1), atol=1e-2)


def test_the_plain_attention_is_the_hosts(host) -> None:
    from comfy.ldm.modules.attention import attention_pytorch

    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, 10, 128, generator=generator) for _ in range(3))
    assert torch.allclose(model.plain_attention(q, k, v, 2), attention_pytorch(q, k, v, 2), atol=1e-5)


def test_the_parts_run_one_after_the_other(host, tmp_path, monkeypatch) -> None:
    """From nothing to a checkpoint, two steps each; the second time there is nothing left to do."""
    few = {
        data: {"CHUNK": 16},
        autoencoder: {"PICTURES": 16, "HELD_BACK": 4, "TEST": 16},
        classifier: {"PICTURES": 16, "DECODED": 4, "TEST": 32, "TEST_DECODED": 16},
        latents: {"PICTURES": 16, "PART": 16},
        model: {"VALIDATION": 4},
        samples: {"COUNT": 2},
    }
    for module, sizes in few.items():
        for name, size in sizes.items():
            monkeypatch.setattr(module, name, size)
    monkeypatch.setattr(model, "use_plain_attention", lambda: None)
    parts = {"autoencoder": autoencoder, "classifier": classifier, "model": model}
    for _ in range(2):
        for part in parts.values():
            part.train(tmp_path, replace(part.SETTINGS, steps=2, decay=1, batch=2))
    for name in parts:
        assert progress(tmp_path / name / STATE) == {"step": 2, "samples": 4, "steps": 2}
        log = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert [entry["step"] for entry in log] == [2] and all(map(math.isfinite, log[0].values()))
    assert {"validation", "class", "glyph", "sharpness"} <= log[0].keys()
    assert (tmp_path / "model" / "look-000002.png").exists()
    export.export(tmp_path)
    assert (tmp_path / "export" / "checkpoint.safetensors").stat().st_size > 1e8

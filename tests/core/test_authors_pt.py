# SPDX-License-Identifier: GPL-3.0-or-later
"""Files as the authors' training script writes them, made here."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from soda_core import SodaAdapter
from soda_core.errors import FileFormatError
from soda_core.interop import authors_pt

from .conftest import random_rotation

SIZES = {640: (8, 8, 10), 768: (6, 8, 16), 1280: (4, 16, 20), 2048: (4, 8, 64)}


def script_order(model: nn.Module, ancestor: str, names: tuple[str, ...]) -> list[tuple[str, nn.Module]]:
    """The linear layers below modules of a class, as the script walks them."""
    found = []
    for path, module in model.named_modules():
        if type(module).__name__ == ancestor:
            found += [(f"{path}.{name}", layer) for name, layer in module.named_modules() if name in names]
    return found


def file_of(places, dtype=torch.bfloat16) -> list[list[nn.Parameter]]:
    """A part of a file; the factors of the layers differ, so that none can be taken for another."""
    items = []
    for i, place in enumerate(places):
        items += [[nn.Parameter(random_rotation(k, 0.05, seed=i).to(dtype))] for k in SIZES[place.in_features]]
        delta = torch.full((min(place.out, place.in_features),), 1e-3) + 1e-3 * i
        items.append([nn.Parameter(delta.to(dtype))])
    return items


@pytest.fixture(scope="module")
def content():
    return {"unet": file_of(authors_pt.unet_places())}


def write(path, content):
    torch.save(content, path)
    return path


def test_layers_are_named_in_the_order_of_diffusers_modules() -> None:
    from diffusers import UNet2DConditionModel

    from soda_core.interop.names import unet_paths

    sdxl = {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "projection_class_embeddings_input_dim": 2816, "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
    }  # fmt: skip
    with torch.device("meta"):
        model = UNet2DConditionModel(**sdxl)
    walked = script_order(model, "Attention", ("to_q", "to_k", "to_v", "to_out.0"))
    places = list(authors_pt.unet_places())
    assert len(places) == len(walked) == 560
    others = [f"input_blocks.{i}.0.in_layers.2" for i in range(9)] + ["input_blocks.3.0.op", "input_blocks.6.0.op"]
    others += ["middle_block.0.in_layers.2", "middle_block.2.in_layers.2", "label_emb.0.0", "label_emb.0.2"]
    paths = unet_paths([*(place.name for place in places), *(f"diffusion_model.{name}" for name in others)])
    assert [paths[place.name] for place in places] == [path for path, _ in walked]
    assert [(p.out, p.in_features) for p in places] == [tuple(module.weight.shape) for _, module in walked]


def test_text_encoders_are_named_in_the_order_of_transformers_modules() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(hidden_size=768, num_hidden_layers=12, num_attention_heads=12))
    walked = script_order(model, "CLIPAttention", ("k_proj", "v_proj", "q_proj", "out_proj"))
    places = list(authors_pt.text_encoder_places("clip_l", 12, 768))
    prefix = "text_encoders.clip_l.transformer.text_model."
    assert [p.name.removeprefix(prefix) for p in places] == [path.removeprefix("text_model.") for path, _ in walked]


@pytest.mark.parametrize("decomposition", ["svd", "qr"])
def test_a_file_becomes_an_adapter_on_the_manifold(tmp_path, content, decomposition) -> None:
    encoders = {
        "text_encoder_one": file_of(authors_pt.text_encoder_places("clip_l", 12, 768)),
        "text_encoder_two": file_of(authors_pt.text_encoder_places("clip_g", 32, 1280)),
    }
    path = write(tmp_path / "peft_1000.pt", {**content, **encoders})
    imported = authors_pt.read(path, decomposition, trigger_phrase="sks dog")
    adapter = imported.adapter
    assert len(adapter.layers) == 560 + 48 + 128
    assert adapter.title == "peft_1000" and adapter.trigger_phrase == "sks dog"
    assert 1e-3 < imported.moved < 0.02, "bfloat16 leaves some thousandths"
    assert imported.moved_most in imported.text()
    adapter.save(tmp_path / "dog.safetensors")  # which checks that every factor is orthogonal
    again = SodaAdapter.load(tmp_path / "dog.safetensors")
    for number, place in ((0, next(authors_pt.unet_places())), (559, list(authors_pt.unet_places())[-1])):
        layer = again.layers[place.name]
        assert layer.decomposition == decomposition and layer.shape == (place.out, place.in_features)
        for R, k in zip(layer.factors, SIZES[place.in_features], strict=True):
            assert (R - random_rotation(k, 0.05, seed=number)).abs().max() < 5e-3
        torch.testing.assert_close(layer.shift, torch.full((place.out,), 1e-3 + 1e-3 * number), rtol=0.01, atol=0)


def test_the_weight_is_the_authors(tmp_path, content) -> None:
    """``U relu(S + delta) Vh (Q1 ⊗ Q2 ⊗ Q3)ᵀ``, written out."""
    adapter = authors_pt.read(write(tmp_path / "x.pt", content), "svd").adapter
    place = next(authors_pt.unet_places())
    W = torch.randn(place.out, place.in_features, generator=torch.Generator().manual_seed(0)) / 25
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    Q1, Q2, Q3, delta = (item[0].detach().double() for item in content["unet"][:4])
    expected = U @ torch.diag(torch.relu(S + delta)) @ Vh @ torch.kron(torch.kron(Q1, Q2), Q3).T
    found = adapter.adapt(place.name, W).double()
    assert (found - expected).norm() < 0.02 * expected.norm(), "up to the factors' rounding to bfloat16"
    assert (found - W).norm() > 0.05 * W.norm()


class Trap:
    """A pickle that would make a file when it is read."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, content) -> None:
    for number, trapped in enumerate((Trap(tmp_path / "made"), {**content, "unet": [Trap(tmp_path / "made")]})):
        path = write(tmp_path / f"{number}.pt", trapped)
        with pytest.raises(FileFormatError, match=rf"{number}.pt: is refused, because it holds more than tensors"):
            authors_pt.read(path, "svd")
    assert not (tmp_path / "made").exists()


def changed(content, index: int, value) -> dict:
    items = list(content["unet"])
    items[index] = value
    return {"unet": items}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: [1, 2], "a list; expected a dict with"),
        (lambda c: {"state_dict": {}}, "a dict with .'state_dict'.; expected a dict"),
        (lambda c: {**c, "vae": []}, r"unknown entries \['vae'\]"),
        (lambda c: {"unet": []}, "lists are empty"),
        (lambda c: {"unet": c["unet"][:-4]}, "'unet' holds 2236 items, expected 2240"),
        (lambda c: {"unet": {"a": 1}}, "'unet' holds a dict"),
        (lambda c: changed(c, 1, [torch.eye(7)]), r"to_q' has factors of shapes .*\(7, 7\).*multiply to 640"),
        (lambda c: changed(c, 0, [torch.eye(8)[:7]]), r"factors of shapes .*\(7, 8\)"),
        (lambda c: changed(c, 0, [2 * torch.eye(8)]), "3 off orthogonal"),
        (lambda c: changed(c, 3, [torch.zeros(641)]), r"delta of layer .* has shape \(641,\), expected \(640,\)"),
        (lambda c: changed(c, 3, [torch.full((640,), float("nan"))]), "delta of layer .*NaN"),
        (lambda c: changed(c, 2, ["text"]), "Q3 of layer .* is a str"),
        (lambda c: changed(c, 2, [torch.eye(10), torch.eye(10)]), "Q3 of layer .* is a list"),
        (lambda c: changed(c, 2, [torch.eye(10, dtype=torch.int32)]), "Q3 of layer .*int32"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, content, make, message) -> None:
    with pytest.raises(FileFormatError, match=message):
        authors_pt.read(write(tmp_path / "bad.pt", make(content)), "svd")


@pytest.mark.parametrize("data", [b"", b"not a pickle", b"PK\x03\x04 half a zip"])
def test_other_files_are_said(tmp_path, data) -> None:
    (tmp_path / "bad.pt").write_bytes(data)
    with pytest.raises(FileFormatError, match="bad.pt: "):
        authors_pt.read(tmp_path / "bad.pt", "svd")
    with pytest.raises(FileFormatError, match="cannot be read"):
        authors_pt.read(tmp_path / "none.pt", "svd")

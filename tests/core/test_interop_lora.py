# SPDX-License-Identifier: GPL-3.0-or-later
"""An adapter as a LoRA: what the file holds is the change, up to the error that it says."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import safetensors
import torch
from safetensors.torch import load_file

from soda_core import SodaAdapter, low_rank, merge
from soda_core.base_weight import BaseWeight
from soda_core.errors import BaseMismatchError, SettingsError, SodaError
from soda_core.interop.lora import export
from soda_core.interop.lora_settings import LoraSettings
from soda_core.interop.names import family, layer_keys

from .conftest import random_layer


def based(weights) -> dict[str, BaseWeight]:
    return {name: BaseWeight(W) for name, W in weights.items()}


def settings(**given) -> LoraSettings:
    return LoraSettings(**{"dtype": "float32", **given})


def stored_change(tensors, name: str, shape) -> torch.Tensor:
    """What a loader of LoRAs adds to a weight, in its own words: ``alpha / rank * up @ down``."""
    up, down = tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"]
    alpha = float(tensors[f"{name}.alpha"])
    assert up.shape[1] == down.shape[0] and up.ndim == down.ndim == len(shape)
    return (alpha / down.shape[0] * up.flatten(1) @ down.flatten(1)).reshape(shape)


def measured(made, weights, adapter, **how) -> tuple[float, dict[str, float]]:
    """Overall and per layer: how far the file's change is from the adapter's."""
    squares, total, errors = 0.0, 0.0, {}
    for name, W in weights.items():
        delta = adapter.layers[name].delta(W, **how)
        found = stored_change(made.tensors, name, W.shape) if made.report.layers[name].rank else torch.zeros_like(W)
        errors[name] = float((found - delta).norm() / delta.norm())
        squares, total = squares + float((found - delta).square().sum()), total + float(delta.square().sum())
    return (squares / total) ** 0.5, errors


# ------------------------------------------------------------------------------------------------------- numerics


def power_law(out: int, width: int, exponent: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix and its singular values."""
    g = torch.Generator().manual_seed(out)
    r = min(out, width)
    U = torch.linalg.qr(torch.randn(out, r, generator=g, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(width, r, generator=g, dtype=torch.float64)).Q
    S = torch.arange(1, r + 1, dtype=torch.float64) ** -exponent
    return ((U * S) @ V.mT).float(), S.float()


@pytest.mark.parametrize("shape", [(160, 300), (300, 160), (200, 200)])
@pytest.mark.parametrize(("count", "tolerance"), [(8, 0.06), (150, 1e-4)])
def test_truncation_is_as_good_as_the_best(shape, count, tolerance) -> None:
    M, S = power_law(*shape)
    best = float(S[count:].norm() / S.norm())
    values = low_rank.singular_values(M, count)
    up, down = low_rank.truncated(M, count)
    torch.testing.assert_close(values, S[:count], rtol=tolerance, atol=0)
    left = float((M - up @ down).norm() / M.norm())
    assert best - 1e-6 <= left <= 1.01 * best
    torch.testing.assert_close(left**2, 1 - float((up @ down).square().sum() / M.square().sum()), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1), rtol=1e-4, atol=1e-6)
    again = low_rank.truncated(M, count)
    assert torch.equal(up, again[0]) and torch.equal(down, again[1])


def test_directions_go_where_they_keep_most() -> None:
    """Against all ways to spend the budget; no choice of the same numbers leaves less out."""
    values = [torch.tensor([5.0, 4.0, 0.1]), torch.tensor([3.0, 2.9]), torch.tensor([1.0, 0.0])]
    costs = [10, 5, 5]
    for budget in (5, 10, 20, 25, 30, 45):
        ranks = low_rank.ranks_within(values, costs, budget)

        def kept(choice) -> float:
            return sum(float(S[:r].square().sum()) for S, r in zip(values, choice, strict=True))

        spent = sum(r * c for r, c in zip(ranks, costs, strict=True))
        assert spent <= budget
        others = itertools.product(*(range(len(S) + 1) for S in values))
        best = max(kept(c) for c in others if sum(r * cost for r, cost in zip(c, costs, strict=True)) <= spent)
        assert kept(ranks) == pytest.approx(best)
    assert low_rank.ranks_within(values, costs, 10**6) == [3, 2, 1], "a direction of no energy is none"


def test_an_error_takes_no_more_than_it_needs() -> None:
    values = [torch.tensor([5.0, 4.0, 0.1]), torch.tensor([3.0, 2.9]), torch.tensor([1.0, 0.0])]
    energy = sum(float(S.square().sum()) for S in values)
    for error in (0.9, 0.5, 0.2, 0.01):
        ranks = low_rank.ranks_for_error(values, [10, 5, 5], energy, error)
        left = sum(float(S[r:].square().sum()) for S, r in zip(values, ranks, strict=True))
        assert left <= error**2 * energy
        fewer = low_rank.ranks_within(
            values, [10, 5, 5], sum(r * c for r, c in zip(ranks, [10, 5, 5], strict=True)) - 1
        )
        assert sum(float(S[r:].square().sum()) for S, r in zip(values, fewer, strict=True)) > error**2 * energy


# --------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("rank", [1, 3, 1000])
def test_the_file_holds_the_change_up_to_the_error_it_says(adapter, rank) -> None:
    weights, adapter = adapter
    made = export(adapter, based(weights), settings(rank=rank))
    overall, errors = measured(made, weights, adapter)
    assert made.report.error == pytest.approx(overall, abs=2e-6)
    for name, error in errors.items():
        assert made.report.layers[name].error == pytest.approx(error, abs=2e-6)
    if rank == 1000:
        assert overall < 1e-5, "at full rank nothing is left out"
        assert {name: of.rank for name, of in made.report.layers.items()} == {
            name: min(W.flatten(1).shape) for name, W in weights.items()
        }
    else:
        assert 0.05 < overall < 1
        numbers = sum(t.numel() for name, t in made.tensors.items() if not name.endswith(".alpha"))
        assert numbers <= rank * sum(sum(W.flatten(1).shape) for W in weights.values())


def test_a_given_error_is_kept_and_hardly_undercut(adapter) -> None:
    weights, adapter = adapter
    sizes = []
    for error in (0.5, 0.1, 0.01):
        made = export(adapter, based(weights), settings(by="error", error=error))
        overall, _ = measured(made, weights, adapter)
        assert 0.5 * error < overall <= error * 1.0001
        sizes.append(made.report.num_bytes)
    assert sizes == sorted(set(sizes))


def test_a_given_size_is_kept(tmp_path, adapter) -> None:
    weights, adapter = adapter
    errors = []
    for size in (0.058, 0.061):
        made = export(adapter, based(weights), settings(by="size_mb", size_mb=size))
        made.save(tmp_path / "lora.safetensors")
        assert (tmp_path / "lora.safetensors").stat().st_size <= 1e6 * size
        errors.append(made.report.error)
    assert errors[0] > errors[1]
    with pytest.raises(SettingsError, match=r"size_mb 0.01 is too small.*0\.05"):
        export(adapter, based(weights), settings(by="size_mb", size_mb=0.01))


def test_what_it_says_of_other_ranks_is_what_they_are(adapter) -> None:
    weights, adapter = adapter
    outlook = export(adapter, based(weights), settings(rank=2)).report.outlook
    assert list(outlook) == [8, 32, 128]
    made = export(adapter, based(weights), settings(rank=8))
    assert outlook[8][0] == pytest.approx(made.report.error, abs=1e-3)
    assert outlook[8][1] == sum(t.nbytes for name, t in made.tensors.items() if not name.endswith(".alpha"))
    assert outlook[8][0] > outlook[32][0] >= outlook[128][0] and outlook[128][0] < 1e-3, "these layers end below 32"


@pytest.mark.parametrize(("strength", "mode"), [(0.5, "linear"), (-1.0, "linear"), (1.5, "geodesic")])
def test_strengths_and_merges_are_in_the_file(adapter, strength, mode) -> None:
    weights, adapter = adapter
    for one in (adapter, merge(adapter, adapter, 0.4, -1.1)):
        made = export(one, based(weights), settings(rank=1000, strength=strength, mode=mode))
        overall, _ = measured(made, weights, one, strength=strength, mode=mode)
        assert overall < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 5e-4), ("bfloat16", 4e-3)])
def test_the_exact_form_is_the_whole_change(adapter, dtype, tolerance) -> None:
    weights, adapter = adapter
    made = export(adapter, based(weights), settings(by="exact", dtype=dtype))
    assert set(made.tensors) == {f"{name}.diff" for name in weights}
    for name, W in weights.items():
        delta = adapter.layers[name].delta(W)
        assert made.tensors[f"{name}.diff"].shape == W.shape
        assert (made.tensors[f"{name}.diff"].float() - delta).norm() <= tolerance * delta.norm()
    assert made.report.error <= tolerance
    assert (made.report.error > 0) == (dtype != "float32")


def test_small_changes_survive_16_bits(adapter) -> None:
    """Entries of 1e-9 are far below what float16 holds; a LoRA's two halves share the scale."""
    weights, adapter = adapter
    made = export(adapter, based(weights), LoraSettings(rank=1000, strength=1e-7))
    assert 0 < made.report.error < 2e-3


def test_the_same_export_is_the_same_file_and_managers_can_read_it(tmp_path, adapter) -> None:
    weights, adapter = adapter
    metadata = {**adapter.metadata, "thumbnail": "data:image/jpeg;base64,AAAA", "workflow": "{}"}
    adapter = dataclasses.replace(adapter, metadata=metadata)
    for name in "ab":
        export(adapter, based(weights), LoraSettings(rank=2)).save(tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        said = file.metadata()
    assert said["modelspec.title"] == "fox" and said["modelspec.trigger_phrase"] == "sks fox"
    assert said["modelspec.architecture"] == "lora" and said["modelspec.thumbnail"].startswith("data:image")
    assert said["ss_network_module"] == "networks.lora" and said["ss_network_dim"] == "6"
    assert said["ss_sd_model_name"] == "b" and said["sshs_model_hash"] == said["modelspec.hash_sha256"][2:]
    assert json.loads(said["ss_tag_frequency"]) == {"soda": {"sks fox": 1}} and said["workflow"] == "{}"
    made = json.loads(said["soda_export"])
    assert made["adapter"] == {"title": "fox", "hash": adapter.identity()}
    assert 0 < made["error"] < 1 and set(made["layers"]) == set(weights) and set(made["outlook"]) == {"8", "32", "128"}
    assert all(t.dtype == torch.float16 for t in load_file(tmp_path / "a.safetensors").values())


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank must be 1 or more, got 0"),
        ({"error": 0.0}, "error must be"),
        ({"error": 1.0}, "error must be below 1"),
        ({"size_mb": -1.0}, "size_mb must be"),
        ({"size_mb": float("nan")}, "size_mb must be"),
        ({"strength": 0.0}, "strength must be a number other than 0"),
        ({"naming": "a1111"}, "naming must be one of"),
        ({"by": "all"}, "by must be one of"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"by": "exact", "naming": "diffusers"}, "diffusers reads no full differences"),
    ],
)
def test_bad_settings_say_what_is_allowed(given, message) -> None:
    with pytest.raises(SettingsError, match=message):
        LoraSettings(**given)


def test_another_base_is_refused(adapter) -> None:
    weights, adapter = adapter
    with pytest.raises(BaseMismatchError, match=r"no layer of fox is in this base model.*trained on b"):
        export(adapter, based({"other.layer": weights["net.conv"]}))
    with pytest.raises(BaseMismatchError, match=r"net.block.0.to_q.*\(24, 24\).*\(24, 30\)"):
        export(adapter, based({**weights, "net.block.0.to_q": torch.randn(24, 30)}))
    other = {name: torch.randn_like(W) for name, W in weights.items()}
    with pytest.raises(BaseMismatchError, match="does not fit this base model"):
        export(adapter, based(other))
    assert export(adapter, based(other), ignore_base_check=True).report.base.refused


def test_layers_that_the_base_lacks_are_named(adapter) -> None:
    weights, adapter = adapter
    first, *rest = weights
    made = export(adapter, based({name: weights[name] for name in rest}))
    assert made.report.missing == (first,)
    assert first in made.report.text("x") and set(made.report.layers) == set(rest)


def test_an_adapter_that_changes_nothing_is_no_lora() -> None:
    W, layer = random_layer((24, 24), (4, 6), shift=None)
    still = dataclasses.replace(layer, factors=[torch.eye(4), torch.eye(6)])
    with pytest.raises(BaseMismatchError, match="changes nothing"):
        export(SodaAdapter({"a": still}), based({"a": W}))


def test_a_full_disk_leaves_nothing(tmp_path, adapter) -> None:
    weights, adapter = adapter
    made = export(adapter, based(weights))
    (tmp_path / "taken").write_text("a file where a folder should be")
    with pytest.raises(SodaError, match="cannot write 'x.safetensors'"):
        made.save(tmp_path / "taken" / "x.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


# ---------------------------------------------------------------------------------------------------------- names


def unet(*more: str) -> list[str]:
    return [
        f"diffusion_model.{name}"
        for name in (
            "input_blocks.0.0", "input_blocks.1.0.in_layers.2", "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
            "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0", "input_blocks.2.0.op", "input_blocks.3.1.proj_in",
            "middle_block.1.transformer_blocks.0.ff.net.0.proj", "output_blocks.3.1.transformer_blocks.0.attn2.to_k",
            *more,
        )
    ]  # fmt: skip


SDXL = ("label_emb.0.0", "label_emb.0.2")
Q = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"


def test_families_are_told_by_names() -> None:
    assert family(unet()) == "SD 1"
    assert family(unet(*SDXL)) == "SDXL"
    assert family(["diffusion_model.joint_blocks.0.x_block.attn.qkv"]) == "SD 3"
    flux = [f"diffusion_model.{n}" for n in ("double_blocks.0.img_attn.qkv", "single_blocks.0.linear1")]
    vector = "diffusion_model.vector_in.in_layer"
    assert family([*flux, vector, "diffusion_model.txt_in"]) == "Flux"
    assert family(flux) == family([*flux, vector, "diffusion_model.txt_in.input_embedder"]) == "", "no more than alike"
    assert family(["diffusion_model.layers.0.attention.qkv"]) == ""


@pytest.mark.parametrize(
    ("naming", "more", "up"),
    [
        ("comfy", (), f"{Q}.lora_up.weight"),
        ("kohya", (), "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight"),
        ("kohya", SDXL, "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_up.weight"),
        ("diffusers", (),
         "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight"),
    ],
)  # fmt: skip
def test_keys_are_those_that_others_read(naming, more, up) -> None:
    (keys,) = layer_keys([Q], naming, unet(*more))[Q]
    assert keys.up == up and keys.down == up.replace("up.weight", "down.weight")
    assert (keys.alpha is None) == (naming == "diffusers")


@pytest.mark.parametrize(
    ("encoder", "naming", "more", "up"),
    [
        ("clip_l", "kohya", (), "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight"),
        ("clip_l", "kohya", SDXL, "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight"),
        ("clip_g", "kohya", SDXL, "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight"),
        ("clip_g", "diffusers", SDXL,
         "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight"),
    ],
)  # fmt: skip
def test_text_encoders_have_their_own_keys(encoder, naming, more, up) -> None:
    name = f"text_encoders.{encoder}.transformer.text_model.encoder.layers.0.self_attn.q_proj"
    assert [keys.up for keys in layer_keys([name], naming, unet(*more))[name]] == [up]


def test_models_without_a_naming_are_told_which_one_works() -> None:
    names = ["diffusion_model.layers.0.attention.qkv"]
    for naming in ("kohya", "diffusers"):
        with pytest.raises(SettingsError, match=f"naming '{naming}' is known for.*'comfy'"):
            layer_keys(names, naming, names)
    assert layer_keys(names, "comfy", names)
    name = "diffusion_model.input_blocks.1.1.added_by_someone"
    with pytest.raises(SettingsError, match=r"no name for layer.*added_by_someone.*'comfy'"):
        layer_keys([name], "diffusers", unet())

# SPDX-License-Identifier: GPL-3.0-or-later
"""What PEFT asks of a method, asked of ours: one table of models and configurations, and each question to every row."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file
from torch import Tensor, nn

from soda_core import SodaAdapter, SodaLayer, merge
from soda_core.errors import BaseMismatchError, SettingsError
from soda_core.interop.peft import SodaConfig, SodaTunerLayer, create_optimizer, from_adapter, to_adapter
from soda_core.linalg import orthogonality_residual, rotation_angles
from soda_core.stiefel import StiefelAdam

from ..core.conftest import random_rotation

#: float32 products in another order
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def mlp() -> nn.Module:
    """Narrowing and widening; the last layer is never adapted."""
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3))


class Convolutions(nn.Module):
    """Stride, dilation, groups, borders that are not zero; then a linear layer without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.third = nn.Conv2d(8, 6, (1, 3), padding=(0, 1), padding_mode="reflect")
        self.last = nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.third(torch.relu(self.second(torch.relu(self.first(x))))).mean((2, 3)))


@dataclass(frozen=True)
class Row:
    name: str
    build: Callable[[], nn.Module]
    settings: dict[str, Any]
    shape: tuple[int, ...] = (5, 12)

    def base(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build()

    def config(self) -> SodaConfig:
        targets = ["first", "second", "third", "last"] if self.build is Convolutions else ["0", "2"]
        return SodaConfig(target_modules=targets, **self.settings)

    def x(self) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(1))

    def model(self, adapter_name: str = "default", seed: int = 2) -> PeftModel:
        """With an adapter that does something."""
        return perturbed(get_peft_model(self.base(), self.config(), adapter_name), adapter_name, seed)


IMAGES = (2, 3, 9, 10)
ROWS = [
    Row("linear, svd curve", mlp, {"shift_knots": 4}),
    Row("linear, svd values", mlp, {"shift_knots": 0}),
    Row("linear, qr", mlp, {"decomposition": "qr"}),
    Row("linear, rotation only", mlp, {"train": "rotation only", "factor_count": 1}),
    Row("linear, shift only", mlp, {"train": "shift only"}),
    Row("linear, given sizes", mlp, {"factor_sizes": {12: (2, 3, 2), 20: (5, 4)}}),
    Row("linear, many tokens", mlp, {"factor_preset": "large"}, (4, 600, 12)),
    Row("convolution, svd curve", Convolutions, {"shift_knots": 3}, IMAGES),
    Row("convolution, qr", Convolutions, {"decomposition": "qr"}, IMAGES),
    Row("convolution, rotation only", Convolutions, {"train": "rotation only"}, IMAGES),
]
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def tuners(model: nn.Module) -> dict[str, SodaTunerLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SodaTunerLayer)}


@torch.no_grad()
def perturbed(model: PeftModel, adapter_name: str = "default", seed: int = 2) -> PeftModel:
    g = torch.Generator().manual_seed(seed)
    for i, tuner in enumerate(tuners(model).values()):
        for j, R in enumerate(tuner.soda_factors[adapter_name]):
            R.copy_(random_rotation(len(R), seed=100 * seed + 10 * i + j))
        if adapter_name in tuner.soda_shift:
            shift = tuner.soda_shift[adapter_name]
            shift.copy_(0.2 * torch.randn(shift.shape, generator=g))
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Of the base model, by its own names."""
    named = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): p for name, p in model.named_parameters()
    }
    return {name: p.detach().clone() for name, p in named.items() if "soda_" not in name}


def all_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ----------------------------------------------------------------------------------------------------- what it computes


@rows
def test_a_fresh_adapter_changes_nothing(row: Row) -> None:
    model = get_peft_model(row.base(), row.config())
    torch.testing.assert_close(model(row.x()), row.base()(row.x()), **CLOSE)


@rows
def test_the_layers_compute_what_the_core_says(row: Row) -> None:
    """The base model with each weight replaced by the adapted one."""
    model, plain = row.model(), row.base()
    for name, layer in to_adapter(model).layers.items():
        weight = plain.get_submodule(name).weight
        weight.data = layer.adapt(weight.data)
    found, expected = model(row.x()), plain(row.x())
    torch.testing.assert_close(found, expected, **CLOSE)
    assert (expected - row.base()(row.x())).abs().max() > 1e-2


@rows
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0, -1.0])
def test_scale_is_linear_strength(row: Row, strength: float) -> None:
    model, plain = row.model(), row.base()
    for name, layer in to_adapter(model).layers.items():
        plain.get_submodule(name).weight.data = layer.adapt(plain.get_submodule(name).weight.data, strength)
    for tuner in tuners(model).values():
        tuner.set_scale("default", 2.0)
        tuner.scale_layer(strength)
        tuner.set_scale("another", 7.0)
    for tuner in tuners(model).values():
        tuner.set_scale("default", strength)
    torch.testing.assert_close(model(row.x()), plain(row.x()), **CLOSE)
    for tuner in tuners(model).values():
        tuner.unscale_layer()
        assert tuner.scaling == {"default": 1.0}


# ---------------------------------------------------------------------------------------------------- merge and unmerge


@rows
@pytest.mark.parametrize("safe", [False, True])
def test_merged_is_the_same_and_unmerged_is_the_base(row: Row, safe: bool) -> None:
    model = row.model()
    expected, pristine = model(row.x()), weights(model)
    model.merge_adapter(safe_merge=safe)
    assert not all_equal(weights(model), pristine)
    torch.testing.assert_close(model(row.x()), expected, **CLOSE)
    model.unmerge_adapter()
    assert all_equal(weights(model), pristine)
    torch.testing.assert_close(model(row.x()), expected, atol=0, rtol=0)


@rows
def test_merge_and_unload_leaves_a_plain_model(row: Row) -> None:
    model = row.model()
    expected = model(row.x())
    merged = model.merge_and_unload()
    assert type(merged) is type(row.base()) and not tuners(merged)
    torch.testing.assert_close(merged(row.x()), expected, **CLOSE)
    base = row.model().unload()
    assert all_equal(weights(base), weights(row.base()))


def test_a_broken_adapter_is_not_merged_safely() -> None:
    model = ROWS[0].model()
    pristine = weights(model)
    with torch.no_grad():
        tuners(model)["base_model.model.0"].soda_shift["default"][1] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinite values in a weight merged with \['default'\]"):
        model.merge_adapter(safe_merge=True)
    assert all_equal(weights(model), pristine)


# ------------------------------------------------------------------------------------------------- several and disabled


@rows
def test_several_adapters_switch_add_up_and_go(row: Row) -> None:
    model = row.model("fox", seed=3)
    fox = model(row.x())
    model.add_adapter("ink", row.config())
    perturbed(model, "ink", seed=4)
    torch.testing.assert_close(model(row.x()), fox, atol=0, rtol=0)
    model.set_adapter("ink")
    ink = model(row.x())
    assert (ink - fox).abs().max() > 1e-2

    model.base_model.set_adapter(["fox", "ink"])
    both, plain = model(row.x()), row.base()
    sums = merge(to_adapter(model, "fox"), to_adapter(model, "ink"))
    for name, layer in sums.layers.items():
        plain.get_submodule(name).weight.data = layer.adapt(plain.get_submodule(name).weight.data)
    torch.testing.assert_close(both, plain(row.x()), **CLOSE)
    pristine = weights(model)
    model.merge_adapter(["fox"])
    with pytest.warns(UserWarning, match="additionally merging ink"):
        model.merge_adapter(["ink"])
    torch.testing.assert_close(model(row.x()), both, **CLOSE)
    model.unmerge_adapter()
    assert all_equal(weights(model), pristine)

    model.set_adapter("ink")
    model.delete_adapter("fox")
    torch.testing.assert_close(model(row.x()), ink, atol=0, rtol=0)
    assert all(set(tuner.adapters) == {"ink"} for tuner in tuners(model).values())


@rows
@pytest.mark.parametrize("merged", [False, True])
def test_disabled_is_the_base_model(row: Row, merged: bool) -> None:
    model = row.model()
    adapted = model(row.x())
    if merged:
        model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(model(row.x()), row.base()(row.x()), atol=0, rtol=0)
    torch.testing.assert_close(model(row.x()), adapted, **CLOSE)


# ---------------------------------------------------------------------------------------------------------------- files

#: What a file holds, frozen: older files must load.
KEYS = {
    "base_model.model.0.soda_factors.0": (3, 3),
    "base_model.model.0.soda_factors.1": (4, 4),
    "base_model.model.0.soda_shift": (4,),
    "base_model.model.2.soda_factors.0": (4, 4),
    "base_model.model.2.soda_factors.1": (5, 5),
    "base_model.model.2.soda_shift": (4,),
}


def test_the_keys_of_a_file_are_these(tmp_path) -> None:
    ROWS[0].model().save_pretrained(tmp_path)
    assert {k: tuple(v.shape) for k, v in load_file(tmp_path / "adapter_model.safetensors").items()} == KEYS
    assert json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))["peft_type"] == "SODA"


@rows
@pytest.mark.parametrize("low_memory", [False, True])
def test_saved_and_loaded_is_the_same_to_the_bit(row: Row, low_memory: bool, tmp_path) -> None:
    model = row.model("fox")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        row.base(), tmp_path / "fox", adapter_name="other", is_trainable=True, low_cpu_mem_usage=low_memory
    )
    torch.testing.assert_close(loaded(row.x()), model(row.x()), atol=0, rtol=0)
    assert loaded.peft_config["other"].settings() == row.config().settings()
    assert any(p.requires_grad for p in loaded.parameters())
    loaded.load_adapter(tmp_path / "fox", adapter_name="again")
    loaded.set_adapter("again")
    torch.testing.assert_close(loaded(row.x()), model(row.x()), atol=0, rtol=0)


@rows
def test_our_files_hold_the_same(row: Row, tmp_path) -> None:
    model = row.model()
    adapter = to_adapter(model, metadata={"title": "fox", "steps": 7})
    adapter.save(tmp_path / "fox.safetensors")
    read = SodaAdapter.load(tmp_path / "fox.safetensors")
    back = from_adapter(row.base(), read, "fox")
    torch.testing.assert_close(back(row.x()), model(row.x()), atol=0, rtol=0)
    again = to_adapter(back, "fox")
    assert again.identity() == adapter.identity() and read.metadata["steps"] == 7
    assert read.trained_on == f"{type(row.base()).__name__} (float32)"
    curves = [tuner.soda_shift["fox"].shape for tuner in tuners(back).values() if "fox" in tuner.soda_shift]
    assert curves == [
        tuner.soda_shift["default"].shape for tuner in tuners(model).values() if "default" in tuner.soda_shift
    ]
    two = from_adapter(back, read, "twin")
    assert two is back and set(two.peft_config) == {"fox", "twin"}


# ------------------------------------------------------------------------------------------------------------- training


@rows
def test_only_the_adapter_trains_and_rotations_stay_rotations(row: Row) -> None:
    model = row.model()
    pristine = weights(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".soda_factors." in name or ".soda_shift." in name for name in trained)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name in trained}
    optimizer = create_optimizer(model, 0.02, 0.02)
    for _ in range(5):
        optimizer.zero_grad()
        model(row.x()).square().mean().backward()
        optimizer.step()
    assert all_equal(weights(model), pristine)
    for name, p in model.named_parameters():
        assert (p.grad is not None) == (name in trained)
        assert name not in trained or not torch.equal(p, before[name]), name
        if ".soda_factors." in name:
            assert orthogonality_residual(p) < 1e-5


@rows
def test_training_finds_a_planted_adapter(row: Row) -> None:
    target = row.model()(row.x()).detach()
    model = get_peft_model(row.base(), row.config())
    optimizer = create_optimizer(model, 0.02, 0.02)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (model(row.x()) - target).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 20, (losses[0], losses[-1])
    assert all(group["lr"] < 1e-6 for part in optimizer.parts for group in part.param_groups), (
        "a scheduler reaches both"
    )


@rows
def test_a_step_of_the_optimizer_goes_as_far_as_one_of_our_own_loop(row: Row) -> None:
    model = get_peft_model(row.base(), row.config())
    optimizer = create_optimizer(model, 1e-3, 1e-3)
    (1e4 * model(row.x()).square().mean()).backward()
    optimizer.step()
    for tuner in tuners(model).values():
        if factors := [R.detach().double() for R in tuner.factors("default")]:
            angles = rotation_angles(reduce(torch.kron, factors))
            assert float(angles.square().mean().sqrt()) == pytest.approx(1e-3, rel=0.05)
        if "default" in tuner.soda_shift:
            rms = torch.linalg.svdvals(tuner.pristine.exact().flatten(1)).square().mean().sqrt()
            assert float(tuner.soda_shift["default"].detach().abs().max() / rms) == pytest.approx(1e-3, rel=0.01)


def test_an_optimizer_goes_on_where_it_was_saved() -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            model(ROWS[0].x()).square().mean().backward()
            optimizer.step()

    model = ROWS[0].model()
    optimizer = create_optimizer(model, 0.02, 0.01)
    assert isinstance(optimizer.parts[0], StiefelAdam) and isinstance(optimizer.parts[1], torch.optim.AdamW)
    assert {group["lr"] for group in optimizer.parts[0].param_groups} == {0.02}
    assert [group["lr"] for group in optimizer.parts[1].param_groups] == [0.01]
    steps(model, optimizer, 3)
    twin = copy.deepcopy(model)
    resumed = create_optimizer(twin, 0.5, 0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(model, optimizer, 3)
    steps(twin, resumed, 3)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------------------------------------- dtypes, devices, copies


@rows
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(row: Row, dtype: torch.dtype) -> None:
    """The model in half precision, rotations and shifts in float32."""
    base = row.base().to(dtype)
    model = perturbed(get_peft_model(base, row.config(), autocast_adapter_dtype=False))
    exact = perturbed(get_peft_model(row.base().to(dtype).float(), row.config()))
    assert all(p.dtype == (torch.float32 if "soda_" in name else dtype) for name, p in model.named_parameters())
    found, expected = model(row.x().to(dtype)), exact(row.x())
    assert found.dtype == dtype
    near = {"atol": 16 * torch.finfo(dtype).eps * expected.abs().max().item(), "rtol": 0}
    torch.testing.assert_close(found.float(), expected, **near)
    found.float().square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)
    pristine = weights(model)
    model.merge_adapter()
    torch.testing.assert_close(model(row.x().to(dtype)).float(), expected, **near)
    model.unmerge_adapter()
    assert all_equal(weights(model), pristine)


def test_saved_rotations_are_not_rounded_on_their_way_into_a_half_precision_model(tmp_path) -> None:
    model = ROWS[0].model()
    model.save_pretrained(tmp_path)
    for low_memory in (False, True):
        loaded = PeftModel.from_pretrained(ROWS[0].base().bfloat16(), tmp_path, low_cpu_mem_usage=low_memory)
        for name, tuner in tuners(loaded).items():
            for R, original in zip(
                tuner.soda_factors["default"], tuners(model)[name].soda_factors["default"], strict=True
            ):
                assert torch.equal(R, original)


@rows
def test_autocast_multiplies_in_bfloat16_and_rotates_in_float32(row: Row) -> None:
    model = row.model()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(row.x())
    assert found.dtype == torch.bfloat16
    expected = model(row.x())
    torch.testing.assert_close(found.float(), expected, atol=0.05 * expected.abs().max().item(), rtol=0)


def test_a_weight_that_changes_is_decomposed_anew() -> None:
    model, x = ROWS[1].model(), ROWS[1].x()
    first = model(x)
    spectra = [tuner.base_weight("default").spectrum("svd") for tuner in tuners(model).values()]
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(x), first, atol=0, rtol=0)
    for tuner in tuners(model).values():
        weight = tuner.get_base_layer().weight
        weight.data = weight.data.clone()  # moved
    torch.testing.assert_close(model(x), first, atol=0, rtol=0)
    moved = [tuner.base_weight("default").spectrum("svd") for tuner in tuners(model).values()]
    assert all(torch.equal(a.S, b.S) for a, b in zip(spectra, moved, strict=True))
    for tuner in tuners(model).values():
        weight = tuner.get_base_layer().weight
        weight.data = weight.data + 0.1
    assert (model(x) - first).abs().max() > 1e-3
    assert all(
        not torch.equal(a.S, tuner.base_weight("default").spectrum("svd").S)
        for a, tuner in zip(spectra, tuners(model).values(), strict=True)
    )
    model = ROWS[1].model().double()
    for tuner in tuners(model).values():
        assert tuner.base_weight("default").spectrum("svd").S.dtype == torch.float64
    torch.testing.assert_close(model(x.double()).float(), first, **CLOSE)


# ------------------------------------------------------------------------------------------------------ PEFT's own ways


def test_peft_knows_the_method() -> None:
    config = peft.get_peft_config({"peft_type": "SODA", "train": "shift only"})
    assert isinstance(config, SodaConfig) and config.settings().train == "shift only"
    injected = inject_adapter_in_model(ROWS[0].config(), ROWS[0].base())
    assert set(tuners(injected)) == {"0", "2"}
    status = peft.get_model_status(ROWS[0].model())
    assert status.peft_types == {"default": "SODA"} and status.num_adapter_layers == 2


def test_peft_converts_to_lora() -> None:
    """A LoRA of full rank is the same model."""
    model = perturbed(get_peft_model(ROWS[0].base(), SodaConfig(target_modules=["2"])))
    assert model.supports_lora_conversion()
    config, state = peft.convert_to_lora(model, rank=8)
    lora = get_peft_model(ROWS[0].base(), config)
    peft.set_peft_model_state_dict(lora, state)
    torch.testing.assert_close(lora(ROWS[0].x()), model(ROWS[0].x()), atol=1e-4, rtol=1e-4)


# --------------------------------------------------------------------------------------------------------------- errors


def test_errors_name_the_module_and_what_to_do() -> None:
    with pytest.raises(SettingsError, match="train must be one of .*'rotation only'.* got 'both'"):
        SodaConfig(train="both")
    with pytest.raises(SettingsError, match=r"\(3, 3\) do not multiply to 12"):
        SodaConfig(factor_sizes={12: (3, 3)})
    with pytest.raises(SettingsError, match=r"module '0': .*not a Embedding with torch.float32; .*exclude_modules"):
        get_peft_model(nn.Sequential(nn.Embedding(5, 4)), SodaConfig(target_modules=["0"]))
    with pytest.raises(SettingsError, match=r"module '0': .* prime factor 257.*exclude_modules"):
        get_peft_model(nn.Sequential(nn.Linear(257, 4)), SodaConfig(target_modules=["0"]))
    with pytest.raises(SettingsError, match="no SODA layer that trains"):
        create_optimizer(ROWS[0].base())
    model = ROWS[0].model()
    with pytest.raises(SettingsError, match="no SODA adapter 'ink'"):
        to_adapter(model, "ink")


def test_adapters_that_do_not_fit_are_refused() -> None:
    row = ROWS[1]
    adapter = to_adapter(row.model(), metadata={"title": "fox"})
    other = row.base()
    with torch.no_grad():
        other[0].weight.copy_(torch.randn(20, 12, generator=torch.Generator().manual_seed(9)))
    pristine = weights(other)
    with pytest.raises(BaseMismatchError, match="fox does not fit this base model"):
        from_adapter(other, adapter)
    assert all_equal(weights(other), pristine)
    assert isinstance(from_adapter(row.base(), adapter, ignore_base_check=True), PeftModel)
    with pytest.raises(BaseMismatchError, match="layer '7' of fox is not a module of this Sequential"):
        from_adapter(row.base(), replace(adapter, layers={"7": adapter.layers["0"]}))
    with pytest.raises(BaseMismatchError, match=r"layer '4' was trained on a weight of shape \(20, 12\)"):
        from_adapter(row.base(), replace(adapter, layers={"4": adapter.layers["0"]}))
    with pytest.raises(SettingsError, match="layer '0' of .* is a merge of several changes"):
        from_adapter(row.base(), merge(adapter, adapter))
    mixed = {"0": adapter.layers["0"], "2": SodaLayer("qr", [], torch.zeros(8))}
    with pytest.raises(SettingsError, match="some layers have an SVD shift, others a QR shift"):
        from_adapter(row.base(), SodaAdapter(mixed))

# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from soda_core.adapter import SodaAdapter
from soda_core.errors import BaseMismatchError, SettingsError, TrainingError
from soda_core.layer import SodaLayer
from soda_core.linalg import orthogonality_residual
from soda_core.merge import merge
from soda_core.spectral import decompose
from soda_core.targets import LAYER_PRESETS, select
from soda_core.training.loop import Losses, Progress, TrainingLoop, train
from soda_core.training.losses import dco, min_snr_weight, mse
from soda_core.training.measures import Measures
from soda_core.training.settings import TrainSettings
from soda_core.training.trainable import TrainableAdapter

from .conftest import random_layer

SETTINGS = TrainSettings(
    steps=200, rotation_lr=1e-2, shift_lr=1e-2, loss="mse", gradient_clip=0.0, shift_knots=0, factor_count=3
)
SHAPES = {"a": (20, 30), "b": (30, 20), "c": (8, 6, 3, 3)}


def problem(settings: TrainSettings, seed: int = 0):
    """Fit weights that a known adapter made: the trained one must come close."""
    weights, targets = {}, {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        sizes = {"a": (2, 3, 5), "b": (2, 2, 5), "c": (3, 3, 6)}[name]
        weights[name], layer = random_layer(shape, sizes, settings.decomposition, seed=i)
        targets[name] = layer.adapt(weights[name])
    spectra = {name: decompose(W, settings.decomposition) for name, W in weights.items()}
    trainable = TrainableAdapter({n: tuple(W.shape) for n, W in weights.items()}, settings, spectra)

    def batch_loss(generator: torch.Generator) -> Losses:
        total = sum((layer.weight(weights[n]) - targets[n]).square().sum() for n, layer in trainable.layers.items())
        return Losses(total, total.detach())

    return weights, trainable, batch_loss


@pytest.mark.parametrize("decomposition", ["svd", "qr"])
def test_recovers_a_planted_adapter(decomposition) -> None:
    settings = replace(SETTINGS, decomposition=decomposition, schedule="cosine", steps=300)
    _, trainable, batch_loss = problem(settings)
    progress = Progress()
    train(trainable, trainable.settings, batch_loss, lambda p: None, progress)
    assert progress.losses[-1] < 0.1 * progress.losses[0]
    assert all(orthogonality_residual(R) < 1e-5 for R in trainable.rotations.values())


@pytest.mark.parametrize("what", ["rotation + shift", "rotation only", "shift only"])
def test_only_what_is_trained_exists_and_moves(what) -> None:
    settings = replace(SETTINGS, train=what, steps=5)
    weights, trainable, batch_loss = problem(settings)
    train(trainable, trainable.settings, batch_loss, lambda p: None, Progress())
    adapter = trainable.to_adapter(weights, {})
    for layer in adapter.layers.values():
        assert (layer.factors != []) == (what != "shift only")
        assert (layer.shift is not None) == (what != "rotation only")
    for name, W in weights.items():
        assert not torch.equal(adapter.adapt(name, W), W)


def test_starts_at_the_base_bit_for_bit() -> None:
    weights, trainable, _ = problem(SETTINGS)
    for name, layer in trainable.layers.items():
        assert torch.equal(layer.weight(weights[name]), weights[name])


WAYS = ["weight", "rotated input", "activations", "without W0"]


@pytest.mark.parametrize("decomposition", ["svd", "qr"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_all_ways_give_the_same_output_and_gradients(decomposition, name) -> None:
    settings = replace(SETTINGS, decomposition=decomposition, steps=3)
    weights, trainable, batch_loss = problem(settings)
    train(trainable, trainable.settings, batch_loss, lambda p: None, Progress())
    layer, W = trainable.layers[name], weights[name]
    x, g = torch.randn(4, 7, W.shape[1], requires_grad=True), torch.randn(4, 7, W.shape[0])
    results = []
    for way in WAYS:
        trainable.zero_grad()
        x.grad = None
        trainable.begin_step()
        if way == "weight":
            y = x @ layer.weight(W).T
        elif way == "rotated input":
            y = layer.rotate_input(x) @ layer.weight(W, rotated=False).T
        elif way == "activations":
            rotated = layer.rotate_input(x)
            y = rotated @ W.T + layer.spectral_output(rotated)
        else:
            y = layer.whole_output(layer.rotate_input(x))
            assert (y is not None) == (decomposition == "svd")
            if y is None:
                continue
        (y * g).sum().backward()
        results.append([y.detach(), x.grad, *[p.grad.clone() for p in trainable.parameters() if p.grad is not None]])
    assert len(results) == (4 if decomposition == "svd" else 3) and len(results[0]) > 3
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)
    assert all(b.abs().max() > 1e-3 for b in results[0])


def test_w0_is_needed_in_a_smaller_dtype() -> None:
    """A decomposition in float32 does not give back exactly what a bfloat16 product with W0 gives."""
    _, trainable, _ = problem(SETTINGS)
    layer = trainable.layers["a"]
    x = torch.randn(2, layer.shape[1])
    assert layer.whole_output(x) is not None
    assert layer.whole_output(x.bfloat16()) is None
    layer.spectrum = layer.spectrum.to("cpu", torch.bfloat16)
    assert layer.whole_output(x) is None and layer.whole_output(x.bfloat16()) is None


@pytest.mark.parametrize("kind", ["svd", "qr"])
def test_bases_in_half_the_memory_give_the_same_change_and_gradient(kind) -> None:
    W, x, generator = torch.randn(48, 64), torch.randn(5, 64), torch.Generator().manual_seed(0)
    values = 0.1 * torch.randn(48, generator=generator)
    exact = decompose(W, kind)
    small = exact.to("cpu", torch.bfloat16)
    assert small.nbytes() < 0.55 * exact.nbytes()

    def results(spectrum):
        shift = values.clone().requires_grad_()
        change, y = spectrum.delta(shift), spectrum.apply(x.to(spectrum.like), shift)
        (change.float().pow(3).sum() + y.float().pow(3).sum()).backward()
        return change.detach().float(), y.detach().float(), shift.grad

    for ours, theirs in zip(results(small), results(exact), strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()
    assert not small.delta(torch.zeros(48)).any(), "starts exactly at the base"
    assert torch.equal(decompose(W, kind).to("cpu").like, exact.like)


def sides(shape, tokens, decomposition, train="rotation + shift"):
    settings = replace(SETTINGS, decomposition=decomposition, train=train, factor_preset="auto")
    spectra = {"x": decompose(torch.randn(8, 8), decomposition)} if settings.shifts else {}
    return TrainableAdapter({"x": shape}, settings, spectra).layers["x"].sides(tokens)


@pytest.mark.parametrize(
    ("shape", "tokens", "rotation", "svd", "qr"),
    [  # the faster ones of all combinations, timed by `bench speed`
        ((320, 320), 4096, "w", "ww", "ww"),
        ((320, 768), 77, "a", "aa", "a?"),
        ((640, 640), 1024, "a", "??", "ww"),
        ((1280, 1280), 256, "a", "aa", "a?"),
        ((1280, 768), 77, "a", "aa", "a?"),
        ((1280, 1280), 1024, "a", "aa", "??"),
        ((1280, 2048), 77, "a", "aa", "a?"),
    ],
)
def test_the_cost_model_takes_the_faster_side(shape, tokens, rotation, svd, qr) -> None:
    """ "w" weight, "a" activations, "?" too close to call."""
    for decomposition, what, expected in (
        ("svd", "rotation only", f"{rotation}?"),
        ("svd", "rotation + shift", svd),
        ("qr", "rotation + shift", qr),
    ):
        chosen = sides(shape, tokens, decomposition, what)
        for side, wanted in zip(chosen, expected, strict=True):
            assert wanted in (side[0], "?"), (decomposition, what, chosen)


@pytest.mark.parametrize("decomposition", ["svd", "qr"])
def test_gradients_against_finite_differences(decomposition) -> None:
    W = torch.randn(6, 8, dtype=torch.float64)
    spectrum = decompose(W, decomposition)
    factors = [torch.eye(k, dtype=torch.float64, requires_grad=True) for k in (2, 4)]
    shift = torch.full((6,), 0.1, dtype=torch.float64, requires_grad=True)
    from soda_core.layer import adapted_weight

    assert torch.autograd.gradcheck(lambda a, b, s: adapted_weight(W, [a, b], s, spectrum), (*factors, shift))


def test_same_seed_same_result_other_seed_other_noise() -> None:
    def run(seed: int) -> list[float]:
        settings = replace(SETTINGS, steps=6, seed=seed)
        weights, trainable, _ = problem(settings)

        def batch_loss(generator: torch.Generator) -> Losses:
            noise = torch.randn(20, 30, generator=generator)
            loss = (trainable.layers["a"].weight(weights["a"]) * noise).sum()
            return Losses(loss, loss.detach().abs())

        progress = Progress()
        train(trainable, trainable.settings, batch_loss, lambda p: None, progress)
        return progress.losses

    assert run(1) == run(1) and run(1) != run(2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_nan_stops_and_keeps_the_last_good_step(bad) -> None:
    weights, trainable, batch_loss = problem(replace(SETTINGS, steps=20))
    calls = 0

    def poisoned(generator: torch.Generator) -> Losses:
        nonlocal calls
        calls += 1
        losses = batch_loss(generator)
        return Losses(losses.objective * bad, losses.denoising * bad) if calls == 8 else losses

    progress = Progress()
    with pytest.raises(TrainingError, match="diverged at step 8.*learning rates"):
        train(trainable, trainable.settings, poisoned, lambda p: None, progress)
    assert progress.step == 6, "the seventh led to the loss that stopped it"
    assert all(torch.isfinite(p).all() for p in trainable.parameters())
    trainable.to_adapter(weights, {}).layers["a"].validate("a")


def test_an_exploding_loss_counts_as_diverged() -> None:
    _, trainable, batch_loss = problem(replace(SETTINGS, steps=400, shift_lr=1e6, schedule="constant"))
    with pytest.raises(TrainingError, match="diverged"):
        train(trainable, trainable.settings, batch_loss, lambda p: None, Progress())


def test_a_cancel_leaves_the_parameters_of_the_last_step() -> None:
    weights, trainable, batch_loss = problem(SETTINGS)

    class Cancel(BaseException):
        pass

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise Cancel

    progress = Progress()
    with pytest.raises(Cancel):
        train(trainable, trainable.settings, batch_loss, stop, progress)
    assert progress.step == 3 and len(progress.losses) == 3
    trainable.to_adapter(weights, {"steps": 3}).layers["a"].validate("a")


def test_accumulation_equals_a_larger_batch() -> None:
    results = []
    for accumulation in (1, 4):
        _, trainable, batch_loss = problem(replace(SETTINGS, steps=3, accumulation=accumulation))
        train(trainable, trainable.settings, batch_loss, lambda p: None, Progress())
        results.append([p.detach().clone() for p in trainable.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


class TestLosses:
    def test_mse_is_per_sample(self) -> None:
        x = torch.zeros(3, 2, 4)
        x[1] = 2
        assert mse(x, torch.zeros_like(x)).tolist() == [0, 4, 0]

    def test_min_snr_for_epsilon_and_v(self) -> None:
        """Output scale c: σ for ε, σ/sqrt(σ²+1) for v, in the host's variance-exploding convention (SNR = 1/σ²)."""
        sigma = torch.tensor([0.1, 1.0, 10.0])
        snr = sigma**-2
        torch.testing.assert_close(min_snr_weight(snr, -sigma, 5.0), snr.clamp(max=5) / snr)
        v = -sigma / (sigma**2 + 1).sqrt()
        torch.testing.assert_close(min_snr_weight(snr, v, 5.0), snr.clamp(max=5) / (snr + 1))

    def test_dco_rewards_being_better_than_the_base(self) -> None:
        base = torch.tensor([0.1])
        assert dco(torch.tensor([0.09]), base) < dco(base, base) < dco(torch.tensor([0.11]), base)
        torch.testing.assert_close(dco(base, base), torch.tensor([math.log(2.0)]))


class TestTargets:
    NAMES = {  # noqa: RUF012
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q": (320, 320),
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k": (320, 768),
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_out.0": (320, 320),
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.ff.net.0.proj": (2560, 320),
        "diffusion_model.input_blocks.1.1.proj_in": (320, 320, 1, 1),
        "diffusion_model.input_blocks.1.0.in_layers.2": (320, 320, 3, 3),
        "diffusion_model.time_embed.0": (1280, 320),
        "diffusion_model.joint_blocks.0.x_block.attn.qkv": (384, 128),
        "diffusion_model.joint_blocks.0.x_block.mlp.fc1": (512, 128),
        "diffusion_model.t_embedder.mlp.0": (128, 256),
    }

    @pytest.mark.parametrize(
        ("preset", "pattern", "count"),
        [
            ("attention", "", 4),
            ("attention + feed-forward", "", 6),
            ("all linear", "", 8),
            ("all linear + conv", "", 10),
            ("pattern", "*attn2.to_k, *qkv", 2),
        ],
    )
    def test_presets(self, preset, pattern, count) -> None:
        assert len(select(self.NAMES, preset, pattern)) == count
        assert preset in LAYER_PRESETS

    def test_no_match_shows_names_that_exist(self) -> None:
        with pytest.raises(SettingsError, match=r"'\*nothing'.*10 layers.*attn1.to_q"):
            select(self.NAMES, "pattern", "*nothing")
        with pytest.raises(SettingsError, match="attention"):
            select({"net.fc": (3, 3)}, "attention")


def test_untrained_layers_have_no_sketches_without_weights() -> None:
    _, trainable, _ = problem(SETTINGS)
    layer = trainable.to_adapter(None, {}).layers["a"]
    assert isinstance(layer, SodaLayer) and layer.sketches is None


def test_a_shift_with_knots_is_a_curve_over_the_singular_values() -> None:
    settings = replace(SETTINGS, steps=20, shift_knots=4, train="shift only")
    weights, trainable, batch_loss = problem(settings)
    train(trainable, trainable.settings, batch_loss, lambda p: None, Progress())
    assert trainable.shifts is not None and trainable.shifts.numel() == 4 * len(SHAPES)
    for name, layer in trainable.to_adapter(weights, {}).layers.items():
        spectrum = decompose(weights[name], "svd")
        knots = spectrum.knots(4)
        assert torch.allclose(knots.sum(1), torch.ones(len(knots)))  # flat heights are one shift for all
        assert layer.shift.norm() > 0
        assert torch.allclose(knots @ (torch.linalg.pinv(knots) @ layer.shift), layer.shift, atol=1e-5)


def test_a_curve_survives_a_rounded_base_where_independent_shifts_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    U, _, Vh = torch.linalg.svd(torch.randn(160, 160, generator=generator), full_matrices=False)
    weight = (U * torch.arange(1, 161) ** -0.7) @ Vh  # a spectrum with many close neighbours
    spectrum = decompose(weight, "svd")
    curve = spectrum.knots(16) @ torch.randn(16, generator=generator).sign()
    independent = torch.randn(160, generator=generator).sign()

    def error(shift: torch.Tensor, dtype: torch.dtype) -> float:
        layer = SodaLayer(shift=0.02 * shift).with_base_check(weight)
        change = spectrum.delta(layer.shift)
        exact = float((decompose(weight.to(dtype), "svd").delta(layer.shift) - change).norm() / change.norm())
        # what the file knows of it predicts it
        assert layer.check_base(weight.to(dtype)).spectral_error == pytest.approx(exact, rel=0.35)
        return exact

    assert error(curve, torch.bfloat16) < 0.02 < 0.05 < error(independent, torch.bfloat16)
    assert error(curve, torch.float8_e4m3fn) < 0.15 < 0.8 < error(independent, torch.float8_e4m3fn)


@pytest.mark.parametrize("decomposition", ["svd", "qr"])
def test_the_default_trains_layers_of_every_rank(decomposition) -> None:
    settings = replace(SETTINGS, decomposition=decomposition, shift_knots=16, steps=3)
    _, trainable, batch_loss = problem(settings)  # ranks 20, 20 and 8
    train(trainable, trainable.settings, batch_loss, lambda p: None, Progress())
    assert trainable.shift_sizes == ([16, 16, 8] if decomposition == "svd" else [20, 20, 8])
    for layer in trainable.to_adapter(None, {}).layers.values():
        assert layer.shift.shape == (min(layer.shape[0], math.prod(layer.shape[1:])),) and layer.shift.norm() > 0


class TestFurther:
    """An adapter goes on training where it ended."""

    KINDS = {  # noqa: RUF012
        "curve": {"shift_knots": 5},
        "independent": {"shift_knots": 0},
        "qr": {"decomposition": "qr"},
        "rotation only": {"train": "rotation only"},
        "shift only": {"train": "shift only", "shift_knots": 5},
    }

    @staticmethod
    def trained(settings, path):
        """Base weights, and an adapter of three steps, from its file."""
        weights, trainable, batch_loss = problem(settings)
        train(trainable, settings, batch_loss, lambda p: None, Progress())
        trainable.to_adapter(weights, {}).save(path)
        return weights, SodaAdapter.load(path)

    @staticmethod
    def further(adapter, weights, settings):
        spectra = {n: decompose(W, settings.decomposition) for n, W in weights.items()} if settings.shifts else {}
        return TrainableAdapter.from_adapter(
            adapter, {n: tuple(W.shape) for n, W in weights.items()}, settings, spectra
        )

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_same_weights_then_others(self, kind, tmp_path) -> None:
        settings = replace(SETTINGS, steps=3, **self.KINDS[kind])
        weights, adapter = self.trained(settings, tmp_path / "a.safetensors")
        trainable = self.further(adapter, weights, settings)
        again = trainable.to_adapter(weights, {})
        assert again.identity() == adapter.identity()
        for name, W in weights.items():
            assert torch.equal(again.adapt(name, W), adapter.adapt(name, W)) and not torch.equal(
                adapter.adapt(name, W), W
            )

        def batch_loss(generator: torch.Generator) -> Losses:
            total = sum((layer.weight(weights[n]) - 1).square().sum() for n, layer in trainable.layers.items())
            return Losses(total, total.detach())

        train(trainable, settings, batch_loss, lambda p: None, Progress())
        after = trainable.to_adapter(weights, {})
        assert all(not torch.equal(after.adapt(n, W), adapter.adapt(n, W)) for n, W in weights.items())

    def test_curves_of_an_older_file_are_found_again(self, tmp_path) -> None:
        settings = replace(SETTINGS, steps=3, shift_knots=5)
        weights, adapter = self.trained(settings, tmp_path / "a.safetensors")
        assert all(layer.knots.shape == (5,) for layer in adapter.layers.values())
        older = replace(adapter, layers={n: replace(layer, knots=None) for n, layer in adapter.layers.items()})
        again = self.further(older, weights, settings).to_adapter(weights, {})
        for name, layer in adapter.layers.items():
            torch.testing.assert_close(again.layers[name].shift, layer.shift, atol=1e-7, rtol=1e-5)

    def test_shifts_that_are_no_curve_here_are_refused(self, tmp_path) -> None:
        settings = replace(SETTINGS, steps=3, shift_knots=0)
        weights, adapter = self.trained(settings, tmp_path / "a.safetensors")
        with pytest.raises(BaseMismatchError, match="'a' is off by .*% from a curve with 5 knots"):
            self.further(adapter, weights, replace(settings, shift_knots=5))
        settings = replace(settings, shift_knots=5)
        weights, adapter = self.trained(settings, tmp_path / "b.safetensors")
        others = {n: torch.randn_like(W) for n, W in weights.items()}
        with pytest.raises(BaseMismatchError, match="off by"):
            self.further(adapter, others, settings)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"factor_count": 2}, "'a' was trained with factors of sizes .*, the settings ask for"),
            ({"train": "shift only"}, "factors of sizes .*, the settings ask for \\(\\)"),
            ({"train": "rotation only"}, "a shift of the kind svd, the settings ask for none"),
            ({"decomposition": "qr"}, "a shift of the kind svd, the settings ask for qr"),
            ({"shift_knots": 4}, "as knots 5, the settings ask for 4"),
            ({"shift_knots": 0}, "as knots 5, the settings ask for 0"),
        ],
    )
    def test_other_settings_are_refused_with_both(self, change, match, tmp_path) -> None:
        settings = replace(SETTINGS, steps=3, shift_knots=5)
        weights, adapter = self.trained(settings, tmp_path / "a.safetensors")
        with pytest.raises(SettingsError, match=match):
            self.further(adapter, weights, replace(settings, **change))

    def test_other_layers_are_refused_by_name(self, tmp_path) -> None:
        weights, adapter = self.trained(replace(SETTINGS, steps=3), tmp_path / "a.safetensors")
        fewer = replace(adapter, layers={n: adapter.layers[n] for n in ("a", "b")})
        with pytest.raises(SettingsError, match="1 layers only the settings choose, the first is 'c'"):
            self.further(fewer, weights, SETTINGS)
        with pytest.raises(SettingsError, match="1 layers only the adapter has, the first is 'c'"):
            self.further(adapter, {n: weights[n] for n in ("a", "b")}, SETTINGS)

    def test_a_sum_has_no_factors_to_train(self, tmp_path) -> None:
        weights, adapter = self.trained(replace(SETTINGS, steps=3), tmp_path / "a.safetensors")
        both = merge(adapter, adapter, 0.5, 0.5, method="delta")
        with pytest.raises(SettingsError, match="a sum.*geodesic"):
            self.further(both, weights, SETTINGS)


def test_a_run_may_finish_after_any_step() -> None:
    _, trainable, batch_loss = problem(SETTINGS)
    progress = Progress()
    TrainingLoop(trainable, SETTINGS, progress).run(batch_loss, lambda p: None, lambda: progress.step == 3)
    assert progress.step == len(progress.losses) == 3


def rotated(degrees: float, k: int) -> torch.Tensor:
    """Every plane of ``k`` dimensions turned by the same angle."""
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return torch.block_diag(*[turn] * (k // 2))


@pytest.mark.parametrize("decomposition", ["svd", "qr"])
def test_how_far_a_run_has_gone(decomposition) -> None:
    shapes, settings = {"a": (12, 16)}, replace(SETTINGS, decomposition=decomposition, factor_count=2)
    W = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    trainable = TrainableAdapter(shapes, settings, {"a": decompose(W, decomposition)})
    measures = Measures(trainable)
    assert measures.rotation() == 0.0 and measures.shift() == 0.0
    with torch.no_grad():
        for k, stack in trainable.rotations.items():
            stack.copy_(rotated(3.0, int(k)).expand_as(stack))
        trainable.shifts.fill_(0.25)
    trainable.begin_step()
    assert measures.rotation() == pytest.approx(3.0 * math.sqrt(2), rel=1e-4), "two factors turn K by both angles"
    change = trainable.layers["a"].spectrum.delta(trainable.layers["a"].shift.detach())
    assert measures.shift() == pytest.approx(float(change.norm() / W.norm()), rel=1e-4)


@pytest.mark.parametrize("what", ["rotation only", "shift only"])
def test_what_is_not_trained_has_no_size(what) -> None:
    _, trainable, _ = problem(replace(SETTINGS, train=what))
    measures = Measures(trainable)
    assert (measures.rotation() is None) == (what == "shift only")
    assert (measures.shift() is None) == (what == "rotation only")

# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that stops and goes on is the run that never stopped, to the last bit; another run is refused, and why."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from soda_core.errors import FileFormatError, SettingsError, TrainingError
from soda_core.spectral import decompose
from soda_core.training.loop import Losses, Progress, TrainingLoop
from soda_core.training.settings import TrainSettings
from soda_core.training.state import RunState
from soda_core.training.trainable import TrainableAdapter

STEPS = 8
SETTINGS = TrainSettings(steps=STEPS, rotation_lr=1e-2, shift_lr=1e-2, loss="mse", seed=3, accumulation=2)
SHAPES = {"a": (20, 30), "b": (30, 20), "c": (8, 6, 3, 3)}
KINDS = {
    "curves": {},
    "independent shifts": {"shift_knots": 0, "gradient_clip": 0.0},
    "qr": {"decomposition": "qr", "retraction": "cayley"},
    "rotation only": {"train": "rotation only", "retraction": "exp"},
    "shift only": {"train": "shift only"},
    "schedule": {"schedule": "cosine", "warmup_steps": 3},
    "automatic rates": {"rates": "automatic"},
    "automatic rates, rotation only": {"rates": "automatic", "train": "rotation only"},
    "sizes of a script": {"factor_sizes": {30: (2, 3, 5), 20: (4, 5), 54: [6, 9]}},
}


class Training:
    """Noisy, so that a step off shows; ``poison`` makes the loss of that step infinite."""

    def __init__(self, settings: TrainSettings, poison: int | None = None) -> None:
        g = torch.Generator().manual_seed(0)
        self.weights = {name: torch.randn(shape, generator=g) / 6 for name, shape in SHAPES.items()}
        self.settings, self.poison = settings, poison
        spectra = {n: decompose(W, settings.decomposition) for n, W in self.weights.items()} if settings.shifts else {}
        self.trainable = TrainableAdapter({n: tuple(W.shape) for n, W in self.weights.items()}, settings, spectra)
        self.progress = Progress()
        self.loop = TrainingLoop(self.trainable, settings, self.progress)

    def batch_loss(self, generator: torch.Generator) -> Losses:
        total = torch.zeros(())
        for name, layer in self.trainable.layers.items():
            noise = torch.randn(SHAPES[name], generator=generator)
            total = total + (layer.weight(self.weights[name]) - noise).square().mean()
        if self.progress.step == self.poison:
            total = total * math.inf
        return Losses(total, total.detach())

    def run(self, stop_after: int | None = None) -> None:
        def on_step(progress: Progress) -> None:
            if progress.step == stop_after:
                raise KeyboardInterrupt

        self.loop.run(self.batch_loss, on_step)

    def stopped(self, step: int) -> dict[str, torch.Tensor]:
        """The state of a run stopped there."""
        with pytest.raises(KeyboardInterrupt):
            self.run(step)
        state = self.loop.state()
        assert state is not None
        return state

    def result(self) -> tuple[str, list[float], list[float], list[torch.Tensor]]:
        adapter = self.trainable.to_adapter(self.weights, {})
        return adapter.identity(), self.progress.losses, self.progress.learning_rates, self.trainable.snapshot()


def assert_same(a: Training, b: Training) -> None:
    (identity, *series, parameters), (other, *others, other_parameters) = a.result(), b.result()
    assert identity == other and series == others
    assert all(torch.equal(p, q) for p, q in zip(parameters, other_parameters, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1, 5, STEPS])
def test_bit_for_bit(kind, step, tmp_path) -> None:
    settings = replace(SETTINGS, **KINDS[kind])
    whole = Training(settings)
    whole.run()
    state = RunState(settings, {}, Training(settings).stopped(step), {})
    state.save(tmp_path / "state.safetensors")
    loaded = RunState.load(tmp_path / "state.safetensors")
    loaded.check(settings, {})
    assert loaded.step == step
    further = Training(settings)
    further.loop.resume(loaded.tensors)
    assert further.progress.step == step and further.loop.state().keys() == state.tensors.keys()
    further.run()
    assert_same(further, whole)
    fresh = Training(settings)
    if step < STEPS:
        for key in list(state.tensors):
            if key.startswith("optimizer"):
                del state.tensors[key]
        fresh.loop.resume(state.tensors)
        fresh.run()
        assert fresh.result()[0] != whole.result()[0], "the optimisers' moments matter"


def test_a_stop_within_a_step_changes_nothing() -> None:
    whole, cut = Training(SETTINGS), Training(SETTINGS)
    whole.run()
    calls = 0

    def interrupted(generator: torch.Generator) -> Losses:
        nonlocal calls
        calls += 1
        if calls == 6:  # the second half of the third step
            raise KeyboardInterrupt
        return cut.batch_loss(generator)

    with pytest.raises(KeyboardInterrupt):
        cut.loop.run(interrupted, lambda _: None)
    assert cut.progress.step == 2
    further = Training(SETTINGS)
    further.loop.resume(cut.loop.state())
    further.run()
    cut.run()  # nor does going on in the same process
    assert_same(further, whole)
    assert_same(cut, whole)


def test_a_stop_within_an_update_has_no_state_and_takes_the_update_back(monkeypatch) -> None:
    training = Training(SETTINGS)
    before = training.stopped(3)

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)  # the rotations have moved by then
    with pytest.raises(MemoryError):
        training.run()
    assert training.loop.state() is None and training.progress.step == 3
    assert all(torch.equal(p, before[f"parameter.{i}"]) for i, p in enumerate(training.trainable.snapshot()))


def test_a_resumed_run_diverges_like_the_whole_one() -> None:
    whole = Training(SETTINGS, poison=5)
    with pytest.raises(TrainingError, match="diverged at step 6") as expected:
        whole.run()
    further = Training(SETTINGS, poison=5)
    further.loop.resume(Training(SETTINGS).stopped(5))
    with pytest.raises(TrainingError) as raised:
        further.run()
    assert str(raised.value) == str(expected.value)
    assert further.progress.step == whole.progress.step == 4 and further.loop.state() is None
    assert all(torch.equal(*p) for p in zip(further.trainable.snapshot(), whole.trainable.snapshot(), strict=True))


def test_an_exploding_loss_is_measured_by_the_whole_runs_first_steps() -> None:
    def run(settings: TrainSettings, state=None) -> str:
        training = Training(settings)
        if state is not None:
            training.loop.resume(state)
        grow = training.batch_loss

        def growing(generator: torch.Generator) -> Losses:
            losses = grow(generator)
            return Losses(losses.objective, losses.denoising * (1 + training.progress.step**2 / 20))

        try:
            training.loop.run(growing, stop if state is None and settings.steps == 14 else lambda _: None)
        except KeyboardInterrupt:
            return training.loop.state()
        except TrainingError as error:
            return str(error)
        raise AssertionError("it should have diverged")

    def stop(progress: Progress) -> None:
        if progress.step == 13:
            raise KeyboardInterrupt

    settings = replace(SETTINGS, steps=60)
    assert run(settings, run(replace(SETTINGS, steps=14))) == run(settings)
    assert "times that of the first steps" in run(settings)


@pytest.fixture
def state(tmp_path) -> RunState:
    settings = replace(SETTINGS, factor_sizes={30: (2, 3, 5)})
    return RunState(settings, {"latents": "a1", "training_dtype": "fp32"}, Training(settings).stopped(3), {"x": [1]})


class TestRefusals:
    def test_what_differs_is_said_field_by_field(self, state) -> None:
        state.check(replace(state.settings, steps=STEPS * 2), state.conditions)
        other = replace(state.settings, seed=4, loss="dco", steps=2, factor_sizes={30: (5, 6)})
        with pytest.raises(SettingsError) as raised:
            state.check(other, {"latents": "b2", "training_dtype": "fp32", "class_latents": "c3"})
        for said in (
            "seed (was 3, is 4)", "loss (was 'mse', is 'dco')", "latents (was 'a1', is 'b2')",
            "class_latents (was 'none', is 'c3')", "steps (3 are done, asked for are 2)",
            "factor_sizes (was {30: (2, 3, 5)}, is {30: (5, 6)})",
        ):  # fmt: skip
            assert said in str(raised.value)
        assert "dtype" not in str(raised.value) and "rotation_lr" not in str(raised.value)

    def test_json_changes_no_setting(self, state, tmp_path) -> None:
        state.save(tmp_path / "s.safetensors")
        loaded = RunState.load(tmp_path / "s.safetensors")
        assert loaded.settings == state.settings and loaded.notes == {"x": [1]}
        with pytest.raises(SettingsError, match="unknown setting 'magic'.*update"):
            TrainSettings.from_metadata({**state.settings.as_metadata(), "magic": 1})

    @pytest.mark.parametrize("damage", ["cut", "flipped", "not safetensors", "no state", "gone"])
    def test_a_damaged_file(self, state, tmp_path, damage) -> None:
        path = tmp_path / "s.safetensors"
        state.save(path)
        data = bytearray(path.read_bytes())
        data[-9] ^= 1
        if damage == "gone":
            path.unlink()
        elif damage == "no state":
            Training(SETTINGS).trainable.to_adapter(None, {}).save(path)
        else:
            path.write_bytes({"cut": data[:-40], "flipped": data, "not safetensors": b"x" * 50}[damage])
        with pytest.raises(FileFormatError, match=r"'s\.safetensors' cannot be read.*-interrupted"):
            RunState.load(path)

    def test_tensors_that_do_not_fit(self, state) -> None:
        for change, match in (
            ({"parameter.0": torch.zeros(1)}, "parameter.0 should hold finite values of shape"),
            ({"previous.0": torch.full_like(state.tensors["previous.0"], math.nan)}, "previous.0 should hold finite"),
        ):
            with pytest.raises(TrainingError, match=match):
                Training(state.settings).loop.resume({**state.tensors, **change})
        for key in ("losses", "parameter.1"):
            with pytest.raises(TrainingError, match=f"{key}' is missing"):
                Training(state.settings).loop.resume({n: t for n, t in state.tensors.items() if n != key})

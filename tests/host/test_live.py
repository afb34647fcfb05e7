# SPDX-License-Identifier: GPL-3.0-or-later
"""What is seen of a training while it runs, and that being seen changes nothing."""

from __future__ import annotations

import json

import pytest
import torch

from .conftest import conditioning, in_words, latents

pytestmark = pytest.mark.host
PRESET = "sd15-min"


@pytest.fixture(scope="module")
def model(host):
    return host.model(PRESET)


def train(host, model, live=None, on_step=lambda progress: None, prefix="live/run", **settings):
    training, config = host.core("host.training"), host.core("training.settings")
    values = {"steps": 4, "rotation_lr": 1e-2, "shift_lr": 1e-2, "loss": "mse", "seed": 1} | settings
    options = {"filename_prefix": prefix, "on_step": on_step} | ({} if live is None else {"live": live})
    with torch.inference_mode():
        data = training.TrainingData([latents(model)], [conditioning(PRESET)])
        return training.train_in_graph(model, data, config.TrainSettings(**values), training.RunOptions(**options))


@pytest.fixture
def watched(host):
    """A view, and the states it has told."""
    told: list[dict] = []
    return host.core("host.training.live").Live(told.append, node="7", workflow="w", prompt="p"), told


def test_watching_leaves_the_adapter_as_it_is_bit_for_bit(host, model, watched) -> None:
    live, told = watched
    settings = {"loss": "dco", "steps": 5}
    assert train(host, model, live, **settings).adapter.identity() == train(host, model, **settings).adapter.identity()
    assert len(told[-1]["curves"]["validation"]) == 6, "and it was looked at before the first step and after each"


def test_a_run_is_seen_from_its_preparation_to_its_file(host, model, watched) -> None:
    live, told = watched
    result = train(host, model, live, steps=4)
    statuses = [state["status"] for state in told]
    assert statuses[0] == "preparing" and statuses[-1] == "done" and "training" in statuses
    last = told[-1]
    assert (last["node"], last["workflow"], last["step"], last["steps"]) == ("7", "w", 4, 4)
    assert last["saved"] == result.saved_name and not last["error"]
    assert {state["note_words"].get("key") for state in told} >= {"note_decomposing", "note_size"}
    assert all(state["note"] == in_words(state) for state in told)
    curves = last["curves"]
    assert [step for step, _ in curves["loss"]] == [1, 2, 3, 4]
    assert [value for _, value in curves["loss"]] == pytest.approx(result.losses, rel=1e-3)
    assert curves["rotation"][0] == [0, 0.0] and curves["rotation"][-1][1] > 0.1, "degrees"
    assert curves["shift"][0] == [0, 0.0] and 0 < curves["shift"][-1][1] < 1
    assert last["rates"] == [1e-2, 1e-2]
    for state in told:
        json.dumps(state, allow_nan=False)
        assert len(json.dumps(state)) < 50_000


def test_automatic_rates_are_seen_and_the_file_says_what_they_came_to(host, model, watched, caplog) -> None:
    live, told = watched
    with caplog.at_level("INFO"):
        result = train(host, model, live, rates="automatic", steps=8)
    found = host.core("host.folders").load_adapter(result.saved_name).metadata["automatic_rates"]
    taken = [state["rates"] for state in told if state["status"] == "training"]
    start = host.core("training.optimizers").SMALLEST
    assert taken[0] == pytest.approx([start["rotation"], start["shift"]])
    assert len(found) == 2 and all(found[part] >= start[part] for part in start)
    assert max(found[part] / start[part] for part in start) > 1.1, "one at least has risen"
    assert taken[-1][0] <= found["rotation"] and taken[-1][1] <= found["shift"]
    assert f"learning rates rotation {taken[-1][0]:.2g}, shift {taken[-1][1]:.2g}" in caplog.text
    assert "automatic_rates" not in train(host, model, live).adapter.metadata


def test_validation_is_the_same_question_each_time(host, model, watched) -> None:
    """Nothing learned: nothing changes, where the loss itself jumps."""
    live, told = watched
    train(host, model, live, rotation_lr=0.0, shift_lr=1e-12)
    curves = told[-1]["curves"]
    assert len({value for _, value in curves["validation"]}) == 1
    assert len({value for _, value in curves["loss"]}) > 1


def test_a_cancel_says_where_the_adapter_is_kept(host, model, watched) -> None:
    import comfy.model_management as mm

    live, told = watched

    def on_step(progress) -> None:
        if progress.step == 2:
            raise mm.InterruptProcessingException

    with pytest.raises(mm.InterruptProcessingException):
        train(host, model, live, on_step, prefix="live/cancelled")
    last = told[-1]
    assert last["status"] == "stopped" and last["step"] == 2
    assert last["saved"].startswith("live/cancelled-interrupted_")
    assert last["saved"] in host.core("host.folders").adapter_names()
    states = host.core("host.training.states")
    assert last["kept_run"] in states.choices()
    for path in states.folder().iterdir():
        path.unlink()


def test_an_error_before_the_first_step_is_seen_too(host, model, watched) -> None:
    live, told = watched
    with pytest.raises(host.core("errors").SodaError):
        train(host, model, live, prefix="../outside")
    assert told[-1]["status"] == "failed" and "../outside" in told[-1]["error"]


def test_finish_now_is_an_ordinary_end_after_the_step(host, model, watched) -> None:
    live, told = watched

    def on_step(progress) -> None:
        if progress.step == 2:
            assert live.ask_finish()

    result = train(host, model, live, on_step, steps=50, prefix="live/finished")
    assert len(result.losses) == 2 and result.adapter.metadata["steps"] == 2
    assert result.saved_name.startswith("live/finished_") and told[-1]["status"] == "done"
    assert any(state["status"] == "finishing" for state in told)
    assert not live.ask_finish(), "it has ended"


def test_several_prompts_give_several_pictures(host, model, watched) -> None:
    live, told = watched
    training, config = host.core("host.training"), host.core("training.settings")
    settings = config.TrainSettings(steps=2, rotation_lr=1e-2, shift_lr=1e-2, loss="mse", seed=1)
    options = training.RunOptions(filename_prefix="live/two", preview_every=2, preview_steps=1, live=live)
    with torch.inference_mode():
        prompts = [conditioning(PRESET, seed) for seed in (1, 2)]
        data = training.TrainingData([latents(model)], [conditioning(PRESET)], preview_positive=prompts)
        training.train_in_graph(model, data, settings, options)
    pictures = told[-1]["pictures"]
    assert [(picture["step"], picture["prompt"]) for picture in pictures] == [(0, 0), (0, 1), (2, 0), (2, 1)]
    contents = [(host.base / "output" / p["subfolder"] / p["filename"]).read_bytes() for p in pictures]
    assert len(set(contents)) == 4


def test_a_strip_of_pictures_keeps_the_first_the_last_and_some_between(host) -> None:
    module = host.core("host.training.live")
    live = module.Live(lambda state: None)
    for step in range(100):
        for prompt in (0, 1):
            live.picture(step, prompt, {"filename": f"{step}.png"})
    for prompt in (0, 1):
        steps = [p["step"] for p in live.state()["pictures"] if p["prompt"] == prompt]
        assert steps[0] == 0 and steps[-1] == 99 and len(steps) <= module.MOST_PICTURES and steps == sorted(steps)


def test_a_long_run_is_validated_seldom(host) -> None:
    """By forward passes of one picture; a step takes three or more, so that is a hundredth of the time at most."""
    validation = host.core("host.training.validation")
    for steps in (1000, 10_000):
        looks = 1 + steps // validation.stride(steps)
        assert looks > 10 and looks * validation.BATCHES <= 0.025 * steps
    assert validation.stride(1) == 1

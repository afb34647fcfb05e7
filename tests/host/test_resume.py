# SPDX-License-Identifier: GPL-3.0-or-later
"""A training in the host that goes on: what is listed, what is refused and why, what is tried before the first step."""

from __future__ import annotations

import os

import pytest
import torch

from .conftest import conditioning, in_words, latents

pytestmark = pytest.mark.host
PRESET = "sd15-min"


@pytest.fixture(scope="module")
def model(host):
    return host.model(PRESET)


def train(host, model, data=None, stop_after=None, settings=None, **options):
    """A training of two steps; ``stop_after`` cancels it there."""
    import comfy.model_management as mm

    training, config = host.core("host.training"), host.core("training.settings")

    def on_step(progress) -> None:
        if progress.step == stop_after:
            raise mm.InterruptProcessingException

    values = {"steps": 5, "rotation_lr": 1e-3, "shift_lr": 1e-3, "loss": "mse", "seed": 1} | (settings or {})
    chosen = training.RunOptions(**{"filename_prefix": "r/run", "on_step": on_step} | options)
    with torch.inference_mode():
        data = data or training.TrainingData([latents(model)], [conditioning(PRESET)])
        return training.train_in_graph(model, data, config.TrainSettings(**values), chosen)


def unfinished(host) -> list[str]:
    return [choice for choice in host.core("host.training.states").choices() if choice.startswith("unfinished: ")]


@pytest.fixture
def stopped(host, model):
    """A run cancelled after its second step, as ``continue_from`` lists it; none is left afterwards."""
    import comfy.model_management as mm

    assert not unfinished(host)
    with pytest.raises(mm.InterruptProcessingException):
        train(host, model, stop_after=2)
    (choice,) = unfinished(host)
    yield choice
    for path in (host.base / "user" / "__soda_states").iterdir():
        path.unlink()


def refuse(host, model, match, **arguments) -> None:
    with pytest.raises(host.core("errors").SodaError, match=f"(?s){match}"):
        train(host, model, **arguments)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(host, model, stopped) -> None:
    assert stopped.startswith("unfinished: run 2")
    assert host.core("host.training.states").choices()[:2] == ["(none)", stopped]
    whole = train(host, model)
    assert unfinished(host) == [stopped], "another run, finished, leaves it alone"
    further = train(host, model, continue_from=stopped)
    assert further.adapter.identity() == whole.adapter.identity() and further.losses == whole.losses
    assert further.adapter.metadata["steps"] == 5 and not unfinished(host)
    refuse(host, model, "continue_from: .*is gone: it was finished", continue_from=stopped)


def test_more_steps_may_be_asked_for_and_it_may_be_stopped_again(host, model, stopped) -> None:
    import comfy.model_management as mm

    longer = {"steps": 7}
    with pytest.raises(mm.InterruptProcessingException):
        train(host, model, continue_from=stopped, settings=longer, stop_after=4)
    assert unfinished(host) == [stopped], "one run, one state"
    further = train(host, model, continue_from=stopped, settings=longer)
    assert further.losses == train(host, model, settings=longer).losses


@pytest.mark.usefixtures("stopped")
def test_what_is_not_the_same_run_is_refused_with_all_that_differs(host, model) -> None:
    import comfy.sd

    (choice,) = unfinished(host)
    refuse(host, model, r"another one: loss \(was 'mse', is 'dco'\); seed \(was 1, is 2\)\. Put", continue_from=choice,
           settings={"seed": 2, "loss": "dco"})  # fmt: skip
    refuse(host, model, r"another one: steps \(2 are done, asked for are 1\)", continue_from=choice,
           settings={"steps": 1})  # fmt: skip
    refuse(host, model, r"training_dtype \(was 'fp32', is 'bf16'\)", continue_from=choice, training_dtype="bf16")
    data = host.core("host.training").TrainingData
    for given, name in (
        (data([latents(model, seed=1)], [conditioning(PRESET)]), "latents"),
        (data([latents(model)], [conditioning(PRESET, 1)]), "positive"),
        (data([latents(model)], [conditioning(PRESET)], [conditioning(PRESET, 1)]), "base_positive"),
    ):
        refuse(host, model, rf"another one: {name} \(was '\w+', is '\w+'\)\. Put", continue_from=choice, data=given)
    prior = data([latents(model)], [conditioning(PRESET)], None, [latents(model)], [conditioning(PRESET)])
    refuse(host, model, r"one: class_latents \(was 'none', .*class_positive", continue_from=choice, data=prior)
    name = next(n for n in host.core("host.base").layer_shapes(model) if n.endswith("attn1.to_v"))
    with torch.inference_mode():
        other = host.model(PRESET)
        host.core("host.base").pristine_weight(other, f"{name}.weight")[0, 0] += 1
        lora = {f"{name}.lora_up.weight": torch.randn(320, 1), f"{name}.lora_down.weight": torch.randn(1, 320)}
        patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    refuse(host, other, r"another one: base model \(was", continue_from=choice)
    refuse(host, patched, r"predictions are off by \d+%.*LoRAs", continue_from=choice)
    assert unfinished(host) == [choice], "nothing of that touches it"
    train(host, model, continue_from=choice)


def test_an_adapter_is_where_a_new_run_starts(host, model) -> None:
    first = train(host, model, settings={"rotation_lr": 0.02, "shift_lr": 0.02})
    second = train(host, model, continue_from=first.saved_name)
    assert second.losses[0] < first.losses[0] and second.adapter.metadata["steps"] == 5
    origin = second.adapter.metadata["started_from"]
    assert origin == {"title": first.adapter.title, "hash": first.adapter.identity()}
    saved = host.core("host.folders").load_adapter(second.saved_name)
    assert saved.metadata["started_from"] == origin
    refuse(host, model, "factors of sizes", continue_from=first.saved_name, settings={"factor_count": 1})
    refuse(host, model, "no adapter 'gone'", continue_from="gone")


def test_states_are_written_by_the_clock_and_ten_are_kept(host, tmp_path, monkeypatch) -> None:
    states, settings = host.core("host.training.states"), host.core("training.settings").TrainSettings()
    monkeypatch.setattr(states, "folder", lambda: tmp_path)
    state = host.core("training.state").RunState(settings, {}, {"losses": torch.zeros(3)}, {})
    now = 0.0
    monkeypatch.setattr(states.time, "monotonic", lambda: now)
    options = host.core("host.training").RunOptions
    for i in range(12):
        file = states.Start.chosen(options(filename_prefix=f"sub/ö: {i}", state_minutes=2)).file
        assert file.write(state)
        os.utime(file.path, (i, i))
    listed = unfinished(host)
    assert len(listed) == 10 and listed[0].startswith("unfinished: ö__11 2")
    assert all(states.Start.chosen(options(continue_from=choice)).state.step == 3 for choice in listed)
    for now, due in ((119.0, False), (121.0, True)):  # noqa: B007  (the clock reads it)
        assert file.due() == due
    never = states.Start.chosen(options(state_minutes=0)).file
    now = 1e9
    assert not never.due() and not never.write(state) and not never.path.exists()
    file.discard()
    assert len(unfinished(host)) == 9
    for outside in ("unfinished: ../x", "unfinished: "):
        with pytest.raises(host.core("errors").SettingsError, match="is gone"):
            states.Start.chosen(options(continue_from=outside))


def test_no_state_where_none_is_wanted(host, model) -> None:
    import comfy.model_management as mm

    with pytest.raises(mm.InterruptProcessingException):
        train(host, model, stop_after=2, state_minutes=0)
    assert not unfinished(host)


def test_a_training_that_nothing_can_save_is_not_lost(host, model, monkeypatch, caplog) -> None:
    folders = host.core("host.folders")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    states: list[dict] = []
    with monkeypatch.context() as patch:
        patch.setattr(folders, "keep_adapter", full)
        result = train(host, model, live=host.core("host.training.live").Live(states.append))
    assert result.saved_name == "" and "No space left" in result.warning and len(result.losses) == 5
    assert states[-1]["note"] == in_words(states[-1]) == result.warning and states[-1]["status"] == "done"
    assert result.warning in caplog.text
    (choice,) = unfinished(host)
    states.clear()
    saved = train(host, model, continue_from=choice, live=host.core("host.training.live").Live(states.append))
    assert saved.adapter.identity() == result.adapter.identity() and not saved.warning
    assert "note_continuing" in {state["note_words"].get("key") for state in states}
    assert all(state["note"] == in_words(state) for state in states)
    assert folders.load_adapter(saved.saved_name).identity() == result.adapter.identity()
    assert not unfinished(host)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"filename_prefix": "x" * 207}, "File name too long.*another name"),  # with -interrupted
        ({"filename_prefix": "x" * 218}, "File name too long.*another name"),
        ({"filename_prefix": "x" * 206, "save_every": 1, "steps": 123456789}, "File name too long"),
        ({"trigger_phrase": "fox\udc80"}, "trigger_phrase.*half a character"),
        ({"filename_prefix": "fox\udc80"}, "file name prefix.*half a character"),
    ],
)
def test_what_would_fail_at_the_end_fails_at_the_start(host, model, options, match) -> None:
    stepped = []
    settings = {"steps": options["steps"]} if "steps" in options else {}
    options = {name: value for name, value in options.items() if name != "steps"}
    with pytest.raises(host.core("errors").SodaError, match=match):
        train(host, model, settings=settings, on_step=stepped.append, **options)
    assert not stepped and not unfinished(host)


def test_the_longest_name_that_passes_can_be_saved_when_interrupted(host, model) -> None:
    import comfy.model_management as mm

    with pytest.raises(mm.InterruptProcessingException):
        train(host, model, stop_after=1, filename_prefix="y" * 205, state_minutes=0)
    assert [n for n in host.core("host.folders").adapter_names() if n.startswith("yyy")] == [
        f"{'y' * 205}-interrupted_00001_.safetensors"
    ]


def test_metadata_that_no_file_can_hold_is_found_out_before_the_first_step(host, model) -> None:
    """Wherever it comes from: the adapter itself is written and taken away again."""
    stepped = []
    with pytest.raises(ValueError, match="workflow holds half a character"):
        train(host, model, notes={"workflow": "fox\udc80"}, on_step=stepped.append)
    assert not stepped

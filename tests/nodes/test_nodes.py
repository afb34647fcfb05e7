# SPDX-License-Identifier: GPL-3.0-or-later
"""What the nodes say of themselves, as the front end sees it."""

from __future__ import annotations

import pytest

from demo.graph import WIDGET_TYPES
from soda_core.training.setting import settings_of
from soda_core.training.settings import TrainSettings

from .conftest import troubles

NODES = {
    "SODATrain": "Train SODA (in-graph)",
    "SODATrainingSettings": "SODA Training Settings",
    "SODALoadAdapter": "Load SODA Adapter",
    "SODAApplyAdapter": "Apply SODA Adapter",
    "SODAStack": "SODA Stack",
    "SODAMerge": "Merge Subject+Style SODA",
    "SODASaveAdapter": "Save SODA Adapter",
    "SODAExportLoRA": "Export SODA as LoRA",
    "SODAInspectAdapter": "Inspect SODA Adapter",
}


def test_exactly_these_nodes_are_offered(server) -> None:
    info = server.object_info(refresh=True)
    assert {k: v["display_name"] for k, v in info.items() if k.startswith("SODA")} == NODES
    started, ready, _ = server.log.partition("To see the GUI go to")  # later errors are those that tests ask for
    assert ready and not troubles(started)


@pytest.mark.parametrize("node", NODES)
def test_every_input_explains_itself(server, node) -> None:
    info = server.object_info()[node]
    assert len(info["description"]) > 60 and info["search_aliases"]
    assert info["category"].startswith("SODA")
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    for name, spec in inputs.items():
        tooltip = spec[1].get("tooltip", "") if len(spec) > 1 else ""
        assert len(tooltip) > 20, f"{node}.{name} has no tooltip"
    assert all(tooltip for tooltip in info["output_tooltips"])


def inputs_of(server, node: str) -> dict[str, list]:
    info = server.object_info()[node]["input"]
    return {**info.get("required", {}), **info.get("optional", {})}


def is_widget(spec: list) -> bool:
    return spec[0] in WIDGET_TYPES


def test_the_widget_order_is_frozen(server) -> None:
    """A saved workflow stores widget values by position: new ones may only come at the end, none may go."""
    assert [name for name, spec in inputs_of(server, "SODATrain").items() if is_widget(spec)] == [
        "filename_prefix", "trigger_phrase", "steps", "batch_size", "rotation_lr",
        "shift_lr", "decomposition", "train", "layers", "layer_pattern", "factor_preset", "factor_count", "loss",
        "dco_beta", "min_snr_gamma", "prior_weight", "schedule", "warmup_steps", "accumulation", "gradient_clip",
        "retraction", "seed", "training_dtype", "gradient_checkpointing", "save_every", "preview_every",
        "preview_steps", "shift_knots", "state_minutes", "continue_from", "rate_units", "rates",
    ]  # fmt: skip
    assert [name for name, spec in inputs_of(server, "SODATrain").items() if not is_widget(spec)] == [
        "model", "latents", "positive", "base_positive", "class_latents", "class_positive", "negative", "vae",
        "settings", "preview_positive",
    ]  # fmt: skip
    assert list(inputs_of(server, "SODATrainingSettings")) == [
        "batch_size", "accumulation", "train", "factor_preset", "factor_count", "warmup_steps", "schedule",
        "gradient_clip", "retraction", "training_dtype", "gradient_checkpointing", "save_every", "preview_steps",
        "state_minutes", "continue_from", "rate_units", "rates",
    ]  # fmt: skip


def test_at_most_twelve_widgets_at_first_sight_and_the_rest_in_the_settings_node(server) -> None:
    train, rest = inputs_of(server, "SODATrain"), inputs_of(server, "SODATrainingSettings")
    shown = [name for name, spec in train.items() if is_widget(spec) and not spec[1].get("hidden")]
    assert len(shown) <= 12 and {"steps", "rotation_lr", "loss", "dco_beta", "shift_knots", "seed"} <= set(shown)
    for name, (_, options) in train.items():
        if options.get("hidden"):
            assert name in rest or options["soda_when"][0] in train, f"{name} cannot be reached"
    for name, (kind, options) in rest.items():
        hidden = {"hidden", "soda_when", "soda_offers", "soda_before"}
        assert (kind, _without(options, hidden)) == (train[name][0], _without(train[name][1], hidden)), name


def _without(options: dict, names: set[str]) -> dict:
    return {key: value for key, value in options.items() if key not in {*names, "optional"}}


#: Inputs, optional inputs and outputs of the other nodes, in their order. A saved workflow stores widget values and
#: output slots by place, a prompt knows inputs by name: new ones come at the end and are optional.
_STRENGTHS = "strength_model strength_clip mode ignore_base_check"
INTERFACES = {
    "SODALoadAdapter": (
        f"model adapter_name {_STRENGTHS}", "clip blocks", "MODEL CLIP adapter trigger_phrase HOOKS",
    ),
    "SODAApplyAdapter": (f"model adapter {_STRENGTHS}", "clip blocks", "MODEL CLIP trigger_phrase HOOKS"),
    "SODAStack": (
        "model mode ignore_base_check adapter_1 on_1 model_1 clip_1 blocks_1 more_2", "clip",
        "MODEL CLIP HOOKS trigger_phrases loaded",
    ),
    "SODAMerge": (
        "subject style subject_strength style_strength method", "model subject_blocks style_blocks balance magnitude",
        "adapter report",
    ),
    "SODASaveAdapter": ("adapter filename_prefix", "preview", "saved_name"),
    "SODAExportLoRA": (
        "adapter model filename_prefix by naming strength mode dtype ignore_base_check", "clip", "saved_name report",
    ),
    "SODAInspectAdapter": ("adapter", "model", "picture metadata summary"),
}  # fmt: skip


@pytest.mark.parametrize("node", NODES.keys() - {"SODATrain", "SODATrainingSettings"})
def test_what_saved_workflows_and_prompts_know_a_node_by_is_frozen(server, node) -> None:
    info = server.object_info()[node]
    found = (*(list(info["input"].get(part, {})) for part in ("required", "optional")), info["output_name"])
    assert found == tuple(names.split() for names in INTERFACES[node])


def test_a_stack_s_rows_are_nested_and_frozen_too(server) -> None:
    inputs, rows = server.object_info()["SODAStack"]["input"]["required"], 1
    while more := inputs.get(f"more_{rows + 1}"):
        off, on = more[1]["options"]
        assert (off["key"], on["key"]) == ("no", "yes") and not any(off["inputs"].values())
        inputs, rows = on["inputs"]["required"], rows + 1
        names = [f"{name}_{rows}" for name in ("adapter", "on", "model", "clip", "blocks")]
        assert list(inputs) == names + [f"more_{rows + 1}"] * (rows < 8)
    assert rows == 8


def test_every_setting_is_an_input_with_what_it_says_of_itself(server) -> None:
    inputs = inputs_of(server, "SODATrain")
    for name, setting in settings_of(TrainSettings).items():
        kind, options = inputs[name]
        said = {key: options.get(key) for key in ("default", "tooltip", "min", "max", "step", "options")}
        assert said == {
            "default": getattr(TrainSettings, name),
            "tooltip": setting.help,
            "min": setting.minimum,
            "max": setting.maximum,
            "step": setting.step,
            "options": list(setting.choices) or None,
        }, name
        assert (kind == "COMBO") == bool(setting.choices)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the nodes say of themselves, as the front end sees it."""

from __future__ import annotations

import pytest

from soda_core.training.setting import settings_of
from soda_core.training.settings import TrainSettings

NODES = {
    "SODATrain": "Train SODA (in-graph)",
    "SODALoadAdapter": "Load SODA Adapter",
    "SODAApplyAdapter": "Apply SODA Adapter",
    "SODAMerge": "Merge Subject+Style SODA",
    "SODASaveAdapter": "Save SODA Adapter",
    "SODAExportLoRA": "Export SODA as LoRA",
    "SODAInspectAdapter": "Inspect SODA Adapter",
}


def test_exactly_these_nodes_are_offered(server) -> None:
    info = server.object_info(refresh=True)
    assert {k: v["display_name"] for k, v in info.items() if k.startswith("SODA")} == NODES
    assert "IMPORT FAILED" not in server.log and "Cannot import" not in server.log


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


def test_the_widget_order_is_frozen(server) -> None:
    """A saved workflow stores widget values by position: new ones may only come at the end."""
    assert list(server.object_info()["SODATrain"]["input"]["required"]) == [
        "model", "latents", "positive", "filename_prefix", "trigger_phrase", "steps", "batch_size", "rotation_lr",
        "shift_lr", "decomposition", "train", "layers", "layer_pattern", "factor_preset", "factor_count", "loss",
        "dco_beta", "min_snr_gamma", "prior_weight", "schedule", "warmup_steps", "accumulation", "gradient_clip",
        "retraction", "seed", "training_dtype", "gradient_checkpointing", "save_every", "preview_every",
        "preview_steps", "shift_knots",
    ]  # fmt: skip
    assert list(server.object_info()["SODATrain"]["input"]["optional"]) == [
        "base_positive", "class_latents", "class_positive", "negative", "vae", "state_minutes", "continue_from",
    ]  # fmt: skip


def test_every_setting_is_an_input_with_what_it_says_of_itself(server) -> None:
    inputs = server.object_info()["SODATrain"]["input"]["required"]
    for name, setting in settings_of(TrainSettings).items():
        kind, options = inputs[name]
        said = {key: options.get(key) for key in ("default", "tooltip", "min", "max", "step", "advanced", "options")}
        assert said == {
            "default": getattr(TrainSettings, name),
            "tooltip": setting.help,
            "min": setting.minimum,
            "max": setting.maximum,
            "step": setting.step,
            "advanced": setting.advanced or None,
            "options": list(setting.choices) or None,
        }, name
        assert (kind == "COMBO") == bool(setting.choices)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the nodes say of themselves, as the front end sees it."""

from __future__ import annotations

from urllib.request import urlopen

import pytest

NODES = {
    "SODATrain": "Train SODA (in-graph)",
    "SODALoadAdapter": "Load SODA Adapter",
    "SODAApplyAdapter": "Apply SODA Adapter",
    "SODAMerge": "Merge Subject+Style SODA",
    "SODASaveAdapter": "Save SODA Adapter",
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


@pytest.mark.parametrize("node", NODES)
def test_every_node_has_a_help_page(server, node) -> None:
    page = urlopen(f"{server.url}/extensions/soda/docs/{node}.md").read().decode()
    assert page.startswith("# ") and len(page) > 300


def test_the_widget_order_is_frozen(server) -> None:
    """A saved workflow stores widget values by position: new ones may only come at the end."""
    required = list(server.object_info()["SODATrain"]["input"]["required"])
    assert required[:12] == [
        "model", "latents", "positive", "filename_prefix", "trigger_phrase", "steps", "batch_size", "rotation_lr",
        "shift_lr", "decomposition", "train", "layers",
    ]  # fmt: skip
    assert required[-4:] == ["save_every", "preview_every", "preview_steps", "shift_knots"]

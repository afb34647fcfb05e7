# SPDX-License-Identifier: GPL-3.0-or-later
"""What a new user meets first: search, templates, help."""

from __future__ import annotations

import pytest

from demo.build_workflows import TITLES

from .conftest import workflow


def test_nodes_are_found_by_search(ui) -> None:
    ui.page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    ui.page.keyboard.type("soda")
    for name in ("Load SODA Adapter", "Train SODA (in-graph)"):
        ui.page.get_by_text(name).first.wait_for()
    ui.shot("search")
    ui.page.keyboard.press("Escape")
    ui.page.keyboard.press("Escape")


#: A loader that must ask for its file.
GONE = {
    "id": 9000, "type": "CheckpointLoaderSimple", "pos": [0, -3000], "size": [300, 120], "flags": {}, "order": 0,
    "mode": 0, "properties": {}, "widgets_values": ["gone.safetensors"],
}  # fmt: skip
RED = "app.graph._nodes.filter((node) => node.has_errors).map((node) => Number(node.id))"


@pytest.mark.parametrize("name", TITLES)
def test_a_template_opens_without_a_red_node(ui, name) -> None:
    """But for a loader put beside it that names a file which is not there: the front end tells all at once, later."""
    graph = workflow(name)
    ui.load({**graph, "nodes": [*graph["nodes"], GONE]})
    types = "app.graph._nodes.map((node) => node.type)"
    unknown = ui.page.evaluate(f"{types}.filter((type) => !window.LiteGraph.registered_node_types[type])")
    assert not unknown and ui.page.evaluate(f"{types}.length") > 10
    ui.wait(f"{RED}.length > 0")
    assert ui.page.evaluate(RED) == [GONE["id"]]
    ui.shot(f"template-{name}")


def test_app_mode_calls_every_setting_by_a_name_that_tells(ui) -> None:
    ui.load(workflow("merge_subject_and_style"))
    toggle = "app.extensionManager.command.execute('Comfy.ToggleLinear')"
    ui.page.evaluate(toggle)
    labels = ui.page.get_by_test_id("builder-widget-label")
    labels.first.wait_for()
    ui.shot("app-mode")
    assert labels.all_inner_texts() == [
        "ckpt_name", "Subject", "Style", "subject_strength", "style_strength", "method", "Prompt",
    ]  # fmt: skip
    ui.page.evaluate(toggle)


def test_help_opens_at_the_first_request(ui) -> None:
    ui.load(workflow("train_subject"))
    assert ui.help("SODATrain", "The settings that matter") == [("SODATrain/en.md", 200)]
    ui.shot("help")

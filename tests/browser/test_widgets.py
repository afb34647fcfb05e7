# SPDX-License-Identifier: GPL-3.0-or-later
"""What Train SODA shows: twelve widgets at first, more when they matter, and what an older workflow says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo.build_workflows import TITLES

from .conftest import workflow

BEFORE = Path(__file__).parents[1] / "data" / "workflow_before_settings.json"
ADD = """(kinds) => {
    app.graph.clear()
    return kinds.map((kind) => {
        const node = LiteGraph.createNode(kind)
        app.graph.add(node)
        return node.id
    })
}"""
#: Names of the settings that a node shows, without what it draws of its run.
SHOWN = """(type) => {
    const node = app.graph._nodes.find((n) => n.type === type)
    return node.widgets.filter((w) => !w.hidden && node.inputs.some((input) => input.widget?.name === w.name))
        .map((w) => w.name)
}"""
CHOOSE = """([name, value]) => {
    const widget = app.graph._nodes.find((n) => n.type === "SODATrain").widgets.find((w) => w.name === name)
    widget.value = value
    widget.callback?.(value)
}"""
PROMPT = "async () => (await app.graphToPrompt()).output"
#: Of every two nodes whose boxes meet, their types; in Nodes 2.0 as the page has laid them out.
OVERLAPS = """() => {
    const boxes = app.graph._nodes.map(
        (n) => [n.type, n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1]])
    return boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) =>
        a[1] < b[3] && b[1] < a[3] && a[2] < b[4] && b[2] < a[4]).map((b) => `${a[0]} and ${b[0]}`))
}"""


def test_twelve_widgets_at_first_sight_and_rates_as_one_writes_them(ui) -> None:
    ui.page.evaluate(ADD, ["SODATrain"])
    # (one more while there is an unfinished run, as another test may have left)
    shown = [name for name in ui.page.evaluate(SHOWN, "SODATrain") if name != "continue_from"]
    assert len(shown) <= 12 and {"rotation_lr", "dco_beta", "shift_knots"} <= set(shown)
    assert ui.page.evaluate("app.graph._nodes[0].widgets.find((w) => w.name === 'rotation_lr').value") == "4e-4"
    ui.select("SODATrain")
    ui.shot("train-first-sight")


def test_what_belongs_to_a_choice_appears_with_it(ui) -> None:
    train, latent = ui.page.evaluate(ADD, ["SODATrain", "EmptyLatentImage"])
    for (name, value), came, went in (
        (("loss", "min-snr"), "min_snr_gamma", "dco_beta"),
        (("decomposition", "qr"), "", "shift_knots"),
        (("layers", "pattern"), "layer_pattern", ""),
        (("loss", "mse"), "", "min_snr_gamma"),
    ):
        ui.page.evaluate(CHOOSE, [name, value])
        shown = ui.page.evaluate(SHOWN, "SODATrain")
        assert (not came or came in shown) and went not in shown
    connect = "([from, to]) => app.graph.getNodeById(from).connect(0, app.graph.getNodeById(to), 'class_latents')"
    ui.page.evaluate(connect, [latent, train])
    assert "prior_weight" in ui.page.evaluate(SHOWN, "SODATrain")


def test_a_rate_is_a_number_in_the_prompt(ui) -> None:
    ui.page.evaluate(ADD, ["SODATrain"])
    for written, number in (("3e-4", 3e-4), (" 0.5 ", 0.5), ("fast", "fast")):
        ui.page.evaluate(CHOOSE, ["rotation_lr", written])
        (entry,) = ui.page.evaluate(PROMPT).values()
        assert entry["inputs"]["rotation_lr"] == number


def test_an_older_workflow_says_what_it_said_and_shows_it(ui) -> None:
    before = json.loads(BEFORE.read_text("utf-8"))
    ui.load(before)
    (train,) = (e["inputs"] for e in ui.page.evaluate(PROMPT).values() if e["class_type"] == "SODATrain")
    said = {
        "steps": 3, "rotation_lr": 0.02, "shift_lr": 3e-5, "decomposition": "qr", "batch_size": 2, "seed": 11,
        "schedule": "cosine", "gradient_clip": 0.5, "loss": "min-snr", "min_snr_gamma": 4, "shift_knots": 8,
        "rate_units": "entry",
    }  # fmt: skip
    assert {name: train[name] for name in said} == said
    shown = set(ui.page.evaluate(SHOWN, "SODATrain"))
    assert {"batch_size", "schedule", "gradient_clip", "min_snr_gamma", "rate_units"} <= shown, "whatever is no default"
    assert not {"warmup_steps", "retraction", "dco_beta"} & shown
    ui.select("SODATrain")
    ui.shot("older-workflow")


@pytest.mark.parametrize("name", TITLES)
def test_no_nodes_overlap(ui, name) -> None:
    ui.load(workflow(name))
    ui.page.wait_for_timeout(3000)  # until Nodes 2.0 has laid them out
    assert not ui.page.evaluate(OVERLAPS)


def test_a_loader_of_the_examples_takes_the_newest_adapter_of_its_kind(ui) -> None:
    """And one that names a file of its own keeps that, whether it is there or not."""
    example = workflow("merge_subject_and_style")
    ui.load(example)
    again = """(prefixes) => app.graph._nodes.filter((n) => n.type === "SODALoadAdapter").forEach((node) => {
        node.widgets[0].value = ""
        node.properties.soda_choose = prefixes[node.id]
    })"""  # other tests may have left adapters, which were taken
    loaders = [node for node in example["nodes"] if node["type"] == "SODALoadAdapter"]
    ui.page.evaluate(again, {str(node["id"]): node["properties"]["soda_choose"] for node in loaders})
    offer = """(names) => {
        for (const node of app.graph._nodes.filter((n) => n.type === "SODALoadAdapter"))
            node.widgets.find((w) => w.name === "adapter_name").options.values = names
        app.extensions.find((extension) => extension.name === "soda.library").refreshComboInNodes()
        return app.graph._nodes.filter((n) => n.type === "SODALoadAdapter").map((n) => n.widgets[0].value)
    }"""
    names = [f"{name}.safetensors" for name in ("other", "style_00002_", "style_00010_", "subject_00003_", "subjects")]
    assert ui.page.evaluate(offer, names) == ["subject_00003_.safetensors", "style_00010_.safetensors"]
    newer = [*names, "subject_00004_.safetensors"]
    assert ui.page.evaluate(offer, newer)[0] == "subject_00003_.safetensors", "chosen once"

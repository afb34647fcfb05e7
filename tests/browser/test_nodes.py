# SPDX-License-Identifier: GPL-3.0-or-later
"""What the other nodes show, and how their lists follow the files."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from soda_core import SodaAdapter, SodaLayer
from testbed.paths import ROOT

from .conftest import workflow
from .ui import Ui

LAYER = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
#: What stands below a node's widgets, by its type; nothing where nothing stands there.
TEXT = "(type) => app.graph._nodes.find((n) => n.type === type)?.widgets?.find((w) => w.name === 'soda_text')?.value"
ADD = "(type) => { app.graph.clear(); app.graph.add(LiteGraph.createNode(type)) }"
#: As both renderers set a widget.
SET = """([type, name, value]) => {
    const widget = app.graph._nodes.find((n) => n.type === type).widgets.find((w) => w.name === name)
    widget.value = value
    widget.callback?.(value)
}"""
LISTED = """([type, name]) => app.graph._nodes.find((n) => n.type === type).widgets.find((w) => w.name === name)
    .options.values"""
VALUE = """([type, name]) => app.graph._nodes.find((n) => n.type === type).widgets.find((w) => w.name === name)
    .value"""
R = "async () => { await app.refreshComboInNodes() }"


def save(server, name: str, **metadata: object) -> str:
    """An adapter that turns one layer a little; its name in the lists."""
    g = torch.Generator().manual_seed(len(name))
    skew = [0.05 * torch.randn(k, k, generator=g) for k in (16, 20)]
    layer = SodaLayer("svd", [torch.linalg.matrix_exp(S - S.T) for S in skew], None, (320, 320))
    SodaAdapter({LAYER: layer}, {"title": name, **metadata}).save(server.adapters / f"{name}.safetensors")
    return f"{name}.safetensors"


@pytest.fixture(scope="module")
def files(server) -> list[str]:
    names = [save(server, "fox", trigger_phrase="a sks fox", steps=40, pictures=5), save(server, "ink")]
    Image.new("RGB", (64, 64), "orange").save(server.adapters / "fox.png")
    return names


def test_load_shows_what_its_file_says_and_asks_for_none_that_is_not_there(ui, server, files) -> None:
    asked = []
    ui.page.on("request", lambda request: "view_metadata" in request.url and asked.append(request.url))
    ui.page.evaluate(ADD, "SODALoadAdapter")
    ui.page.evaluate(R)
    ui.page.evaluate(SET, ["SODALoadAdapter", "adapter_name", files[0]])
    ui.wait(f"({TEXT})('SODALoadAdapter')?.includes('a sks fox')")
    assert "40 steps, 5 pictures" in ui.page.evaluate(TEXT, "SODALoadAdapter")
    ui.select("SODALoadAdapter")
    ui.shot("load")
    asked.clear()
    late = f"late-{ui.name}"
    ui.page.evaluate(SET, ["SODALoadAdapter", "adapter_name", f"{late}.safetensors"])
    saved = ui.page.evaluate("app.graph.serialize()")
    ui.load(saved)  # as a workflow from somebody else
    ui.wait(f"({TEXT})('SODALoadAdapter') === undefined")
    ui.page.evaluate(R)
    assert asked == []
    save(server, late, trigger_phrase="late")
    ui.page.evaluate(R)
    ui.wait(f"({TEXT})('SODALoadAdapter')?.includes('late')")
    assert len(asked) == 1


def merging(ui: Ui, files: list[str], prefix: str) -> None:
    """The shipped workflow without its picture."""
    values = {"SODALoadAdapter": {"adapter_name": files[0]}, "SODASaveAdapter": {"filename_prefix": prefix}}
    ui.load(workflow("merge_subject_and_style"), values)
    gone = "['KSampler', 'VAEDecode', 'SaveImage']"
    ui.page.evaluate(f"app.graph._nodes.filter((n) => {gone}.includes(n.type)).forEach((n) => app.graph.remove(n))")


def test_a_saved_file_is_in_every_list_that_offers_it(ui, server, files) -> None:
    """Also in those of a stack's rows, whether they are there already or come later."""
    places = [
        ("SODALoadAdapter", "adapter_name"), ("SODATrainingSettings", "continue_from"), ("SODATrain", "continue_from"),
        ("SODAStack", "adapter_1"), ("SODAStack", "more_2.adapter_2"), ("SODAStack", "more_2.more_3.adapter_3"),
    ]  # fmt: skip
    merging(ui, files, f"saved-{ui.name}")
    ui.page.evaluate(
        "(types) => types.forEach((type) => app.graph.add(LiteGraph.createNode(type)))",
        ["SODATrainingSettings", "SODATrain", "SODAStack"],
    )
    ui.page.evaluate(SET, ["SODAStack", "more_2", "yes"])
    ui.page.evaluate(SET, ["SODAStack", "more_2.adapter_2", files[1]])
    ui.page.evaluate("app.graph._nodes.find((n) => n.type === 'SODATrain').mode = 2")  # (it has no pictures)
    ui.run()
    made = f"saved-{ui.name}_00001_.safetensors"
    ui.wait(f"({LISTED})(['SODAStack', 'adapter_1']).includes('{made}')")
    ui.page.evaluate(SET, ["SODAStack", "more_2.more_3", "yes"])
    for place in places:
        assert made in ui.page.evaluate(LISTED, place), place
    assert ui.page.evaluate(LISTED, ["SODAStack", "more_2"]) == ["no", "yes"]
    row = (
        "app.graph._nodes.find((n) => n.type === 'SODAStack').widgets.find((w) => w.name === 'more_2.adapter_2').value"
    )
    assert ui.page.evaluate(row) == files[1], "what was chosen stays"
    ui.select("SODAStack")
    ui.shot("stack")
    save(server, f"copied-{ui.name}")
    ui.page.evaluate(R)
    ui.page.evaluate(SET, ["SODAStack", "more_2.more_3.more_4", "yes"])
    for place in (*places, ("SODAStack", "more_2.more_3.more_4.adapter_4")):
        assert f"copied-{ui.name}.safetensors" in ui.page.evaluate(LISTED, place), place


def test_reports_and_summaries_stand_on_their_nodes(ui, files) -> None:
    merging(ui, files, f"reported-{ui.name}")
    ui.page.evaluate(
        SET, ["SODAMerge", "subject_strength", 0.5 if ui.name == "classic" else 0.75]
    )  # (not in the cache)
    ui.page.evaluate(
        """() => {
            const node = LiteGraph.createNode("SODAInspectAdapter")
            app.graph.add(node)
            app.graph._nodes.find((n) => n.type === "SODAMerge").connect(0, node, 0)
        }"""
    )
    ui.run()
    ui.wait(f"({TEXT})('SODAMerge')?.includes('Verdict')")
    ui.wait(f"({TEXT})('SODAInspectAdapter')?.includes('| down |')")
    ui.select("SODAMerge")
    ui.page.get_by_text("Verdict").first.wait_for()
    ui.shot("report")
    ui.select("SODAInspectAdapter")
    ui.shot("summary")


def test_links_of_adapters_and_settings_have_a_colour(ui) -> None:
    colours = ui.page.evaluate(
        """() => ["SODA_ADAPTER", "SODA_SETTINGS"].map((type) => [
            app.canvas.default_connection_color_byType[type], app.canvas.constructor.link_type_colors[type],
            getComputedStyle(document.documentElement).getPropertyValue(`--color-datatype-${type}`).trim()])"""
    )
    for each in colours:
        assert len(set(each)) == 1 and each[0].startswith("#")
    assert colours[0] != colours[1]


def test_a_notice_stands_on_the_node_until_it_runs_again(ui, server) -> None:
    small = {"width": 64, "height": 64}
    tiny = {
        "steps": 1,
        "preview_every": 0,
        "shift_lr": "0",
        "rotation_lr": "0.01",
        "loss": "mse",
        "decomposition": "qr",
    }
    values = {"ImageScale": small, "EmptyLatentImage": small, "KSampler": {"steps": 1}, "SODATrain": tiny}
    ui.load(workflow("train_subject"), values)
    ui.select("SODATrain")
    ui.run()
    notice = ui.page.get_by_role("alert").get_by_text("shift_lr is 0: this part stays as it is")
    notice.wait_for(state="visible")
    ui.shot("notice")
    ui.page.evaluate(SET, ["SODATrain", "shift_lr", "0.01"])
    ui.run()
    notice.wait_for(state="detached")


def test_a_blueprints_node_has_the_settings_that_matter(ui) -> None:
    for title, names in {
        "Train my subject": ["folder", "find", "trigger_phrase", "filename_prefix", "steps", "rotation_lr", "shift_lr",
                             "preview_every", "seed"],
        "Merge and compare": ["text", "adapter_name", "adapter_name_1", "subject_strength", "style_strength", "method",
                              "value"],
    }.items():  # fmt: skip
        ui.load(json.loads((ROOT / "subgraphs" / f"{title}.json").read_text("utf-8")))
        assert ui.page.evaluate("app.graph._nodes[0].widgets.filter((w) => !w.hidden).map((w) => w.name)") == names


def test_a_click_in_the_model_library_brings_the_loader(ui, files) -> None:
    """As it brings Load LoRA: another click puts it down."""
    ui.page.evaluate("app.graph.clear()")
    toggle = "app.extensionManager.command.execute('Workspace.ToggleSidebarTab.model-library')"
    ui.page.evaluate(toggle)
    ui.page.get_by_placeholder("Search Models...").fill("fox")
    ui.page.get_by_role("treeitem").get_by_text("fox").first.click()
    ui.page.mouse.move(700, 500, steps=5)
    ui.shot("library")
    ui.page.mouse.click(700, 500)
    ui.wait("app.graph._nodes.length > 0")
    found = "app.graph._nodes.map((n) => [n.type, n.widgets.find((w) => w.name === 'adapter_name')?.value])"
    assert ui.page.evaluate(found) == [["SODALoadAdapter", files[0]]]
    ui.page.evaluate(toggle)

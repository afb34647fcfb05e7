# SPDX-License-Identifier: GPL-3.0-or-later
"""A training as it is seen in the browser: while it runs, when it ends, and after the page was loaded anew."""

from __future__ import annotations

import json
import time

import pytest

from testbed.paths import ROOT

from .conftest import opened, workflow
from .ui import Ui

VIEW = "document.querySelector('.soda-training')"
SMALL = {"width": 64, "height": 64}
TINY = {"steps": 20, "preview_every": 5, "rotation_lr": 0.01, "shift_lr": 0.01, "loss": "mse", "decomposition": "qr"}
#: Every step that the view shows while it trains, as window.seen
NOTE_STEPS = f"""() => {{
    window.seen = []
    const view = {VIEW}, note = () => view.dataset.status === 'training' && window.seen.push(Number(view.dataset.step))
    new MutationObserver(note).observe(view, {{attributes: true}})
}}"""
runs = iter(range(1, 1000))
#: The node of a blueprint; a checkpoint for it; and what is set of it, outside and inside, by the inner nodes' types
TASK = "app.graph._nodes.find((node) => node.subgraph)"
CHECKPOINT_TO_TASK = f"""() => {{
    const loader = LiteGraph.createNode("CheckpointLoaderSimple")
    loader.pos = [-350, 0]
    app.graph.add(loader);
    [0, 1, 2].forEach((slot) => loader.connect(slot, {TASK}, slot))
}}"""
SET_INSIDE = f"""(values) => {{
    for (const [type, set] of Object.entries(values))
        for (const node of [{TASK}, ...{TASK}.subgraph._nodes.filter((node) => node.type === type)])
            for (const widget of node.widgets ?? []) if (widget.name in set) widget.value = set[widget.name]
}}"""


def start(ui: Ui, **values) -> dict:
    """The shipped workflow, small, running; what its training node is set to."""
    train = {**TINY, "seed": next(runs), **values}
    ui.load(
        workflow("train_subject"),
        {
            "ImageScale": SMALL,
            "EmptyLatentImage": SMALL,
            "KSampler": {"steps": 2},
            "SODATrain": train,
        },
    )
    ui.select("SODATrain")
    ui.page.evaluate(NOTE_STEPS)
    ui.run()
    return train


def shown(ui: Ui, status: str, step: int = 0) -> None:
    """Wait until the node shows that, or a later step."""
    ui.wait(
        f"([status, step]) => {VIEW}?.dataset.status === status && Number({VIEW}.dataset.step) >= step", [status, step]
    )


def toast(ui: Ui, text: str) -> None:
    ui.page.locator(".p-toast").get_by_text(text).first.wait_for()


def ended(ui: Ui, server) -> None:
    """Nothing runs any more, whatever it was: the next test begins with an idle server."""
    while server.busy:
        time.sleep(0.2)
    ui.page.keyboard.press("Escape")


def node_size(ui: Ui) -> list[float]:
    return ui.page.evaluate("[...app.graph._nodes.find((n) => n.type === 'SODATrain').size]")


def test_twenty_steps_seen_live(ui, server) -> None:
    start(ui)
    before = node_size(ui)
    ui.wait("document.querySelectorAll('.soda-thumb').length >= 3")
    ui.shot("training")
    legend = ui.page.locator(".soda-legend").inner_text()
    assert all(word in legend for word in ("validation", "mean", "loss"))
    assert ui.page.locator(".soda-card").count() == 3, "rotation, shift and rates"
    assert "step" in ui.page.locator(".soda-facts").inner_text()
    shown(ui, "done", 20)
    seen = ui.page.evaluate("window.seen")
    assert any(0 < step < 20 for step in seen) and seen == sorted(seen), "while it went on"
    toast(ui, "Saved as subject_")
    assert "Saved as subject_" in ui.page.locator(".soda-message").inner_text()
    drawn = "path => (document.querySelector(path)?.getAttribute('d').match(/[ML]/g) ?? []).length"
    assert ui.page.evaluate(drawn, ".soda-chart path.loss") == 20
    assert ui.page.evaluate(drawn, ".soda-chart path.validation") == 11
    assert ui.page.locator(".soda-thumb").count() == 5, "before, and every five steps"
    assert ui.page.locator("img[src*='soda-previews']").count() == 7, "five in the strip, two under the slider, no more"
    ended(ui, server)
    assert node_size(ui) == pytest.approx(before, abs=3), "the node stays as large as it was, but for rounded pixels"
    width = ui.page.evaluate(f"{VIEW}.clientWidth")
    assert width > 0.85 * before[0], "also beside the panel that help was opened in"
    ui.shot("trained")


def test_two_pictures_under_the_slider(ui) -> None:
    """Of the training before."""
    labels = ui.page.locator(".soda-label")
    assert labels.all_inner_texts() == ["before", "step 20"]
    ui.page.locator(".soda-thumb").nth(2).click()
    assert labels.all_inner_texts() == ["before", "step 10"]
    labels.first.click()
    ui.page.locator(".soda-thumb").nth(1).click()
    assert labels.all_inner_texts() == ["step 5", "step 10"]
    slider = ui.page.locator(".soda-slider")
    slider.fill("20")
    assert ui.page.evaluate("document.querySelector('.soda-frame').style.getPropertyValue('--at')") == "20%"


def test_the_next_run_begins_with_an_empty_picture_and_finishes_when_asked(ui, server) -> None:
    start(ui, steps=2000, preview_every=0)
    shown(ui, "training", 1)
    assert ui.page.locator(".soda-thumb").count() == 0
    ui.page.locator(".soda-finish").click()
    shown(ui, "done")
    step = int(ui.page.evaluate(f"{VIEW}.dataset.step"))
    assert 1 <= step < 2000
    toast(ui, "Saved as subject_")
    ended(ui, server)
    outputs = list(server.connection.json("/history").values())[-1]["outputs"]
    assert any(output.get("images") for output in outputs.values()), "the graph went on"


def test_cancel_says_where_the_adapter_is(ui, server) -> None:
    start(ui, steps=2000, preview_every=0)
    shown(ui, "training", 2)
    ui.page.locator(".soda-button.soda-cancel").click()
    shown(ui, "stopped")
    toast(ui, "subject-interrupted_")
    message = ui.page.locator(".soda-message").inner_text()
    assert "subject-interrupted_" in message and "continue_from = unfinished: subject" in message
    ended(ui, server)
    ui.shot("cancelled")
    lists = "app.graph._nodes.find((n) => n.type === 'SODATrain').widgets.find((w) => w.name === 'continue_from')"
    ui.wait(f"{lists}.options.values.some((name) => name.startsWith('unfinished: subject'))")
    for alarm in ("Node definitions", "Update requested"):
        assert not ui.page.get_by_text(alarm).count(), "and nothing is said of that"


def test_a_page_loaded_in_the_middle_of_a_run_shows_it(ui, server) -> None:
    """The workflow comes back with the page; the training with the server's memory."""
    start(ui, steps=2000, preview_every=0)
    shown(ui, "training", 2)
    ui.open()
    shown(ui, "training", 3)
    assert ui.page.evaluate("document.querySelector('.soda-chart path.loss').getAttribute('d').length") > 10
    ui.page.locator(".soda-finish").click()
    shown(ui, "done")
    ended(ui, server)


def going(server) -> int:
    """The step of the training that runs; 0 without one."""
    states = server.connection.json("/soda/trainings")
    return max((state["step"] for state in states if state["status"] == "training"), default=0)


def test_a_blueprints_node_shows_the_progress_of_the_training_in_it(ui, server) -> None:
    """The host's own bar, which it puts on every subgraph around the node that runs."""
    ui.load(json.loads((ROOT / "subgraphs" / "Train my subject.json").read_text("utf-8")))
    ui.page.evaluate(CHECKPOINT_TO_TASK)
    steps = 2000
    small = {"ImageScale": SMALL, "SODATrain": {**TINY, "steps": steps, "preview_every": 0, "seed": next(runs)}}
    ui.page.evaluate(SET_INSIDE, small)
    ui.run()
    while going(server) < 2:
        assert server.busy
        time.sleep(0.2)
    ui.wait(f"{TASK}.progress > 0")
    ui.shot("blueprint")
    shown = ui.page.evaluate(f"{TASK}.progress") * steps
    assert shown == pytest.approx(round(shown)), "of this bar"
    assert round(shown) >= 1
    while going(server) < round(shown):  # what the server tells of a run is up to half a second old, its bar is not
        assert server.busy, "a step that was never reached"
        time.sleep(0.2)


def test_a_dropped_file_brings_its_graph_back(ui, server) -> None:
    file = max(server.adapters.glob("subject_*.safetensors"), key=lambda path: path.stat().st_mtime)
    ui.page.evaluate("app.graph.clear()")
    handle = ui.page.evaluate_handle(
        """async ([url, name]) => {
            const data = new DataTransfer()
            data.items.add(new File([await (await fetch(url)).blob()], name))
            return data
        }""",
        [f"data:application/octet-stream;base64,{encoded(file)}", file.name],
    )
    ui.page.dispatch_event("#graph-canvas", "drop", {"dataTransfer": handle})
    ui.wait("app.graph._nodes.some((node) => node.type === 'SODATrain')")
    ui.wait(f"{VIEW}?.dataset.status === 'done'")  # and what it was like


def encoded(path) -> str:
    import base64

    return base64.b64encode(path.read_bytes()).decode()


def test_chinese(browser, server) -> None:
    """In a second browser, which sees what was trained before it came."""
    ui = opened(browser, server, "chinese", Comfy_VueNodes_Enabled=True, Comfy_Locale="zh")
    ui.load(workflow("train_subject"))
    ui.select("SODATrain")
    ui.page.get_by_text("训练完成").first.wait_for()
    ui.page.get_by_text("学习率").first.wait_for()
    ui.shot("trained")
    assert ui.help("SODATrain", "训练过程中") == [("SODATrain/zh.md", 200)]
    ui.shot("help")
    ui.close()
    ui.check()


def test_a_node_that_saves_says_which_file(ui, server) -> None:
    graph = workflow("merge_subject_and_style")
    names = [path.name for path in server.adapters.glob("subject_*.safetensors")]
    small = {"EmptyLatentImage": SMALL, "KSampler": {"steps": 2}}
    ui.load(graph, {**small, "SODALoadAdapter": {"adapter_name": names[0]}})
    ui.select("SODASaveAdapter")
    ui.run()
    ui.page.locator(".soda-saved").get_by_text("Saved as merged_").wait_for()
    ended(ui, server)
    ui.shot("saved")

# SPDX-License-Identifier: GPL-3.0-or-later
"""Renews the pictures of graphs in ``docs/``: trains and merges in a real browser, as the demo does without one.

Needs Chromium:

    python dev.py python -m demo.shots [--only live] [--chromium /usr/bin/chromium] [--steps 200]
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from demo.build_workflows import workflow_file
from demo.prompts import demo_settings
from demo.run import Demo, say
from demo.settings import SAMPLE, SCENES, STYLE_TASKS, STYLE_WORDS, SUBJECT_TASKS
from testbed.checkpoints import BASE_NAME
from testbed.demo_base import checkpoint
from testbed.paths import ROOT, cache_root
from testbed.recipes import RECIPES
from testbed.server import Server

#: nothing over the graph
PLAIN = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}
WIDTH, HEIGHT, MENUS = 1680, 1180, 110  #: of the window, and what the menus at its top and left take, in pixels

LOAD = "async (graph) => { await app.loadGraphData(graph) }"
SET = """(values) => {
    for (const node of app.graph._nodes)
        for (const widget of node.widgets ?? []) {
            const value = values[node.title]?.[widget.name] ?? values[node.type]?.[widget.name]
            if (value !== undefined) widget.value = value
        }
}"""
FRAME = """([width, height, menus]) => {
    for (const node of app.graph._nodes.filter((n) => n.type === "SaveImage")) {  // as small as its picture
        node.setSize([230, 250])
        for (const group of app.graph._groups)
            if (group.pos[0] < node.pos[0] && node.pos[0] < group.pos[0] + group.size[0] &&
                group.pos[1] < node.pos[1] && node.pos[1] < group.pos[1] + group.size[1])
                group.size = [node.pos[0] - group.pos[0] + 244, node.pos[1] - group.pos[1] + 264]
    }
    const boxes = app.graph._groups.map((group) => [...group.pos, ...group.size])
    const [left, top] = [0, 1].map((i) => Math.min(...boxes.map((b) => b[i])) - 6)
    const [right, bottom] = [0, 1].map((i) => Math.max(...boxes.map((b) => b[i] + b[i + 2])) + 6)
    const ds = app.canvas.ds
    ds.scale = Math.min((width - menus) / (right - left), (height - menus) / (bottom - top))
    ds.offset = [menus / ds.scale - left, menus / ds.scale - top]
    app.canvas.setDirty(true, true)
    return {x: menus, y: menus, width: (right - left) * ds.scale, height: (bottom - top) * ds.scale}
}"""
LOOK = """() => {
    const node = app.graph._nodes.find((node) => node.type === "SODATrain"), ds = app.canvas.ds
    ds.scale = 1
    ds.offset = [200 - node.pos[0], 1100 - node.pos[1] - node.size[1]]
    app.canvas.setDirty(true, true)
}"""
QUEUE = "async () => { await app.queuePrompt(0) }"


def opened(browser: Browser, server: Server, **context: Any) -> Page:
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, **context)
    page.goto(server.url)
    page.wait_for_function("(window.app ??= window.comfyAPI?.app?.app)?.graph !== undefined", timeout=120_000)
    time.sleep(5)  # it goes on to open a workflow of its own
    return page


def shoot(browser: Browser, server: Server, workflow: str, values: dict[str, dict[str, Any]], path: Path) -> None:
    """Open a workflow, set widgets by a node's title or type, run it to its end, and take a picture."""
    page = opened(browser, server)
    page.evaluate(LOAD, json.loads(workflow_file(workflow).read_text("utf-8")))
    page.evaluate(SET, values)
    say(f"run {workflow}")
    before = server.finished()
    page.evaluate(QUEUE)
    time.sleep(3)
    while server.busy:
        time.sleep(1)
    (ours,) = server.finished() - before
    server.wait(ours)  # raises what went wrong
    clip = page.evaluate(FRAME, [WIDTH, HEIGHT, MENUS])
    time.sleep(4)  # until pictures are drawn
    Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB").save(path, quality=85)
    page.close()
    say(f"written to {path}")


def shoot_live(browser: Browser, server: Server, values: dict[str, dict[str, Any]], steps: int, path: Path) -> None:
    """What the training node shows when two thirds are done, at twice the size for sharp text."""
    page = opened(browser, server, device_scale_factor=2)
    page.evaluate(LOAD, json.loads(workflow_file("train_subject").read_text("utf-8")))
    page.evaluate(SET, values)
    say("run train_subject, to look at it half-way")
    page.evaluate(LOOK)
    page.evaluate(QUEUE)
    view = page.locator(".soda-training")
    page.wait_for_function(
        "(step) => Number(document.querySelector('.soda-training')?.dataset.step) >= step",
        arg=2 * steps // 3,
        timeout=3_600_000,
    )
    Image.open(io.BytesIO(view.screenshot())).convert("RGB").save(path, quality=88)
    page.locator(".soda-finish").click()
    while server.busy:
        time.sleep(1)
    page.close()
    say(f"written to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser")
    parser.add_argument("--steps", type=int, help="training steps for each adapter (default: the demo's)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--only", choices=("train", "merge", "live"), help="one picture (default: all)")
    args = parser.parse_args()
    steps = args.steps or RECIPES["subject"].settings["steps"]
    prompt, empty = {"text": SCENES[SUBJECT_TASKS[0].name].text}, {"Negative prompt": {"text": ""}}
    train = {**demo_settings("train_subject", steps), **empty, "Prompt": prompt}
    merge = {**demo_settings("merge_subject_and_style"), **empty, "Prompt": {"text": prompt["text"] + STYLE_WORDS}}
    with Server() as server:
        settings = server.base / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps(PLAIN), "utf-8")
        server.add_checkpoint(checkpoint(cache_root()), BASE_NAME)
        wanted = {args.only} if args.only else {"train", "merge", "live"}
        if "merge" in wanted:
            merge["Style"] = {"adapter_name": Demo(server, args.steps).train(STYLE_TASKS[0]).file}
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox", "--disable-gpu"])
            if wanted & {"train", "merge"}:  # the merge takes the subject trained here
                shoot(browser, server, "train_subject", train, args.out / "train.jpg")
            if "merge" in wanted:
                shoot(browser, server, "merge_subject_and_style", merge, args.out / "merge.jpg")
            if "live" in wanted:
                previews = {"preview_every": max(1, steps // 12), "preview_steps": SAMPLE["steps"], "seed": 1}
                live = {**train, "SODATrain": train["SODATrain"] | previews}
                shoot_live(browser, server, live, steps, args.out / "live.jpg")
            browser.close()


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""Renews the pictures of graphs in ``docs/``: trains and merges in a real browser, as the demo does without one.

Needs Chromium, and playwright, which nothing else here does:

    pip install playwright
    COMFYUI_PATH=... python -m demo.shots [--chromium /usr/bin/chromium] [--steps 220]
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

from demo.build_workflows import STYLE_FOLDER, workflow_file
from demo.run import MERGE, OWN, RATES, SAMPLE, TRAIN, Demo, say
from testbed.checkpoints import BASE_NAME
from testbed.demo_base import checkpoint
from testbed.paths import ROOT, cache_root
from testbed.server import Server
from testbed.world.render import SIDE

#: nothing over the graph
PLAIN = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}
WIDTH, HEIGHT, MENUS = 1680, 1180, 110  #: of the window, and what the menus at its top and left take, in pixels
PROMPTS = {"train": "a sks flower on a striped background", "merge": "a sks flower on a red background, in zqx style"}

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
QUEUE = "async () => { await app.queuePrompt(0) }"


def opened(browser: Browser, server: Server) -> Page:
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser")
    parser.add_argument("--steps", type=int, default=220, help="training steps for each adapter")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    sizes, rate = {"width": SIDE, "height": SIDE}, RATES["subject"]
    common = {
        "CheckpointLoaderSimple": {"ckpt_name": BASE_NAME},
        "ImageScale": sizes, "EmptyLatentImage": sizes, "KSampler": SAMPLE, "SODAMerge": MERGE,
        "Negative prompt": {"text": ""},
    }  # fmt: skip
    train = {**TRAIN, **OWN["subject"], "rotation_lr": rate, "shift_lr": rate, "steps": args.steps}
    with Server() as server:
        settings = server.base / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps(PLAIN), "utf-8")
        server.add_checkpoint(checkpoint(cache_root()), BASE_NAME)
        Demo(server, args.steps, int(SAMPLE["steps"])).train("style", STYLE_FOLDER)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox", "--disable-gpu"])
            values = {**common, "SODATrain": train, "Prompt": {"text": PROMPTS["train"]}}
            shoot(browser, server, "train_subject", values, args.out / "train.jpg")
            values = {**common, "Prompt": {"text": PROMPTS["merge"]}}
            shoot(browser, server, "merge_subject_and_style", values, args.out / "merge.jpg")
            browser.close()


if __name__ == "__main__":
    main()

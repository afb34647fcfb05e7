# SPDX-License-Identifier: GPL-3.0-or-later
"""The front end in a browser, as a user sees it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, Page, Response

from testbed.paths import ROOT

SHOTS = ROOT / "demo-output" / "browser"
SIZE = {"width": 1280, "height": 960}
#: Milliseconds; machines differ, and a training is waited for like anything else.
PATIENCE = 300_000

#: Errors of the front end itself, with any pack or none: files that a new user does not have yet, addresses outside
#: that the host forbids its page to fetch, and what it says at its own start.
OF_THE_HOST = re.compile(
    r"/user\.css|/api/userdata|/api/assets|api\.comfy\.org|huggingface\.co|graph accessed before initialization"
)

#: API form of what is set: by node type, or by title where two are alike
SET = """(values) => {
    for (const node of app.graph._nodes)
        for (const widget of node.widgets ?? []) {
            const value = values[node.type]?.[widget.name]
            if (value !== undefined) widget.value = value
        }
}"""
#: The node in the middle of the window, as large as fits
SHOW = """(type) => {
    const node = app.graph._nodes.find((node) => node.type === type), ds = app.canvas.ds
    ds.scale = Math.min(1, 800 / (node.size[1] + 60))
    ds.offset = [150 / ds.scale - node.pos[0], 120 / ds.scale - node.pos[1]]
    app.canvas.setDirty(true, true)
}"""


class Ui:
    """One page. Nothing in it may go wrong: see :meth:`check`.

    Args:
        url: of the server.
        name: of the renderer, for screenshots.
        prepare: called before the page is loaded, as it reads its settings then.
    """

    def __init__(self, context: BrowserContext, url: str, name: str, prepare: Callable[[], object]) -> None:
        self.context, self.url, self.name, self.prepare = context, url, name, prepare
        self.errors: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", lambda said: said.type == "error" and self._note(said.text, said.location.get("url")))
        self.page.on("pageerror", lambda error: self._note(str(error)))
        self.page.on("requestfailed", lambda request: self._note(f"{request.failure}: {request.url}"))
        self.open()

    def _note(self, text: str, place: str | None = "") -> None:
        if not OF_THE_HOST.search(f"{text} {place}") and "ERR_ABORTED" not in text:
            self.errors.append(f"{text} ({place})")

    def check(self) -> None:
        """Raise what has gone wrong since the last time."""
        errors, self.errors = self.errors, []
        assert not errors, "\n".join(errors)

    def open(self) -> None:
        """Load the page, and wait until it has opened a workflow of its own."""
        self.prepare()
        self.page.goto(self.url, wait_until="domcontentloaded")
        self.page.wait_for_function(
            "(window.app ??= window.comfyAPI?.app?.app)?.vueAppReady && app.graph?._nodes.length > 0"
        )

    def close(self) -> None:
        self.context.close()

    def load(self, workflow: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Open a workflow, and set widgets by the node's type."""
        self.page.evaluate("async (graph) => { await app.loadGraphData(graph) }", workflow)
        self.page.evaluate(SET, values or {})

    def run(self) -> None:
        self.page.evaluate("async () => { await app.queuePrompt(0) }")

    def select(self, kind: str) -> None:
        """The one node of that type."""
        self.page.evaluate(SHOW, kind)
        self.page.evaluate("(type) => app.canvas.selectNode(app.graph._nodes.find((n) => n.type === type))", kind)

    def help(self, kind: str, heading: str) -> list[tuple[str, int]]:
        """Open a node's help page as a user does, until that heading shows; what was asked for, and the answers."""
        asked: list[tuple[str, int]] = []

        def note(answer: Response) -> None:
            if "/docs/SODA" in answer.url:
                asked.append((answer.url.rsplit("/docs/", 1)[1], answer.status))

        self.page.on("response", note)
        self.select(kind)
        self.page.get_by_test_id("info-button").click()
        self.page.get_by_role("heading", name=heading).first.wait_for()
        self.page.remove_listener("response", note)
        return asked

    def wait(self, condition: str, argument: Any = None) -> None:
        """Until a JavaScript expression is true."""
        self.page.wait_for_function(condition, arg=argument)

    def shot(self, name: str) -> Path:
        """A picture of the window in ``demo-output/browser``."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        path = SHOTS / f"{self.name}-{name}.png"
        self.page.screenshot(path=path)
        return path

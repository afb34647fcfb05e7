# SPDX-License-Identifier: GPL-3.0-or-later
"""A real ComfyUI and a real Chromium, in both of the front end's ways to draw nodes."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.build_workflows import CHECKPOINT, workflow_file
from testbed.checkpoints import BASE_NAME, build, write
from testbed.server import Server

from .ui import SIZE, Ui

INSTALL = (
    "no Chromium: install one (Debian: `apt-get install chromium`; anywhere: `python -m playwright install chromium`), "
    "or set CHROMIUM to its program"
)
#: Nothing over the graph, and nothing asked for from outside
PLAIN = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.Locale": "en",
}

ONE_THREAD = {"OMP_NUM_THREADS": "1"}  #: the browser, which draws without a GPU, needs the other cores


def find_chromium() -> str | None:
    """Where the browser is: CHROMIUM, the system's, or playwright's own."""
    from playwright.sync_api import sync_playwright

    for name in (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"):
        if name and (path := shutil.which(name)):
            return path
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


@pytest.fixture(scope="module")
def chromium() -> str:
    path = find_chromium()
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(INSTALL)
    return path


@pytest.fixture(scope="module")
def server(chromium, tmp_path_factory) -> Iterator[Server]:
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH is not set; `python dev.py test` sets it")
    folder = tmp_path_factory.mktemp("browser")
    with Server(base=folder / "base", cpu=True, env=ONE_THREAD, timeout=900) as server:
        server.add_checkpoint(write(folder / BASE_NAME, build("sd15-min", clip="sparse", seed=0)), CHECKPOINT)
        yield server


# of a module, not the session: within it this thread has a running event loop, which other tests start themselves
@pytest.fixture(scope="module")
def browser(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # no sandbox: containers seldom allow one, and the page is ours
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def opened(browser, server: Server, name: str, **settings: object) -> Ui:
    """A page in a browser of its own, with these settings, whose dots are underscores here."""
    values = {**PLAIN, **{key.replace("_", "."): value for key, value in settings.items()}}
    context = browser.new_context(viewport=SIZE)
    return Ui(context, server.url, name, lambda: server.connection.post("/api/settings", values))


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def page(request, server, browser) -> Iterator[Ui]:
    """One page for each way to draw nodes: loading it is most of the time that these tests take."""
    ui = opened(browser, server, request.param, Comfy_VueNodes_Enabled=request.param == "nodes2")
    yield ui
    ui.close()


@pytest.fixture
def ui(page, server):
    """The page, in which nothing may go wrong during the test; the server is idle afterwards, whatever became of it."""
    page.errors.clear()
    yield page
    while server.busy:
        server.connection.post("/queue", {"clear": True})
        server.interrupt()
        time.sleep(0.5)
    page.check()


def workflow(name: str) -> dict:
    return json.loads(workflow_file(name).read_text("utf-8"))


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if "/browser/" in str(item.path):
            item.add_marker(pytest.mark.host)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the other nodes show, and how their lists follow the files."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from soda_core import SodaAdapter, SodaLayer

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

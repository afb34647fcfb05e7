# SPDX-License-Identifier: GPL-3.0-or-later
"""The shipped workflows: complete, illustrated, and they run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from demo.build_workflows import build_all
from demo.run import for_demo, node, set_inputs

WORKFLOWS = Path(__file__).parents[2] / "workflows"
NAMES = ["train_subject", "train_style", "merge_subject_and_style", "load_and_sample"]


def prompt_of(server, name: str) -> dict:
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))
    return for_demo(server.convert(workflow), steps=3, sample_steps=2)


def test_these_workflows_ship_with_thumbnails() -> None:
    assert sorted(p.stem for p in WORKFLOWS.glob("*.json")) == sorted(NAMES)
    for name in NAMES:
        with Image.open(WORKFLOWS / f"{name}.jpg") as image:
            assert min(image.size) >= 200
        assert (WORKFLOWS / f"{name}.jpg").stat().st_size < 200_000


@pytest.mark.parametrize("name", NAMES)
def test_no_node_is_missing_and_every_widget_fits(server, name) -> None:
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))
    info = server.object_info()
    kinds = {n["type"] for n in workflow["nodes"]} - {"MarkdownNote", "Note", "Reroute"}
    assert kinds <= set(info) and any(k.startswith("SODA") for k in kinds)
    for key, entry in server.convert(workflow).items():
        required = info[entry["class_type"]]["input"].get("required", {})
        assert set(required) <= set(entry["inputs"]), f"{name}: node {key} ({entry['class_type']})"


def test_they_are_what_the_builder_writes(server) -> None:
    for name, workflow in build_all(server.object_info()).items():
        shipped = json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))
        assert shipped == json.loads(json.dumps(workflow)), f"{name}: run demo/build_workflows.py"


def test_all_workflows_run_in_the_order_a_user_takes_them(server) -> None:
    made = []
    for kind in ("subject", "style"):
        before = set(server.soda.rglob("*.safetensors"))
        prompt = prompt_of(server, f"train_{kind}")
        entry = server.queue(prompt)
        made += [p.relative_to(server.soda).as_posix() for p in set(server.soda.rglob("*.safetensors")) - before]
        assert server.images(entry, node(prompt, "SODATrain"))
    assert len(made) == 2
    server.object_info(refresh=True)
    prompt = prompt_of(server, "merge_subject_and_style")
    loaders = [k for k, v in prompt.items() if v["class_type"] == "SODALoadAdapter"]
    for key, name in zip(loaders, made, strict=True):
        prompt[key]["inputs"]["adapter_name"] = name
    assert server.images(server.queue(prompt))
    prompt = prompt_of(server, "load_and_sample")
    set_inputs(prompt, "SODALoadAdapter", adapter_name=made[0])
    assert server.images(server.queue(prompt))

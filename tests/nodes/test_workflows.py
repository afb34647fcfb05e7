# SPDX-License-Identifier: GPL-3.0-or-later
"""The shipped workflows: complete, illustrated, and they run."""

from __future__ import annotations

import json
import re
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from PIL import Image, ImageChops, ImageStat

from demo import blueprints
from demo.build_pictures import FOLDERS, PICTURES, write
from demo.build_workflows import CHECKPOINT, TITLES, build_all, workflow_file
from demo.graph import HEADER, natural_height
from demo.prompts import for_demo, node, set_inputs
from testbed.checkpoints import BASE_NAME
from testbed.paths import ROOT

WORKFLOWS, SUBGRAPHS = ROOT / "workflows", ROOT / "subgraphs"


def shipped(name: str) -> dict:
    return json.loads(workflow_file(name).read_text("utf-8"))


def prompt_of(server, name: str) -> dict:
    return for_demo(server.convert(shipped(name)), name, steps=3, sample_steps=2)


def test_these_workflows_ship_with_thumbnails() -> None:
    assert sorted(p.stem for p in WORKFLOWS.glob("*.json")) == sorted(TITLES.values())
    for name in TITLES:
        picture = workflow_file(name).with_suffix(".jpg")
        with Image.open(picture) as image:
            assert min(image.size) >= 200
        assert picture.stat().st_size < 200_000


def test_the_host_serves_them_and_the_blueprints(server) -> None:
    with urlopen(f"{server.url}/api/workflow_templates") as answer:
        assert sorted(json.load(answer)["soda"]) == sorted(TITLES.values())
    for title in TITLES.values():
        with urlopen(f"{server.url}/api/workflow_templates/soda/{quote(title)}.json") as answer:
            assert json.load(answer)["nodes"]
    with urlopen(f"{server.url}/api/global_subgraphs") as answer:
        found = {entry["name"] for entry in json.load(answer).values() if entry["info"]["node_pack"].endswith("soda")}
    assert found == {p.stem for p in SUBGRAPHS.glob("*.json")} and len(found) == 3


@pytest.mark.parametrize("name", TITLES)
def test_no_node_is_missing_and_every_widget_fits(server, name) -> None:
    info = server.object_info()
    kinds = {n["type"] for n in shipped(name)["nodes"]} - {"MarkdownNote", "Note", "Reroute"}
    assert kinds <= set(info) and any(k.startswith("SODA") for k in kinds)
    for key, entry in server.convert(shipped(name)).items():
        required = info[entry["class_type"]]["input"].get("required", {})
        assert set(required) <= set(entry["inputs"]), f"{name}: node {key} ({entry['class_type']})"


@pytest.mark.parametrize("name", TITLES)
def test_what_a_user_lacks_is_named_with_its_address(name) -> None:
    (loader,) = (n for n in shipped(name)["nodes"] if n["type"] == "CheckpointLoaderSimple")
    (model,) = loader["properties"]["models"]
    assert loader["widgets_values"] == [CHECKPOINT] == [model["name"]] and model["directory"] == "checkpoints"
    assert model["url"].startswith("https://") and CHECKPOINT in model["url"]


def test_their_pictures_are_in_the_input_folder(server) -> None:
    for name in FOLDERS:
        assert (
            name in server.object_info()["LoadImageTextDataSetFromFolder"]["input"]["required"]["folder"][1]["options"]
        )
        for source in (PICTURES / name).iterdir():
            assert (server.base / "input" / name / source.name).read_bytes() == source.read_bytes()


def test_the_pictures_are_the_demos_and_small(tmp_path) -> None:
    assert sum(p.stat().st_size for p in PICTURES.rglob("*") if p.is_file()) < 600_000
    for name, task in FOLDERS.items():
        write(tmp_path / name, task)
        for file in sorted((PICTURES / name).iterdir()):
            again = tmp_path / name / file.name
            if file.suffix == ".txt":
                assert file.read_text("utf-8") == again.read_text("utf-8")
                continue
            with Image.open(file) as one, Image.open(again) as other:
                difference = ImageChops.difference(one.convert("RGB"), other.convert("RGB"))
                assert one.size == (512, 512) and max(ImageStat.Stat(difference).mean) < 2


@pytest.mark.usefixtures("newest")
@pytest.mark.parametrize("name", TITLES)
def test_nothing_overlaps_in_either_renderer(server, name) -> None:
    """Every node has at least the height that the taller renderer takes, and no two boxes meet."""
    boxes = []
    for entry in shipped(name)["nodes"]:
        (x, y), (width, height) = entry["pos"], entry["size"]
        if entry["type"] in server.object_info():
            assert height >= natural_height(server.object_info()[entry["type"]]), entry["type"]
        boxes.append((x, y - HEADER, x + width, y + height))
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (one, other)


@pytest.mark.parametrize("name", TITLES)
def test_app_mode_shows_widgets_and_a_result(name) -> None:
    workflow = shipped(name)
    nodes = {str(n["id"]): n for n in workflow["nodes"]}
    app = workflow["extra"]["linearData"]
    assert app["outputs"] and all(nodes[key]["type"] == "SaveImage" for key in app["outputs"])
    for key, widget in app["inputs"]:
        assert widget in [i["widget"]["name"] for i in nodes[key]["inputs"] if i.get("widget") and not i["link"]]


@pytest.mark.parametrize("name", TITLES)
def test_notes_are_in_both_languages(name) -> None:
    texts = [n["widgets_values"][0] for n in shipped(name)["nodes"] if n["type"] == "MarkdownNote"]
    assert sorted(bool(re.search("[\u4e00-\u9fff]", text)) for text in texts) == [False, True]


@pytest.mark.parametrize("name", TITLES)
def test_chinese_notes_call_settings_as_the_nodes_do(name) -> None:
    nodes = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text("utf-8")).values()
    called = {entry["name"] for node in nodes for entry in node["inputs"].values()}
    texts = [n["widgets_values"][0] for n in shipped(name)["nodes"] if n["type"] == "MarkdownNote"]
    items = [line for text in texts for line in re.findall(r"^- (\*\*[^：\n]*\*\*)(?:：|$)", text, re.MULTILINE)]
    named = {part for line in items for bold in re.findall(r"\*\*([^*]+)\*\*", line) for part in bold.split("、")}
    assert {part for part in named if re.search("[\u4e00-\u9fff]", part)} <= called


@pytest.mark.usefixtures("newest")
def test_they_are_what_the_builder_writes(server) -> None:
    for name, workflow in build_all(server.object_info()).items():
        assert shipped(name) == json.loads(json.dumps(workflow)), f"{name}: run demo/build_workflows.py"
    for title, blueprint in blueprints.build_all(server.object_info()).items():
        written = json.loads((SUBGRAPHS / f"{title}.json").read_text("utf-8"))
        assert written == json.loads(json.dumps(blueprint)), f"{title}: run demo/build_workflows.py"


def test_all_workflows_run_in_the_order_a_user_takes_them(server) -> None:
    made = []
    for kind in ("subject", "style"):
        before = set(server.soda.rglob("*.safetensors"))
        prompt = prompt_of(server, f"train_{kind}")
        set_inputs(prompt, "SODATrain", rotation_lr=1e-2, shift_lr=1e-2)  # enough to be seen after three steps
        entry = server.queue(prompt)
        made += [p.relative_to(server.soda).as_posix() for p in set(server.soda.rglob("*.safetensors")) - before]
        assert entry["outputs"][node(prompt, "SODATrain")]["soda_saved"]
    assert len(made) == 2
    server.object_info(refresh=True)
    for workflow in ("merge_subject_and_style", "subject_early_style_late"):
        prompt = prompt_of(server, workflow)
        loaders = [k for k, v in prompt.items() if v["class_type"] == "SODALoadAdapter"]
        for key, name in zip(loaders, made, strict=True):
            prompt[key]["inputs"]["adapter_name"] = name
        assert server.images(server.queue(prompt))
    prompt = prompt_of(server, "load_and_sample")
    set_inputs(prompt, "SODALoadAdapter", adapter_name=made[0])
    assert server.images(server.queue(prompt))
    prompt = prompt_of(server, "save_merged_checkpoint")
    set_inputs(prompt, "SODALoadAdapter", adapter_name=made[0])
    (patched,) = server.images(server.queue(prompt))
    server.object_info(refresh=True)
    (merged,) = server.images(server.queue(without_the_adapter(prompt, "soda_merged_00001_.safetensors")))
    (base,) = server.images(server.queue(without_the_adapter(prompt, BASE_NAME)))
    assert difference(patched, merged) <= 1 < difference(patched, base), "the file holds what was patched"


def without_the_adapter(prompt: dict, checkpoint: str) -> dict:
    """The sampling of a prompt alone, with the model of a checkpoint."""
    load, adapter = node(prompt, "CheckpointLoaderSimple"), node(prompt, "SODALoadAdapter")
    gone = ("CheckpointSave", "SODALoadAdapter")
    left = {key: entry for key, entry in prompt.items() if entry["class_type"] not in gone}
    left = json.loads(json.dumps(left).replace(f'["{adapter}", ', f'["{load}", '))
    left[load]["inputs"]["ckpt_name"] = checkpoint
    return left


def difference(one: Image.Image, other: Image.Image) -> int:
    """Largest, in steps of 1 / 255."""
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


def test_the_script_of_the_documentation_says_the_name_of_the_file(server, tmp_path, monkeypatch, capsys) -> None:
    text = (ROOT / "docs" / "headless.md").read_text("utf-8")
    (script,) = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    (tmp_path / "train_subject_api.json").write_text(json.dumps(prompt_of(server, "train_subject")), "utf-8")
    monkeypatch.chdir(tmp_path)
    exec(script.replace("http://127.0.0.1:8188", server.url), {})  # noqa: S102  (our own documentation)
    name = capsys.readouterr().out.strip()
    assert re.fullmatch(r"fox_\d{5}_\.safetensors", name) and (server.soda / name).is_file()


def around(title: str, picture: str) -> dict:
    """A workflow of a checkpoint, a blueprint as a node, and a preview of one of its outputs."""
    workflow = json.loads((SUBGRAPHS / f"{title}.json").read_text("utf-8"))
    (blueprint,) = workflow["nodes"]
    slots = {entry["name"]: slot for slot, entry in enumerate(blueprint["outputs"])}
    names = {"model": "MODEL", "clip": "CLIP", "vae": "VAE"}
    kinds = [*names.values(), "IMAGE"]
    workflow["links"] = [[i, 2, i - 1, 1, i - 1, kind] for i, kind in enumerate(names.values(), 1)]
    workflow["links"].append([4, 1, slots[picture], 3, 0, "IMAGE"])
    for entry, link in zip(blueprint["inputs"], (1, 2, 3), strict=True):
        assert entry["type"] == names[entry["name"]]
        entry["link"] = link
    blueprint["outputs"][slots[picture]]["links"] = [4]
    common = {"pos": [0, 0], "size": [200, 100], "flags": {}, "order": 0, "mode": 0, "properties": {}}
    workflow["nodes"] += [
        {**common, "id": 2, "type": "CheckpointLoaderSimple", "inputs": [], "widgets_values": [CHECKPOINT],
         "outputs": [{"name": kind, "type": kind, "links": [i]} for i, kind in enumerate(kinds[:3], 1)]},
        {**common, "id": 3, "type": "PreviewImage", "outputs": [], "widgets_values": [],
         "inputs": [{"name": "images", "type": "IMAGE", "link": 4}]},
    ]  # fmt: skip
    return workflow


def test_the_blueprints_run_as_nodes(server) -> None:
    made = []
    for name in ("train_subject", "train_style"):
        before = set(server.soda.glob("*.safetensors"))
        prompt = for_demo(server.convert(around(TITLES[name], "loss_curve")), name, steps=3, sample_steps=2)
        assert server.images(server.queue(prompt), node(prompt, "PreviewImage"))
        made += [path.name for path in set(server.soda.glob("*.safetensors")) - before]
    server.object_info(refresh=True)
    compared = "base, subject, style, merged"
    prompt = for_demo(server.convert(around("Merge and compare", compared)), "merge and compare", sample_steps=2)
    loaders = [entry for entry in prompt.values() if entry["class_type"] == "SODALoadAdapter"]
    for loader, name in zip(loaders, made, strict=True):
        loader["inputs"]["adapter_name"] = name
    (row,) = server.images(server.queue(prompt), node(prompt, "PreviewImage"))
    assert row.width == 4 * row.height

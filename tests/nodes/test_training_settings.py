# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of a training through the server: the node's own, the settings node's, those of older workflows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from demo.build_workflows import SUBJECT_FOLDER
from demo.graph import widget_defaults
from testbed.paths import ROOT
from testbed.server import PromptError

from .conftest import Graph, base, training_graph

BEFORE = Path(__file__).parents[1] / "data" / "workflow_before_settings.json"
#: Kinds that the front end can say in Chinese.
CHINESE_NOTICES = set(re.findall(r'^  "([\w ]+)": \(', (ROOT / "web" / "notices.js").read_text("utf-8"), re.MULTILINE))
#: What that workflow says, where not the default.
SAID_BEFORE = {
    "steps": 3, "rotation_lr": 0.02, "shift_lr": 3e-5, "decomposition": "qr", "batch_size": 2, "schedule": "cosine",
    "gradient_clip": 0.5, "loss": "min-snr", "min_snr_gamma": 4.0, "seed": 11, "shift_knots": 8,
}  # fmt: skip
#: Required by the host; everything else has its default.
LEAST = ("filename_prefix", "trigger_phrase", "steps", "batch_size", "rotation_lr", "shift_lr", "decomposition",
         "train", "layers")  # fmt: skip


def settings_of_file(server, prefix: str) -> dict:
    path = max(server.soda.glob(f"{prefix}_*.safetensors"))
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["soda"])["metadata"]["settings"]


def with_settings(server, graph: Graph, **values) -> Graph:
    widgets = widget_defaults(server.object_info()["SODATrainingSettings"])
    node = graph.add("SODATrainingSettings", **{**widgets, **values})
    graph.nodes[graph.train]["inputs"]["settings"] = [node, 0]
    return graph


def test_the_settings_node_gives_what_train_does_not_show(server) -> None:
    g = training_graph(server, filename_prefix="shared")
    for name in [n for n in g.nodes[g.train]["inputs"] if n in widget_defaults(server.object_info()["SODATrain"])]:
        if name not in (*LEAST, "loss"):
            del g.nodes[g.train]["inputs"][name]
    server.queue(with_settings(server, g, schedule="cosine", accumulation=2, training_dtype="fp32").nodes)
    found = settings_of_file(server, "shared")
    assert (found["schedule"], found["accumulation"], found["dtype"], found["loss"]) == ("cosine", 2, "fp32", "mse")


def test_a_value_of_trains_own_goes_before_the_settings_nodes(server) -> None:
    g = training_graph(server, filename_prefix="own", gradient_clip=0.5)
    seen = len(server.log)
    server.queue(with_settings(server, g, gradient_clip=0.7, warmup_steps=1).nodes)
    found = settings_of_file(server, "own")
    assert (found["gradient_clip"], found["warmup_steps"]) == (0.5, 1)
    assert "gradient_clip, preview_steps, training_dtype of Train SODA itself go before" in server.log[seen:]


def test_a_workflow_from_before_the_settings_node_says_what_it_said(server) -> None:
    prompt = server.convert(json.loads(BEFORE.read_text("utf-8")))
    (train,) = (entry["inputs"] for entry in prompt.values() if entry["class_type"] == "SODATrain")
    assert {name: train[name] for name in SAID_BEFORE} == SAID_BEFORE
    said = {name: value for name, value in train.items() if not isinstance(value, list)}
    server.queue(training_graph(server, **{**said, "filename_prefix": "before"}).nodes)
    found = settings_of_file(server, "before")
    assert {name: found[name] for name in SAID_BEFORE} == SAID_BEFORE


def test_rates_of_a_prompt_that_does_not_say_their_units_count_as_they_did_before(server) -> None:
    g = training_graph(server, filename_prefix="units", steps=1)
    assert g.nodes[g.train]["inputs"].pop("rate_units") == "layer"
    server.queue(g.nodes)
    assert settings_of_file(server, "units")["rate_units"] == "entry"


def test_automatic_rates_come_from_the_settings_node_and_need_no_rates(server) -> None:
    g = training_graph(server, filename_prefix="automatic", rotation_lr=0.0, shift_lr=0.0)
    server.queue(with_settings(server, g, rates="automatic").nodes)
    assert settings_of_file(server, "automatic")["rates"] == "automatic"


def test_a_rate_may_be_text_as_the_widget_writes_it(server) -> None:
    """Out of a subgraph the front end sends the widget's text."""
    server.queue(training_graph(server, filename_prefix="written", steps=1, rotation_lr="5e-3").nodes)
    assert settings_of_file(server, "written")["rotation_lr"] == 0.005
    with pytest.raises(PromptError, match="rotation_lr, fast"):
        server.queue(training_graph(server, rotation_lr="fast").nodes)


# ------------------------------------------------------------------------------------------- what looks like a mistake


def notices(server, graph: Graph) -> dict[str, str]:
    """kind -> text of what the node is told to show."""
    said: dict[str, str] = {}

    def listen(kind: str, data: dict) -> None:
        if kind == "soda.notice":
            assert data["node"] == graph.train and data["kind"] in CHINESE_NOTICES
            said[data["kind"]] = data["text"]

    server.queue(graph.nodes, on_event=listen)
    return said


def test_a_good_training_has_nothing_to_say(server) -> None:
    g = training_graph(server, loss="dco", seed=71)
    plain = g.add("CLIPTextEncode", text="a fox", clip=("1", 1))
    g.nodes[g.train]["inputs"]["base_positive"] = [plain, 0]
    assert notices(server, g) == {}


def folder_graph(server, name: str, captions: int) -> Graph:
    """A training on the subject's five pictures, of which the first so many have a caption."""
    folder = server.base / "input" / name
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(sorted((server.base / "input" / SUBJECT_FOLDER).glob("*.jpg"))):
        with Image.open(picture) as opened:
            opened.resize((64, 64)).save(folder / picture.name)
        if number < captions:
            (folder / picture.name).with_suffix(".txt").write_text(f"a fox number {number}")
    g = Graph()
    model = base(g)
    pictures = g.add("LoadImageTextDataSetFromFolder", folder=name)
    data = g.add("MakeTrainingDataset", images=(pictures, 0), texts=(pictures, 1), vae=(model, 2), clip=(model, 1))
    widgets = {n: v for n, v in training_graph(server).nodes["5"]["inputs"].items() if not isinstance(v, list)}
    g.train = g.add("SODATrain", model=(model, 0), latents=(data, 0), positive=(data, 1), **widgets)
    return g


def test_pictures_without_captions_are_noticed(server) -> None:
    said = notices(server, folder_graph(server, "no captions", 0))
    assert said.keys() == {"same captions"} and "all 5 captions are the same" in said["same captions"]


def test_some_pictures_without_a_caption_are_counted_and_the_first_is_named(server) -> None:
    seen = len(server.log)
    said = notices(server, folder_graph(server, "some captions", 3))
    fourth = sorted(path.name for path in (server.base / "input" / "some captions").glob("*.jpg"))[3]
    assert said.keys() == {"some captions"}
    text = said["some captions"]
    assert f"2 of 5 pictures have no caption of their own, the first is {fourth}" in text and "empty one" in text
    assert f"SODA: {text}" in server.log[seen:]


def test_an_empty_caption_equal_captions_with_dco_and_a_rate_of_zero_are_noticed(server) -> None:
    g = training_graph(server, prompt=" ", loss="dco", shift_lr=0.0, seed=72)
    g.nodes[g.train]["inputs"]["base_positive"] = g.nodes[g.train]["inputs"]["positive"]
    assert notices(server, g).keys() == {"empty caption", "base captions", "shift rate"}


@pytest.mark.parametrize("train", ["rotation + shift", "rotation only"])
def test_nothing_to_train_is_an_error(server, train) -> None:
    rates = {"rotation_lr": 0.0, "shift_lr": 0.0 if train == "rotation + shift" else 1e-3}
    with pytest.raises(PromptError, match=f"nothing would be trained.*{train.replace('+', '.')}"):
        server.queue(training_graph(server, train=train, **rates).nodes)

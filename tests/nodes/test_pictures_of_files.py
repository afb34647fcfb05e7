# SPDX-License-Identifier: GPL-3.0-or-later
"""Saved adapters as things one recognises: a title of their own, a picture that the host serves, and its graph."""

from __future__ import annotations

import base64
import io
import json
from urllib.request import urlopen

import pytest
from PIL import Image
from safetensors import safe_open

from .conftest import STRENGTHS, Graph, base, training_graph


@pytest.fixture(scope="module")
def files(server) -> list:
    """Two of one name: with previews and without; and one on the way."""
    server.queue(training_graph(server, filename_prefix="known", seed=81, preview_every=3, save_every=2).nodes)
    server.queue(training_graph(server, filename_prefix="known", seed=82).nodes)
    return sorted(server.soda.glob("known*.safetensors"))


def header(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_no_two_files_have_one_title(files) -> None:
    assert [header(file)["modelspec.title"] for file in files] == [
        "known-step00002_00001", "known_00001", "known_00002",
    ]  # fmt: skip


def test_the_model_library_has_a_picture_of_each(server, files) -> None:
    for file in files:
        with urlopen(f"{server.url}/api/view_metadata/soda?filename={file.name}") as answer:
            shown = json.load(answer)["modelspec.thumbnail"]
        kind, _, data = shown.partition(",")
        with Image.open(io.BytesIO(base64.b64decode(data))) as small:
            assert kind == "data:image/jpeg;base64" and small.format == "JPEG" and max(small.size) <= 256
        with urlopen(f"{server.url}/api/experiment/models/preview/soda/0/{file.name}") as answer:
            served = Image.open(io.BytesIO(answer.read()))
        with Image.open(file.with_suffix(".png")) as beside:
            assert served.size == beside.size and max(beside.size) <= 768
    with Image.open(files[1].with_suffix(".png")) as preview, Image.open(files[2].with_suffix(".png")) as losses:
        assert preview.size == (256, 256), "the run's last preview, which is rough and small without a VAE"
        assert losses.size == (768, 432), "the losses, where there was none"


def test_pictures_bring_their_graph_when_dropped(server, files) -> None:
    previews = sorted((server.base / "output" / "soda-previews").glob("known-step*.png"))
    assert previews
    for path in (files[1].with_suffix(".png"), *previews):
        with Image.open(path) as picture:
            assert "SODATrain" in json.loads(picture.text["prompt"])["5"]["class_type"]


def test_a_merged_file_is_named_after_its_parents_and_takes_a_picture(server, files) -> None:
    g = Graph()
    model = base(g)
    loaded = [g.add("SODALoadAdapter", model=(model, 0), adapter_name=f.name, **STRENGTHS) for f in files[1:]]
    merge = g.add(
        "SODAMerge", subject=(loaded[0], 2), style=(loaded[1], 2), subject_strength=1.0, style_strength=1.0,
        method="delta",
    )  # fmt: skip
    image = g.add("EmptyImage", width=96, height=32, batch_size=1, color=0x8040C0)
    g.add("SODASaveAdapter", adapter=(merge, 0), filename_prefix="wed")
    g.add("SODASaveAdapter", adapter=(merge, 0), filename_prefix="pictured", preview=(image, 0))
    server.queue(g.nodes)
    (drawn,), (pictured,) = server.soda.glob("wed*.safetensors"), server.soda.glob("pictured*.safetensors")
    assert header(drawn)["modelspec.title"] == "wed_00001: known_00001 + known_00002"
    assert header(pictured)["modelspec.title"] == "pictured_00001: known_00001 + known_00002"
    with Image.open(drawn.with_suffix(".png")) as drawing, Image.open(pictured.with_suffix(".png")) as given:
        assert drawing.width > 300 and given.size == (256, 85), "what is smaller than a thumbnail is enlarged"

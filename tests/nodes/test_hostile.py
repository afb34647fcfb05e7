# SPDX-License-Identifier: GPL-3.0-or-later
"""Hostile files and numbers through the server's HTTP door: refused by name, and the server goes on."""

from __future__ import annotations

import contextlib
import math
import urllib.error

import pytest
import torch

from soda_core import SodaAdapter, SodaLayer
from testbed.hostile import MONSTERS, ODDITIES, Adapter
from testbed.hostile.monsters import NAME
from testbed.server import PromptError

from .conftest import STRENGTHS, Graph, base, training_graph

#: Some of each kind; ``tests/core`` goes through all of them.
REFUSED = (
    "nothing", "a header of 2^63 bytes", "a deep header", "metadata of numbers", "cut in the data",
    "offsets beyond the end", "NaN in a factor", "infinity in a shift", "JSON that is deep inside", "JSON with 1e999",
    "26 factors of 1", "five factors of 60", "20,001 layers", "a layer with colours", "a strength that is NaN",
    "a base model in text", "parents that are null", "a title with half a character",
)  # fmt: skip
USED = ("a title of 60,000 characters", "a title with colours and lines", "nothing known of anything")
SECONDS = 120  #: that nothing here comes near


@pytest.fixture(scope="module")
def parts(server, trained) -> Adapter:
    """Of an adapter that fits no model here: what the monsters are made of. (The server has run a prompt by then.)"""
    layer = SodaLayer("svd", [torch.eye(4), torch.eye(6)], torch.zeros(24)).with_base_check(torch.randn(24, 24))
    SodaAdapter({NAME: layer}, {"title": "fox"}).save(server.soda / "parts.safetensors")
    return Adapter.of((server.soda / "parts.safetensors").read_bytes())


@pytest.fixture(scope="module")
def trained(server) -> Adapter:
    graph = training_graph(server, filename_prefix="odd", shift_lr=0.05, rotation_lr=0.02)
    server.queue(graph.nodes)
    (file,) = server.soda.glob("odd_*.safetensors")
    return Adapter.of(file.read_bytes())


def inspecting_graph(name: str, **strengths: float) -> Graph:
    g = Graph()
    model = base(g)
    g.load = g.add("SODALoadAdapter", model=(model, 0), adapter_name=name, **{**STRENGTHS, **strengths})
    g.inspect = g.add("SODAInspectAdapter", adapter=(g.load, 2), model=(model, 0))
    g.portrait = g.add("PreviewImage", images=(g.inspect, 0))
    g.said = g.add("PreviewAny", source=(g.inspect, 1))
    return g


def look_at_metadata(server, name: str) -> None:
    """By the host's own ``view_metadata``, which may refuse or fail, but not hang."""
    with contextlib.suppress(urllib.error.HTTPError):
        server.connection.get(f"/view_metadata/soda?filename={name}")


@pytest.mark.parametrize("monster", REFUSED)
def test_a_monster_is_refused_by_name_and_the_server_goes_on(server, parts, monster) -> None:
    name = f"monster-{REFUSED.index(monster)}.safetensors"
    (server.soda / name).write_bytes(MONSTERS[monster](parts))
    look_at_metadata(server, name)
    with pytest.raises(PromptError, match=f"{name}: ") as caught:
        server.wait(server.submit(inspecting_graph(name).nodes), SECONDS)
    assert (
        caught.value.node_type == "SODALoadAdapter"
        and caught.value.exception_type == "soda_core.errors.FileFormatError"
    )
    assert server.system()["system"]["comfyui_version"]
    (server.soda / name).unlink()


@pytest.mark.parametrize("oddity", USED)
def test_an_oddity_is_loaded_and_inspected_and_cannot_write_the_log(server, trained, oddity) -> None:
    name = f"odd-{USED.index(oddity)}.safetensors"
    (server.soda / name).write_bytes(ODDITIES[oddity](trained))
    look_at_metadata(server, name)
    before = len(server.log)
    graph = inspecting_graph(name)
    entry = server.wait(server.submit(graph.nodes), SECONDS)
    assert server.images(entry, graph.portrait)[0].size[0] == 1024 and entry["outputs"][graph.inspect]["text"]
    said = server.log[before:]
    assert "layers match" in said, "the title is in the log"
    assert "\x1b[31mred" not in said and "\nSODA: all is well" not in said and "\x07" not in said


@pytest.mark.parametrize("name", ["strength_model", "strength_clip"])
def test_a_strength_of_nan_is_refused_by_name(server, trained, name) -> None:
    """JSON has no NaN, but the host's does, and NaN is below no minimum."""
    (server.soda / "fine.safetensors").write_bytes(trained.to_bytes())
    with pytest.raises(PromptError, match=f"{name} must be a number between -1000 and 1000, got nan"):
        server.wait(server.submit(inspecting_graph("fine.safetensors", **{name: math.nan}).nodes), SECONDS)


@pytest.mark.parametrize("name", ["rotation_lr", "dco_beta", "gradient_clip"])
def test_a_setting_of_nan_is_refused_by_name(server, name) -> None:
    with pytest.raises(PromptError, match=f"{name} must be"):
        server.wait(server.submit(training_graph(server, **{name: math.nan}).nodes), SECONDS)

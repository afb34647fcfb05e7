# SPDX-License-Identifier: GPL-3.0-or-later
"""Stacks, strengths by blocks and hooks through the real server."""

from __future__ import annotations

import pytest
import torch

from soda_core import SodaAdapter
from testbed.server import PromptError

from .conftest import STRENGTHS, Graph, base, sampling, training_graph

NEVER = {"strength_mult": 0.0, "start_percent": 0.0}


@pytest.fixture(scope="module")
def files(server) -> list[str]:
    """Two adapters, made of one that was trained."""
    server.queue(training_graph(server, filename_prefix="stack", shift_lr=0.05, rotation_lr=0.05).nodes)
    adapter = SodaAdapter.load(next(server.soda.glob("stack_*.safetensors")))
    names = []
    for name, strength, trigger in (("one", 1.0, "sks fox"), ("two", -0.7, "ink")):
        layers = {key: layer.at_strength(strength) for key, layer in adapter.layers.items()}
        SodaAdapter(layers, {**adapter.metadata, "title": name, "trigger_phrase": trigger}).save(
            server.soda / f"{name}.safetensors"
        )
        names.append(f"{name}.safetensors")
    server.object_info(refresh=True)
    return names


def row(number: int, file: str, **values) -> dict:
    """A row's inputs as the front end names them, behind the switches above it."""
    path = "".join(f"more_{i}." for i in range(2, number + 1))
    own = {"adapter": file, "on": True, "model": 1.0, "clip": 1.0, "blocks": "", **values}
    inputs = {f"{path}{name}_{number}": value for name, value in own.items()}
    return inputs if number == 1 else {**inputs, path.removesuffix("."): "yes"}


def stack(g: Graph, checkpoint: str, rows: list[dict]) -> str:
    inputs = {name: value for each in rows for name, value in each.items()}
    return g.add("SODAStack", model=(checkpoint, 0), mode="linear", ignore_base_check=False, **inputs)


def load(g: Graph, checkpoint: str, model: tuple[str, int], file: str, **values) -> str:
    return g.add("SODALoadAdapter", model=model, adapter_name=file, **{**STRENGTHS, **values})


def pixels(server, g: Graph, node: str) -> torch.Tensor:
    (image,) = server.images(server.queue(g.nodes), node)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int()


def test_a_stack_is_a_chain_of_loaders_and_leaves_out_what_is_off(server, files) -> None:
    one, two = files
    g = Graph()
    checkpoint = base(g)
    stacked = stack(g, checkpoint, [row(1, one, model=0.8), row(2, two, on=False), row(3, two, blocks="image 0.5")])
    picture = sampling(g, (stacked, 0), checkpoint)
    said = [g.add("PreviewAny", source=(stacked, slot)) for slot in (3, 4)]
    entry = server.queue(g.nodes)
    (image,) = server.images(entry, picture)
    found = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int()
    texts = [entry["outputs"][node]["text"][0] for node in said]
    assert texts == ["sks fox, ink", "- one.safetensors: 0.8, `sks fox`\n- two.safetensors: 1, image 0.5, `ink`"]

    h = Graph()
    checkpoint = base(h)
    first = load(h, checkpoint, (checkpoint, 0), one, strength_model=0.8)
    second = load(h, checkpoint, (first, 0), two, blocks="image 0.5")
    assert torch.equal(found, pixels(server, h, sampling(h, (second, 0), checkpoint)))
    whole = load(h, checkpoint, (first, 0), two)
    assert not torch.equal(found, pixels(server, h, sampling(h, (whole, 0), checkpoint))), "blocks count"


def test_wrong_blocks_are_an_error_that_names_what_there_is(server, files) -> None:
    g = Graph()
    checkpoint = base(g)
    stacked = stack(g, checkpoint, [row(1, files[0], blocks="upper 0.5")])
    with pytest.raises(PromptError, match="'upper 0.5': .* has no blocks 'upper', but all, down, image, text, down.1"):
        server.queue({**g.nodes, "end": {"class_type": "PreviewAny", "inputs": {"source": [stacked, 4]}}})


def hooked(g: Graph, checkpoint: str, hooks: tuple[str, int], keyframe: dict | None) -> str:
    """A picture by the base model whose prompts carry hooks."""
    if keyframe:
        frames = g.add("CreateHookKeyframe", **keyframe)
        hooks = (g.add("SetHookKeyframes", hooks=hooks, hook_kf=(frames, 0)), 0)
    return sampling(g, (checkpoint, 0), checkpoint, hooks=hooks)


@pytest.mark.parametrize("source", ["load", "apply", "stack"])
def test_hooks_give_the_picture_of_the_patch_and_follow_keyframes(server, files, source) -> None:
    def graph() -> tuple[Graph, str, tuple[str, int], tuple[str, int]]:
        g = Graph()
        checkpoint = base(g)
        if source == "stack":
            node = stack(g, checkpoint, [row(1, files[0], blocks="image 0.5"), row(2, files[1], model=0.5)])
            return g, checkpoint, (node, 0), (node, 2)
        loader = load(g, checkpoint, (checkpoint, 0), files[0], blocks="image 0.5")
        if source == "load":
            return g, checkpoint, (loader, 0), (loader, 4)
        node = g.add("SODAApplyAdapter", model=(checkpoint, 0), adapter=(loader, 2), **STRENGTHS)
        return g, checkpoint, (node, 0), (node, 3)

    pictures = {}
    for kind in ("patched", "hooked", "never", "base"):
        g, checkpoint, model, hooks = graph()
        if kind in ("patched", "base"):
            picture = sampling(g, model if kind == "patched" else (checkpoint, 0), checkpoint)
        else:
            picture = hooked(g, checkpoint, hooks, NEVER if kind == "never" else None)
        pictures[kind] = pixels(server, g, picture)
    assert (pictures["hooked"] - pictures["patched"]).abs().max() <= 2
    assert torch.equal(pictures["never"], pictures["base"])
    assert (pictures["patched"] - pictures["base"]).abs().float().mean() > 1

# SPDX-License-Identifier: GPL-3.0-or-later
"""A real headless server with a small SD 1.5-family checkpoint."""

from __future__ import annotations

import os
import re

import pytest

from demo.graph import widget_defaults
from testbed import hosts
from testbed.checkpoints import BASE_NAME, build, write
from testbed.server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH is not set; `python dev.py test` sets it")
    folder = tmp_path_factory.mktemp("server")
    extra = folder / "elsewhere"
    extra.mkdir()
    (folder / "extra.yaml").write_text(f"mine:\n  base_path: {extra}\n  soda: adapters\n", "utf-8")
    with Server(["--extra-model-paths-config", str(folder / "extra.yaml")], base=folder / "base", cpu=True) as server:
        server.add_checkpoint(write(folder / BASE_NAME, build("sd15-min", clip="sparse", seed=0)), BASE_NAME)
        server.add_checkpoint(write(folder / "sd3.safetensors", build("sd3-d2", clip="none")), "sd3.safetensors")
        server.soda = extra / "adapters"
        yield server
        assert not troubles(server.log.split("got prompt", 1)[0]), "the pack must come up clean"


def troubles(log: str) -> list[str]:
    """What a log says of errors that the pack has a part in.

    An old host's own extras may miss packages that its environment had (glfw, for one).
    """
    frames = re.findall(r"Traceback.*\n(?:  .*\n)+", log)
    return [text for text in frames if "custom_nodes" in text] + re.findall(
        r".*(?:IMPORT FAILED|Cannot import).*custom_nodes.*", log
    )


@pytest.fixture
def newest(server) -> None:
    """For tests of what is made for the newest host's front end."""
    version = [int(part) for part in server.system()["system"]["comfyui_version"].split(".")]
    if version < [int(part) for part in hosts.NEWEST.version.split(".")]:
        pytest.skip("example graphs are laid out for the newest ComfyUI")


class Graph:
    """API prompts written short: ``g.add("Node", a=1, b=g.ref)``; links are ``(id, output)``."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict] = {}

    def add(self, kind: str, **inputs) -> str:
        key = str(len(self.nodes) + 1)
        links = {k: [v[0], v[1]] if isinstance(v, tuple) else v for k, v in inputs.items()}
        self.nodes[key] = {"class_type": kind, "inputs": links}
        return key


#: of SODATrain, where not its default
QUICK = {
    "filename_prefix": "test",
    "trigger_phrase": "sks fox",
    "steps": 3,
    "rotation_lr": 1e-3,
    "shift_lr": 1e-3,
    "decomposition": "qr",
    "loss": "mse",
    "training_dtype": "fp32",
    "preview_steps": 2,
}
STRENGTHS = {"strength_model": 1.0, "strength_clip": 1.0, "mode": "linear", "ignore_base_check": False}


def base(graph: Graph, checkpoint: str = BASE_NAME) -> str:
    return graph.add("CheckpointLoaderSimple", ckpt_name=checkpoint)


def training_graph(server: Server, prompt: str = "a sks fox", size: int = 64, count: int = 2, **settings) -> Graph:
    """Checkpoint, ``count`` flat pictures encoded as one batch, one caption, SODATrain."""
    widgets = {**widget_defaults(server.object_info()["SODATrain"]), **QUICK, **settings}
    g = Graph()
    model = base(g)
    image = g.add("EmptyImage", width=size, height=size, batch_size=count, color=0x8040C0)
    latent = g.add("VAEEncode", pixels=(image, 0), vae=(model, 2))
    text = g.add("CLIPTextEncode", text=prompt, clip=(model, 1))
    g.train = g.add("SODATrain", model=(model, 0), latents=(latent, 0), positive=(text, 0), **widgets)
    return g


def sampling(
    g: Graph, model: tuple[str, int], checkpoint: str, seed: int = 1, hooks: tuple[str, int] | None = None
) -> str:
    """Two steps at 64 px, with hooks on the prompts; returns the id of the node that saves the picture."""
    text = g.add("CLIPTextEncode", text="a sks fox", clip=(checkpoint, 1))
    if hooks:
        text = g.add(
            "PairConditioningSetProperties", positive_NEW=(text, 0), negative_NEW=(text, 0), hooks=hooks, strength=1.0,
            set_cond_area="default",
        )  # fmt: skip
    latent = g.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    samples = g.add(
        "KSampler", model=model, positive=(text, 0), negative=(text, 0), latent_image=(latent, 0), seed=seed,
        steps=2, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    image = g.add("VAEDecode", samples=(samples, 0), vae=(checkpoint, 2))
    return g.add("PreviewImage", images=(image, 0))


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if "/nodes/" in str(item.path):
            item.add_marker(pytest.mark.host)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The blueprints in ``subgraphs/``: whole tasks as one node, which the front end lists beside its own."""

from __future__ import annotations

import uuid
from typing import Any

from demo import notes
from demo.graph import Column, Graph, Node

#: The ids that the front end gives the two ends of a subgraph.
_IN, _OUT = -10, -20
NEGATIVE, SIZE, SEED = "blurry, low quality", 512, 7


class Blueprint(Graph):
    """A graph that becomes one node.

    Args:
        title: of the node.
        description: of what it does, for its tooltip.
    """

    def __init__(self, title: str, description: str, object_info: dict[str, Any]) -> None:
        super().__init__(f"blueprint/{title}", object_info)
        self.title, self.description = title, description
        self.sockets = {"model": "MODEL", "clip": "CLIP", "vae": "VAE"}  #: type by name
        schema = {"output": list(self.sockets.values()), "output_name": list(self.sockets)}
        self.start = Node(_IN, "the blueprint", schema, (0, 0), (0, 0), None, None)
        self._outputs: list[dict[str, Any]] = []
        self._shown: list[tuple[Node, str]] = []

    def __getitem__(self, name: str) -> tuple[Node, int]:
        """What comes in through a socket."""
        return self.start[name]

    def output(self, name: str, source: tuple[Node, int]) -> None:
        """Give an inner node's output out."""
        origin, slot = source
        link, kind = len(self.links) + 1, origin.schema["output"][slot]
        self.links.append([link, origin.id, slot, _OUT, len(self._outputs), kind])
        origin.links.setdefault(slot, []).append(link)
        self._outputs.append({"name": name, "type": kind, "linkIds": [link]})

    def show(self, node: Node, *widgets: str) -> None:
        """Put widgets of an inner node on the outside."""
        self._shown += [(node, widget) for widget in widgets]

    def as_json(self) -> dict[str, Any]:
        inner = super().as_json()
        right = max(node.place[0] + node.size[0] for node in self.nodes)
        inputs = [
            {"id": self._uuid(f"in/{name}"), "name": name, "type": kind, "linkIds": self.start.links.get(slot, []),
             "pos": [-180, 20 * slot]}
            for slot, (name, kind) in enumerate(self.sockets.items())
        ]  # fmt: skip
        outputs = [
            {"id": self._uuid(f"out/{o['name']}"), **o, "pos": [right + 120, 20 * slot]}
            for slot, o in enumerate(self._outputs)
        ]
        definition = {
            "id": self._uuid("definition"), "version": 1, "revision": 0, "config": {}, "name": self.title,
            "category": "SODA", "description": self.description,
            "state": {"lastGroupId": len(self.groups), "lastNodeId": self._count, "lastLinkId": len(self.links),
                      "lastRerouteId": 0},
            "inputNode": {"id": _IN, "bounding": [-220, -20, 120, 20 * len(inputs) + 40]},
            "outputNode": {"id": _OUT, "bounding": [right + 100, -20, 120, 20 * len(outputs) + 40]},
            "inputs": inputs, "outputs": outputs, "widgets": [], "nodes": inner["nodes"], "groups": inner["groups"],
            "links": [
                dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
                for link in self.links
            ],
            "extra": {},
        }  # fmt: skip
        node = {
            "id": 1, "type": definition["id"], "pos": [0, 0], "size": [400, 60 + 30 * len(self._shown)], "flags": {},
            "order": 0, "mode": 0, "title": self.title,
            "inputs": [{"name": name, "type": kind, "link": None} for name, kind in self.sockets.items()],
            "outputs": [{"name": o["name"], "type": o["type"], "links": []} for o in self._outputs],
            "properties": {"proxyWidgets": [[str(node.id), widget] for node, widget in self._shown]},
            "widgets_values": [],
        }  # fmt: skip
        return {
            "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": [], "version": 0.4,
            "definitions": {"subgraphs": [definition]},
            "extra": {"BlueprintSearchAliases": ["soda", "lora", "dreambooth"]},
        }  # fmt: skip

    def _uuid(self, part: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"soda/{self.name}/{part}"))


def _train(
    object_info: dict[str, Any], title: str, words: notes.TrainWords, placeholder: str, trigger: str
) -> dict[str, Any]:
    """A folder of pictures in, an adapter and the adapted model out."""
    description = f"Trains a SODA adapter of a {words.english} on a folder of pictures with captions, and applies it."
    g = Blueprint(title, description, object_info)
    data = Column(g, 0, 340)
    pictures = data.add("LoadImageTextDataSetFromFolder", folder=words.folder)
    resize = data.add("ImageScale", image=pictures["images"], upscale_method="lanczos", width=SIZE, height=SIZE,
                      crop="center")  # fmt: skip
    dataset = data.add("MakeTrainingDataset", images=resize[0], vae=g["vae"], clip=g["clip"], texts=pictures["texts"])
    shorten = data.add("StringReplace", "Placeholder", string=pictures["texts"], find=placeholder, replace="")
    captions = data.add("CLIPTextEncode", "Base captions", clip=g["clip"], text=shorten[0])
    negative = data.add("CLIPTextEncode", "Negative prompt", clip=g["clip"], text=NEGATIVE)
    training = Column(g, data.next, 420)
    trainer = training.add(
        "SODATrain", model=g["model"], latents=dataset["latents"], positive=dataset["conditioning"],
        base_positive=captions[0], negative=negative[0], vae=g["vae"], filename_prefix=words.english,
        trigger_phrase=trigger, preview_every=100,
    )  # fmt: skip
    g.show(pictures, "folder")
    g.show(shorten, "find")
    g.show(trainer, "trigger_phrase", "filename_prefix", "steps", "rotation_lr", "shift_lr", "preview_every", "seed")
    for name in ("MODEL", "adapter", "loss_curve", "saved_name"):
        g.output(name, trainer[name])
    return g.as_json()


def _merge_and_compare(object_info: dict[str, Any]) -> dict[str, Any]:
    """Two adapters in; their merge, and one prompt painted by base, subject, style and merge out, side by side."""
    description = "Merges a subject's and a style's SODA adapter without training, and paints one prompt with each."
    g = Blueprint("Merge and compare", description, object_info)
    loading = Column(g, 0, 340)
    subject = loading.add("SODALoadAdapter", "Subject", model=g["model"], adapter_name="")
    style = loading.add("SODALoadAdapter", "Style", model=g["model"], adapter_name="")
    merging = Column(g, loading.next, 340)
    merge = merging.add("SODAMerge", subject=subject["adapter"], style=style["adapter"], model=g["model"])
    apply = merging.add("SODAApplyAdapter", model=g["model"], adapter=merge["adapter"])
    prompt = merging.add(
        "CLIPTextEncode", "Prompt", clip=g["clip"], text="a sks flower on a red background, in zqx style"
    )
    negative = merging.add("CLIPTextEncode", "Negative prompt", clip=g["clip"], text=NEGATIVE)
    size = merging.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1)
    sampling, decoding = Column(g, merging.next, 320), Column(g, merging.next + 390, 260)
    seed = sampling.add("PrimitiveInt", "Seed", value=SEED)
    pictures = []
    for title, model in (
        ("Base", g["model"]), ("Subject", subject["MODEL"]), ("Style", style["MODEL"]), ("Merged", apply["MODEL"])
    ):  # fmt: skip
        latent = sampling.add(
            "KSampler", title, model=model, positive=prompt[0], negative=negative[0], latent_image=size[0],
            seed=seed[0], steps=25, cfg=6.0, sampler_name="euler", scheduler="normal",
        )  # fmt: skip
        pictures.append(decoding.add("VAEDecode", title, samples=latent[0], vae=g["vae"]))
    row = pictures[0]
    for picture in pictures[1:]:
        row = decoding.add("ImageStitch", image1=row[0], image2=picture[0], direction="right")
    g.show(prompt, "text")
    g.show(subject, "adapter_name")
    g.show(style, "adapter_name")
    g.show(merge, "subject_strength", "style_strength", "method")
    g.show(seed, "value")
    g.output("base, subject, style, merged", row[0])
    g.output("MODEL", apply["MODEL"])
    g.output("adapter", merge["adapter"])
    g.output("report", merge["report"])
    return g.as_json()


def build_all(object_info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Title, which is the file's name -> blueprint."""
    return {
        "Train my subject": _train(object_info, "Train my subject", notes.SUBJECT, "sks ", "sks flower"),
        "Train my style": _train(object_info, "Train my style", notes.STYLE, ", in zqx style", "in zqx style"),
        "Merge and compare": _merge_and_compare(object_info),
    }

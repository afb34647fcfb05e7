# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the example workflows in ``workflows/``, in the form in which ComfyUI's front end saves them.

Sockets and widgets come in the order that a running host reports, so a node that changed only needs this to be run
again. Settings are those for real models; the demo lowers them for its small one (see ``run.py``).

    COMFYUI_PATH=... python -m demo.build_workflows [--out workflows]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from demo.graph import (
    BLUE,
    GREEN,
    GROUP_BLUE,
    GROUP_GREEN,
    GROUP_GREY,
    GROUP_PURPLE,
    PURPLE,
    Graph,
    Node,
    read_object_info,
)
from testbed.checkpoints import BASE_NAME
from testbed.paths import ROOT

SUBJECT_FOLDER, STYLE_FOLDER = "soda_subject", "soda_style"
SUBJECT_FILE, STYLE_FILE = "subject_00001_.safetensors", "style_00001_.safetensors"
SIZE = 512  # pixels a side: training pictures and samples
SEED = 7
NEGATIVE = "blurry, low quality"


# ------------------------------------------------------------------------------------------------- parts of graphs


def _checkpoint(graph: Graph, place: tuple[int, int]) -> Node:
    return graph.add("CheckpointLoaderSimple", place, (340, 100), colour=BLUE, ckpt_name=BASE_NAME)


def _encode(graph: Graph, place: tuple[int, int], clip: tuple[Node, int], text: Any, title: str) -> Node:
    return graph.add("CLIPTextEncode", place, (340, 100), title, clip=clip, text=text)


def _sampler(
    graph: Graph,
    place: tuple[int, int],
    model: tuple[Node, int],
    positive: Node,
    negative: Node,
    latent: Node,
    title: str | None = None,
) -> Node:
    return graph.add(
        "KSampler", place, (300, 262), title, model=model, positive=positive[0], negative=negative[0],
        latent_image=latent[0], seed=SEED, steps=25, cfg=6.0, sampler_name="euler", scheduler="normal",
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- the workflows


def train(
    object_info: dict[str, Any], name: str, folder: str, placeholder: str, trigger: str, prompt: str, prefix: str
) -> dict[str, Any]:
    """Pictures with captions in, an adapter and a picture made with it out."""
    what = "subject" if name == "train_subject" else "style"
    g = Graph(name, object_info)
    checkpoint = _checkpoint(g, (0, 0))
    pictures = g.add("LoadImageTextDataSetFromFolder", (0, 250), (340, 80), colour=GREEN, folder=folder)
    resize = g.add(
        "ImageScale", (0, 380), (340, 154), "Resize to training size", image=pictures["images"],
        upscale_method="lanczos", width=SIZE, height=SIZE, crop="center",
    )  # fmt: skip
    dataset = g.add(
        "MakeTrainingDataset", (0, 584), (340, 100),
        images=resize[0], vae=checkpoint["VAE"], clip=checkpoint["CLIP"], texts=pictures["texts"],
    )  # fmt: skip
    shorten = g.add(
        "StringReplace", (0, 734), (340, 190), f"Captions without '{placeholder.strip(', ')}'",
        string=pictures["texts"], find=placeholder, replace="",
    )  # fmt: skip
    base_captions = _encode(g, (0, 974), checkpoint["CLIP"], shorten[0], "Base captions")
    negative = _encode(g, (920, 890), checkpoint["CLIP"], NEGATIVE, "Negative prompt")

    trainer = g.add(
        "SODATrain", (420, 0), (420, 1130), colour=PURPLE,
        model=checkpoint["MODEL"], latents=dataset["latents"], positive=dataset["conditioning"],
        base_positive=base_captions[0], negative=negative[0], vae=checkpoint["VAE"],
        filename_prefix=prefix, trigger_phrase=trigger,
    )  # fmt: skip

    curve = g.add("PreviewImage", (920, 0), (430, 620), "Loss curve", images=trainer["loss_curve"])
    inspect = g.add("SODAInspectAdapter", (1370, 0), (430, 620), colour=PURPLE, adapter=trainer["adapter"])
    positive = _encode(g, (920, 740), checkpoint["CLIP"], prompt, "Prompt")
    latent = g.add("EmptyLatentImage", (920, 1030), (340, 100), width=SIZE, height=SIZE, batch_size=1)
    sampler = _sampler(g, (1310, 740), trainer["MODEL"], positive, negative, latent)
    decode = g.add("VAEDecode", (1650, 740), (150, 56), samples=sampler[0], vae=checkpoint["VAE"])
    save = g.add("SaveImage", (1880, 0), (560, 620), images=decode[0], filename_prefix=f"soda/{name}")

    g.group("Base model", GROUP_BLUE, checkpoint)
    g.group("Pictures and captions", GROUP_GREEN, pictures, resize, dataset, shorten, base_captions)
    g.group("Train", GROUP_PURPLE, trainer)
    g.group("What it learned", GROUP_GREY, curve, inspect)
    g.group("Sample with the new adapter", GROUP_BLUE, positive, negative, latent, sampler, decode)
    g.group("Result", GROUP_GREEN, save)
    subject_tip = f"a *placeholder* word that means nothing yet: `a {trigger} on green hills`"
    style_tip = f"what it shows and *then* the style: `a house on a hill, {trigger}`"
    word = placeholder.strip(", ")
    g.note(
        (-420, 0), (370, 520),
        f"""## Train a {what} adapter

1. Choose your **base model**.
2. Put 3 to 10 pictures in a folder in ComfyUI's `input` folder, here `{folder}`. Beside each goes a text file of the \
same name with its caption: {subject_tip if what == "subject" else style_tip}. \
Press `R` when a new folder is not listed.
3. Another phrase than `{word}`? Change it in the captions, in **Captions without '{word}'**, in **trigger_phrase** \
and in the **Prompt**.
4. Press **Run**. The adapter is saved in `models/soda` as soon as training ends, and a picture is made with it.

Cancelling keeps what was learned so far.

**Base captions** are the same captions without the placeholder; the *dco* loss compares with them what the base \
model can do already.""",
        "Start here",
    )  # fmt: skip
    g.note(
        (-420, 580), (370, 430),
        f"""## Settings

- **Resize**: {SIZE} for SD1.5, 1024 for SDXL and SD3; *Empty Latent Image* takes the same. Smaller is faster.
- **steps**: 1000 for a few pictures. Set **preview_every** to 100 and judge by the previews: the loss jumps whatever \
you do.
- **rotation_lr, shift_lr**: 5e-5 is the authors' value for 1000 steps. Nothing learnt? Three times as much, again and \
again. Broken pictures? A third.
- **training_dtype**: leave at *auto*.
- Out of memory: turn on *gradient_checkpointing*, or resize to fewer pixels.

Captions must say everything that is **not** the {what}, so that only the {what} sticks to the word.""",
        "Settings",
    )  # fmt: skip
    return g.as_json()


def merge_subject_and_style(object_info: dict[str, Any]) -> dict[str, Any]:
    """Two adapters in, one adapter and a picture made with it out."""
    g = Graph("merge_subject_and_style", object_info)
    checkpoint = _checkpoint(g, (0, 0))
    loaders = [
        g.add(
            "SODALoadAdapter", (0, y), (340, 250), title, PURPLE,
            model=checkpoint["MODEL"], adapter_name=file, mode="linear",
        )
        for y, title, file in ((250, "Subject", SUBJECT_FILE), (550, "Style", STYLE_FILE))
    ]  # fmt: skip
    merge = g.add(
        "SODAMerge", (420, 0), (540, 190), colour=PURPLE,
        subject=loaders[0]["adapter"], style=loaders[1]["adapter"], model=checkpoint["MODEL"],
    )  # fmt: skip
    save_adapter = g.add("SODASaveAdapter", (420, 250), (540, 110), colour=PURPLE, adapter=merge["adapter"])
    report = g.add("PreviewAny", (420, 420), (540, 380), "Interference report", source=merge["report"])

    apply = g.add(
        "SODAApplyAdapter", (1040, 0), (320, 230), colour=PURPLE, model=checkpoint["MODEL"], adapter=merge["adapter"]
    )
    positive = _encode(g, (1040, 290), checkpoint["CLIP"], "a sks flower on a red background, in zqx style", "Prompt")
    negative = _encode(g, (1040, 450), checkpoint["CLIP"], NEGATIVE, "Negative prompt")
    latent = g.add("EmptyLatentImage", (1040, 610), (340, 110), width=SIZE, height=SIZE, batch_size=1)
    sampler = _sampler(g, (1410, 0), apply["MODEL"], positive, negative, latent)
    decode = g.add("VAEDecode", (1410, 330), (300, 60), samples=sampler[0], vae=checkpoint["VAE"])
    save = g.add("SaveImage", (1790, 0), (480, 560), images=decode[0], filename_prefix="soda/merged")

    g.group("Base model", GROUP_BLUE, checkpoint)
    g.group("Two adapters of this base model", GROUP_PURPLE, *loaders)
    g.group("Merge, without training", GROUP_PURPLE, merge, save_adapter, report)
    g.group("Sample with the merged adapter", GROUP_BLUE, apply, positive, negative, latent, sampler, decode)
    g.group("Result", GROUP_GREEN, save)
    g.note(
        (-420, 0), (370, 560),
        """## My subject in my style

Both adapters must have been trained on the **base model** chosen here (see the two *train* workflows). Only the \
*adapter* output of the loaders is used.

- **subject_strength**, **style_strength**: 1 = as trained. Lower the one that drowns the other.
- **method**
  - *delta*: adds both changes to the base weights; works with any two adapters of one base.
  - *geodesic*: adds the rotations' angles; the result is as small as its parents. Both need equal factor sizes.

The **report** says, layer by layer, how much the two get in each other's way.

Use both placeholder words in the **prompt**.""",
        "Start here",
    )  # fmt: skip
    return g.as_json()


def load_and_sample(object_info: dict[str, Any]) -> dict[str, Any]:
    """The base model's picture beside the adapted model's, at one seed."""
    g = Graph("load_and_sample", object_info)
    checkpoint = _checkpoint(g, (0, 0))
    loader = g.add(
        "SODALoadAdapter", (0, 250), (340, 250), colour=PURPLE, model=checkpoint["MODEL"], clip=checkpoint["CLIP"],
        adapter_name=SUBJECT_FILE,
    )  # fmt: skip
    prompt = g.add(
        "StringReplace", (420, 0), (340, 190), "Prompt with trigger phrase",
        string="a {trigger} on a sunset background", find="{trigger}", replace=loader["trigger_phrase"],
    )  # fmt: skip
    adapted_prompt = _encode(g, (420, 250), loader["CLIP"], prompt[0], "Prompt, adapted")
    base_prompt = _encode(g, (420, 410), checkpoint["CLIP"], prompt[0], "Prompt, base")
    negative = _encode(g, (420, 570), checkpoint["CLIP"], NEGATIVE, "Negative prompt")
    latent = g.add("EmptyLatentImage", (0, 570), (340, 110), width=SIZE, height=SIZE, batch_size=1)

    base = _sampler(g, (840, 0), checkpoint["MODEL"], base_prompt, negative, latent, "KSampler: base")
    adapted = _sampler(g, (840, 312), loader["MODEL"], adapted_prompt, negative, latent, "KSampler: with adapter")
    base_picture = g.add("VAEDecode", (840, 624), (140, 56), "Decode base", samples=base[0], vae=checkpoint["VAE"])
    picture = g.add("VAEDecode", (1000, 624), (140, 56), "Decode", samples=adapted[0], vae=checkpoint["VAE"])
    stitch = g.add(
        "ImageStitch", (1220, 0), (340, 150), "Base on the left, adapted on the right",
        image1=base_picture[0], image2=picture[0], direction="right",
    )  # fmt: skip
    save = g.add("SaveImage", (1220, 210), (660, 470), images=stitch[0], filename_prefix="soda/base_and_adapted")

    g.group("Model and adapter", GROUP_BLUE, checkpoint, loader, latent)
    g.group("Prompt", GROUP_GREY, prompt, adapted_prompt, base_prompt, negative)
    g.group("Same seed twice", GROUP_PURPLE, base, adapted, base_picture, picture)
    g.group("Result", GROUP_GREEN, stitch, save)
    g.note(
        (-420, 0), (370, 520),
        """## Use an adapter

Choose the **base model** the adapter was trained on, then the **adapter**.

`{trigger}` in the prompt becomes the phrase that is stored in the adapter. For a style write `a house, {trigger}`.

- **strength_model**: 0 = base model, 1 = as trained.
- **mode**
  - *linear*: as with a LoRA; adapters add up.
  - *geodesic*: turns the rotation by that part of its angle; try it for strengths above 1.

An adapter's spectral shift only fits the weights it was trained on, so the loader checks the base model and \
stops at a wrong one (with a rotation only it warns in the log).

The result is an ordinary MODEL: LoRAs, ControlNet and further adapters go behind it.""",
        "Start here",
    )  # fmt: skip
    return g.as_json()


def build_all(object_info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """File name without ending -> workflow."""
    return {
        "train_subject": train(
            object_info,
            "train_subject",
            SUBJECT_FOLDER,
            "sks ",
            "sks flower",
            "a sks flower on a striped background",
            "subject",
        ),
        "train_style": train(
            object_info,
            "train_style",
            STYLE_FOLDER,
            ", in zqx style",
            "in zqx style",
            "a house on a green background, in zqx style",
            "style",
        ),
        "merge_subject_and_style": merge_subject_and_style(object_info),
        "load_and_sample": load_and_sample(object_info),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the example workflows.")
    parser.add_argument("--out", type=Path, default=ROOT / "workflows")
    parser.add_argument("--object-info", type=Path, help="a saved /object_info, instead of starting ComfyUI")
    args = parser.parse_args()
    object_info = read_object_info(args.object_info)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, workflow in build_all(object_info).items():
        text = json.dumps(workflow, indent=1, ensure_ascii=False)
        (args.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(f"{name}.json: {len(workflow['nodes'])} nodes, {len(workflow['links'])} links")


if __name__ == "__main__":
    main()

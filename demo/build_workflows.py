# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the example workflows in ``workflows/``, in the form in which ComfyUI's front end saves them.

Sockets and widgets come in the order that a running host reports, so a node that changed only needs this to be run
again. They run as they are with a public checkpoint and the pictures in ``workflows/pictures``; the demo lowers their
settings for its small model (see ``run.py``).

    COMFYUI_PATH=... python -m demo.build_workflows
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from demo import blueprints, notes
from demo.graph import (
    AISLE,
    BLUE,
    GREEN,
    GROUP_BLUE,
    GROUP_GREEN,
    GROUP_GREY,
    GROUP_PURPLE,
    PURPLE,
    Column,
    Graph,
    Node,
    read_object_info,
)
from testbed.paths import ROOT

#: File names, which the front end shows as titles.
TITLES = {
    "train_subject": "Train my subject",
    "train_style": "Train my style",
    "merge_subject_and_style": "Merge subject and style",
    "load_and_sample": "Use an adapter",
    "save_merged_checkpoint": "Save as one checkpoint",
    "subject_early_style_late": "Subject early, style late",
}
#: As ComfyUI's own templates name it.
CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
CHECKPOINT_URL = (
    f"https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{CHECKPOINT}?download=true"
)
SUBJECT_FOLDER, STYLE_FOLDER = notes.SUBJECT.folder, notes.STYLE.folder
SIZE = 512  # pixels a side: training pictures and samples
SEED = 7
NEGATIVE = "blurry, low quality"
NOTE_WIDTH, NOTE_HEIGHT = 400, 760
LOADER, REPORT = 440, 760  # pixels: heights of nodes on which a text stands


def workflow_file(name: str) -> Path:
    return ROOT / "workflows" / f"{TITLES[name]}.json"


# ------------------------------------------------------------------------------------------------- parts of graphs


def _notes(graph: Graph, texts: list[notes.Note]) -> None:
    """To the left, English beside the graph and Chinese beside that."""
    for i, note in enumerate(texts, 1):
        place = (-i * (NOTE_WIDTH + AISLE // 2), 0)
        graph.note(place, (NOTE_WIDTH, NOTE_HEIGHT), note.text, note.title)


def _checkpoint(column: Column) -> Node:
    node = column.add("CheckpointLoaderSimple", colour=BLUE, ckpt_name=CHECKPOINT)
    node.properties["models"] = [{"name": CHECKPOINT, "url": CHECKPOINT_URL, "directory": "checkpoints"}]
    column.group("Base model", GROUP_BLUE)
    return node


def _adapter(column: Column, what: str, title: str | None, **inputs: Any) -> Node:
    """A loader for which ``web/library.js`` chooses the newest adapter whose name begins so, once there is one."""
    node = column.add("SODALoadAdapter", title, PURPLE, LOADER, adapter_name="", **inputs)
    node.properties["soda_choose"] = what
    return node


def _encode(column: Column, clip: tuple[Node, int], text: Any, title: str) -> Node:
    return column.add("CLIPTextEncode", title, clip=clip, text=text)


def _empty(column: Column) -> Node:
    return column.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1)


def _sampler(
    column: Column, model: tuple[Node, int], positive: Node, negative: Node, latent: Node, title: str | None = None
) -> Node:
    return column.add(
        "KSampler", title, model=model, positive=positive[0], negative=negative[0],
        latent_image=latent[0], seed=SEED, steps=25, cfg=6.0, sampler_name="euler", scheduler="normal",
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- the workflows


def train(
    object_info: dict[str, Any], name: str, words: notes.TrainWords, placeholder: str, trigger: str, prompt: str
) -> dict[str, Any]:
    """Pictures with captions in, an adapter and a picture made with it out."""
    g = Graph(name, object_info)
    column = Column(g, 0, 340)
    checkpoint = _checkpoint(column)
    pictures = column.add("LoadImageTextDataSetFromFolder", colour=GREEN, folder=words.folder)
    resize = column.add(
        "ImageScale", "Resize to training size", image=pictures["images"],
        upscale_method="lanczos", width=SIZE, height=SIZE, crop="center",
    )  # fmt: skip
    dataset = column.add(
        "MakeTrainingDataset",
        images=resize[0], vae=checkpoint["VAE"], clip=checkpoint["CLIP"], texts=pictures["texts"],
    )  # fmt: skip
    shorten = column.add(
        "StringReplace", f"Captions without '{placeholder.strip(', ')}'",
        string=pictures["texts"], find=placeholder, replace="",
    )  # fmt: skip
    base_captions = _encode(column, checkpoint["CLIP"], shorten[0], "Base captions")
    column.group("Pictures and captions", GROUP_GREEN)

    prompts = Column(g, column.next, 440)
    positive = _encode(prompts, checkpoint["CLIP"], prompt, "Prompt")
    negative = _encode(prompts, checkpoint["CLIP"], NEGATIVE, "Negative prompt")
    prompts.group("What to paint", GROUP_BLUE)
    trainer = prompts.add(
        "SODATrain", colour=PURPLE,
        model=checkpoint["MODEL"], latents=dataset["latents"], positive=dataset["conditioning"],
        base_positive=base_captions[0], negative=negative[0], vae=checkpoint["VAE"],
        filename_prefix=words.english, trigger_phrase=trigger, preview_every=100,
    )  # fmt: skip
    prompts.group("Train", GROUP_PURPLE)

    learned = Column(g, prompts.next, 460)
    learned.add("PreviewImage", "Loss curve", body=330, images=trainer["loss_curve"])
    learned.add("SODAInspectAdapter", colour=PURPLE, body=620, adapter=trainer["adapter"])
    learned.group("What it learned", GROUP_GREY)

    sampling = Column(g, learned.next, 320)
    latent = _empty(sampling)
    sampler = _sampler(sampling, trainer["MODEL"], positive, negative, latent)
    decode = sampling.add("VAEDecode", samples=sampler[0], vae=checkpoint["VAE"])
    sampling.group("Sample with the new adapter", GROUP_BLUE)

    result = Column(g, sampling.next, 560)
    save = result.add("SaveImage", body=680, images=decode[0], filename_prefix=f"soda/{name}")
    result.group("Result", GROUP_GREEN)
    g.app_mode(
        [
            (checkpoint, "ckpt_name"), (pictures, "folder"), (trainer, "trigger_phrase"), (trainer, "filename_prefix"),
            (trainer, "steps"), (trainer, "rotation_lr"), (trainer, "shift_lr"), (positive, "text"),
        ],
        [save],
    )  # fmt: skip
    _notes(g, notes.train(words, SIZE))
    return g.as_json()


def merge_subject_and_style(object_info: dict[str, Any]) -> dict[str, Any]:
    """Two adapters in, one adapter and a picture made with it out."""
    g = Graph("merge_subject_and_style", object_info)
    column = Column(g, 0, 340)
    checkpoint = _checkpoint(column)
    subject, style = (
        _adapter(column, what, title, model=checkpoint["MODEL"], mode="linear")
        for what, title in (("subject", "Subject"), ("style", "Style"))
    )
    column.group("Two adapters of this base model", GROUP_PURPLE)

    merging = Column(g, column.next, 540)
    merge = merging.add(
        "SODAMerge", colour=PURPLE, body=REPORT,
        subject=subject["adapter"], style=style["adapter"], model=checkpoint["MODEL"],
    )  # fmt: skip
    save_adapter = merging.add("SODASaveAdapter", colour=PURPLE, adapter=merge["adapter"])
    merging.add("PreviewAny", "Interference report", body=420, source=merge["report"])
    merging.group("Merge, without training", GROUP_PURPLE)

    sampling = Column(g, merging.next, 340)
    apply = sampling.add("SODAApplyAdapter", colour=PURPLE, model=checkpoint["MODEL"], adapter=merge["adapter"])
    positive = _encode(sampling, checkpoint["CLIP"], "a sks flower on a red background, in zqx style", "Prompt")
    negative = _encode(sampling, checkpoint["CLIP"], NEGATIVE, "Negative prompt")
    latent = _empty(sampling)
    sampler = _sampler(sampling, apply["MODEL"], positive, negative, latent)
    decode = sampling.add("VAEDecode", samples=sampler[0], vae=checkpoint["VAE"])
    sampling.group("Sample with the merged adapter", GROUP_BLUE)

    result = Column(g, sampling.next, 560)
    save = result.add("SaveImage", body=680, images=decode[0], filename_prefix="soda/merged")
    result.group("Result", GROUP_GREEN)
    g.link(save_adapter, "preview", decode[0])
    g.app_mode(
        [
            (checkpoint, "ckpt_name"), (subject, "adapter_name"), (style, "adapter_name"), (merge, "subject_strength"),
            (merge, "style_strength"), (merge, "method"), (positive, "text"),
        ],
        [save],
    )  # fmt: skip
    _notes(g, notes.MERGE)
    return g.as_json()


def load_and_sample(object_info: dict[str, Any]) -> dict[str, Any]:
    """The base model's picture beside the adapted model's, at one seed."""
    g = Graph("load_and_sample", object_info)
    column = Column(g, 0, 340)
    checkpoint = _checkpoint(column)
    loader = _adapter(column, "subject", None, model=checkpoint["MODEL"], clip=checkpoint["CLIP"])
    column.group("Adapter", GROUP_PURPLE)

    prompts = Column(g, column.next, 340)
    prompt = prompts.add(
        "StringReplace", "Prompt with trigger phrase",
        string="a {trigger} on a sunset background", find="{trigger}", replace=loader["trigger_phrase"],
    )  # fmt: skip
    adapted_prompt = _encode(prompts, loader["CLIP"], prompt[0], "Prompt, adapted")
    base_prompt = _encode(prompts, checkpoint["CLIP"], prompt[0], "Prompt, base")
    negative = _encode(prompts, checkpoint["CLIP"], NEGATIVE, "Negative prompt")
    prompts.group("Prompt", GROUP_GREY)

    sampling = Column(g, prompts.next, 320)
    latent = _empty(sampling)
    base = _sampler(sampling, checkpoint["MODEL"], base_prompt, negative, latent, "KSampler: base")
    adapted = _sampler(sampling, loader["MODEL"], adapted_prompt, negative, latent, "KSampler: with adapter")
    sampling.group("Same seed twice", GROUP_PURPLE)

    result = Column(g, sampling.next, 660)
    base_picture = result.add("VAEDecode", "Decode base", samples=base[0], vae=checkpoint["VAE"])
    picture = result.add("VAEDecode", "Decode", samples=adapted[0], vae=checkpoint["VAE"])
    stitch = result.add(
        "ImageStitch", "Base on the left, adapted on the right",
        image1=base_picture[0], image2=picture[0], direction="right",
    )  # fmt: skip
    save = result.add("SaveImage", body=500, images=stitch[0], filename_prefix="soda/base_and_adapted")
    result.group("Result", GROUP_GREEN)
    g.app_mode(
        [
            (checkpoint, "ckpt_name"), (loader, "adapter_name"), (loader, "strength_model"), (loader, "mode"),
            (prompt, "string"),
        ],
        [save],
    )  # fmt: skip
    _notes(g, notes.LOAD)
    return g.as_json()


def save_merged_checkpoint(object_info: dict[str, Any]) -> dict[str, Any]:
    """An adapter baked into its base model by the host's own node, and a picture to know it by."""
    g = Graph("save_merged_checkpoint", object_info)
    column = Column(g, 0, 340)
    checkpoint = _checkpoint(column)
    loader = _adapter(column, "subject", None, model=checkpoint["MODEL"], clip=checkpoint["CLIP"])
    column.group("Adapter", GROUP_PURPLE)
    column.add(
        "CheckpointSave", colour=BLUE, model=loader["MODEL"], clip=loader["CLIP"], vae=checkpoint["VAE"],
        filename_prefix="checkpoints/soda_merged",
    )  # fmt: skip
    column.group("Both as one", GROUP_PURPLE)

    sampling = Column(g, column.next, 340)
    prompt = _encode(sampling, loader["CLIP"], "a sks flower on a sunset background", "Prompt")
    negative = _encode(sampling, checkpoint["CLIP"], NEGATIVE, "Negative prompt")
    latent = _empty(sampling)
    sampler = _sampler(sampling, loader["MODEL"], prompt, negative, latent)
    sampling.group("A picture to compare with", GROUP_BLUE)

    result = Column(g, sampling.next, 460)
    picture = result.add("VAEDecode", samples=sampler[0], vae=checkpoint["VAE"])
    save = result.add("SaveImage", body=500, images=picture[0], filename_prefix="soda/before_merging")
    result.group("Result", GROUP_GREEN)
    g.app_mode(
        [(checkpoint, "ckpt_name"), (loader, "adapter_name"), (loader, "strength_model"), (prompt, "text")], [save]
    )
    _notes(g, notes.ONE_CHECKPOINT)
    return g.as_json()


def subject_early_style_late(object_info: dict[str, Any]) -> dict[str, Any]:
    """The subject leads while the picture is laid out, the style while it is filled in."""
    g = Graph("subject_early_style_late", object_info)
    column = Column(g, 0, 340)
    checkpoint = _checkpoint(column)
    loaders = [
        _adapter(column, what, title, model=checkpoint["MODEL"], mode="linear")
        for what, title in (("subject", "Subject"), ("style", "Style"))
    ]
    column.group("Two adapters of this base model", GROUP_PURPLE)

    timing = Column(g, column.next, 340)
    scheduled = []
    for loader, (start, end) in zip(loaders, ((1.0, 0.2), (0.2, 1.0)), strict=True):
        keyframes = timing.add(
            "CreateHookKeyframesInterpolated", f"{loader.title}: {start:g} to {end:g}",
            strength_start=start, strength_end=end, interpolation="linear", start_percent=0.0, end_percent=0.8,
            keyframes_count=5,
        )  # fmt: skip
        scheduled.append(
            timing.add(
                "SetHookKeyframes", f"{loader.title} along the steps", hooks=loader["HOOKS"], hook_kf=keyframes[0]
            )
        )
    both = timing.add("CombineHooks2", "Both", hooks_A=scheduled[0][0], hooks_B=scheduled[1][0])
    timing.group("When they count", GROUP_GREY)

    sampling = Column(g, timing.next, 340)
    positive = _encode(sampling, checkpoint["CLIP"], "a sks flower on a red background, in zqx style", "Prompt")
    negative = _encode(sampling, checkpoint["CLIP"], NEGATIVE, "Negative prompt")
    hooked = sampling.add(
        "PairConditioningSetProperties", "Prompts that carry the adapters", positive_NEW=positive[0],
        negative_NEW=negative[0], hooks=both[0], strength=1.0, set_cond_area="default",
    )  # fmt: skip
    latent = _empty(sampling)
    sampler = sampling.add(
        "KSampler", model=checkpoint["MODEL"], positive=hooked["positive"], negative=hooked["negative"],
        latent_image=latent[0], seed=SEED, steps=25, cfg=6.0, sampler_name="euler", scheduler="normal",
    )  # fmt: skip
    decode = sampling.add("VAEDecode", samples=sampler[0], vae=checkpoint["VAE"])
    sampling.group("Sample with the base model", GROUP_BLUE)

    result = Column(g, sampling.next, 560)
    save = result.add("SaveImage", body=680, images=decode[0], filename_prefix="soda/early_and_late")
    result.group("Result", GROUP_GREEN)
    g.app_mode(
        [
            (checkpoint, "ckpt_name"), (loaders[0], "adapter_name"), (loaders[1], "adapter_name"), (positive, "text"),
        ],
        [save],
    )  # fmt: skip
    _notes(g, notes.EARLY_AND_LATE)
    return g.as_json()


def build_all(object_info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> workflow."""
    return {
        "train_subject": train(
            object_info, "train_subject", notes.SUBJECT, "sks ", "sks flower", "a sks flower on a striped background"
        ),
        "train_style": train(
            object_info, "train_style", notes.STYLE, ", in zqx style", "in zqx style",
            "a house on a green background, in zqx style",
        ),
        "merge_subject_and_style": merge_subject_and_style(object_info),
        "load_and_sample": load_and_sample(object_info),
        "save_merged_checkpoint": save_merged_checkpoint(object_info),
        "subject_early_style_late": subject_early_style_late(object_info),
    }  # fmt: skip


def write(path: Path, workflow: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {len(workflow['nodes'])} nodes")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the example workflows and blueprints.")
    parser.add_argument("--object-info", type=Path, help="a saved /object_info, instead of starting ComfyUI")
    args = parser.parse_args()
    object_info = read_object_info(args.object_info)
    for name, workflow in build_all(object_info).items():
        write(workflow_file(name), workflow)
    for title, blueprint in blueprints.build_all(object_info).items():
        write(ROOT / "subgraphs" / f"{title}.json", blueprint)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""The shipped workflows with the demo's settings instead of those for real models."""

from __future__ import annotations

from typing import Any

from demo.build_workflows import NEGATIVE
from demo.settings import MERGE, SAMPLE
from testbed.checkpoints import BASE_NAME
from testbed.recipes import RECIPES
from testbed.world.render import SIDE

Prompt = dict[str, Any]  #: a workflow as the host runs it


def demo_settings(name: str, steps: int | None = None, sample_steps: int | None = None) -> dict[str, dict[str, Any]]:
    """By node: a shipped workflow's settings for the demo's small model.

    Args:
        name: of the workflow.
        steps, sample_steps: instead of the demo's own.
    """
    size = {"width": SIDE, "height": SIDE}
    settings: dict[str, dict[str, Any]] = {
        "CheckpointLoaderSimple": {"ckpt_name": BASE_NAME},
        "ImageScale": size,
        "EmptyLatentImage": size,  # the sampler gives it the model's number of channels
        "SODAMerge": dict(MERGE),
        "KSampler": SAMPLE | ({} if sample_steps is None else {"steps": sample_steps}),
    }
    if name.startswith("train_"):
        settings["SODATrain"] = {"preview_every": 0, **RECIPES[name.removeprefix("train_")].widgets(steps)}
    return settings


def for_demo(prompt: Prompt, name: str, steps: int | None = None, sample_steps: int | None = None) -> Prompt:
    """Give a shipped workflow the demo's settings; see :func:`demo_settings`."""
    for kind, values in demo_settings(name, steps, sample_steps).items():
        set_inputs(prompt, kind, **values)
    for entry in prompt.values():
        if entry["inputs"].get("text") == NEGATIVE:  # words that the small model never learnt
            entry["inputs"]["text"] = ""
    return prompt


def set_inputs(prompt: Prompt, kind: str, **values: Any) -> None:
    """Set widgets of every node of a kind."""
    for entry in prompt.values():
        if entry["class_type"] == kind:
            entry["inputs"].update(values)


def ask(prompt: Prompt, text: str) -> None:
    """Set the positive prompt: the negative one is empty here."""
    for entry in prompt.values():
        if entry["class_type"] == "CLIPTextEncode" and entry["inputs"]["text"]:
            entry["inputs"]["text"] = text


def node(prompt: Prompt, kind: str) -> str:
    """Id of the one node of a kind."""
    (key,) = [key for key, entry in prompt.items() if entry["class_type"] == kind]
    return key


def with_loras(prompt: Prompt, strengths: dict[str, float]) -> Prompt:
    """A sampling workflow with a chain of the host's LoRA loaders in place of ours; strengths by file."""
    loader = node(prompt, "SODALoadAdapter")
    model, clip = (prompt[loader]["inputs"][name] for name in ("model", "clip"))
    del prompt[loader]
    for i, (name, strength) in enumerate(strengths.items()):
        inputs = {"model": model, "lora_name": name, "strength_model": strength}
        prompt[f"lora{i}"] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
        model = [f"lora{i}", 0]
    instead = {0: model, 1: clip}
    for entry in prompt.values():
        for key, value in entry["inputs"].items():
            if isinstance(value, list) and value[0] == loader:
                entry["inputs"][key] = instead[value[1]]
    return prompt

# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo: trains a subject and a style, merges them, samples with each, and shows what came out.

Runs the workflows in ``workflows/`` as a user would, in a real ComfyUI without a window, with settings lowered to a
small base model. Writes ``demo-output/index.html`` (one file, pictures inside) and ``demo-output/sheet.png``.

    COMFYUI_PATH=... python -m demo.run [--steps 100] [--quick] [--out demo-output]
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from demo.build_workflows import NEGATIVE, STYLE_FOLDER, SUBJECT_FOLDER, workflow_file
from demo.lora import train_lora
from demo.page import TITLES, Samples, Training, write_page, write_sheet, write_thumbnails
from testbed.bed import TestBed
from testbed.checkpoints import BASE_NAME
from testbed.demo_base import checkpoint
from testbed.machine import core_count, processor
from testbed.paths import ROOT, cache_root
from testbed.server import Server
from testbed.world.render import SIDE
from testbed.world.tasks import STYLE, SUBJECT, Task

#: what is asked for, and the seed of the noise
PROMPTS = {
    "a sks flower on a red background, in zqx style": 5,
    "a sks flower on a striped background": 21,
    "a sks flower on a sunset background, pixel art": 42,
    "a house on a red background, in zqx style": 11,
}
#: for a model a twentieth of the usual size and a fifth of the usual steps; see "How it is set" in demo/README.md
TRAIN = {"layers": "all linear + conv", "loss": "mse"}
OWN = {
    "subject": {"factor_preset": "large", "schedule": "cosine"},
    "style": {"factor_preset": "auto", "schedule": "constant"},
}
RATES = {"subject": 3e-3, "style": 4e-3}
LORA_RATES = {"subject": 1e-3, "style": 2e-3}
MERGE = {"subject_strength": 1.0, "style_strength": 0.8}
#: as a host started by hand: threads wait awake for a moment, where tests on shared machines let them sleep
THREADS = {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "300000"}
SAMPLE = {"steps": 20, "cfg": 3.0}


@dataclass
class Demo:
    """One run: the server, what was asked for, and how long things took."""

    server: Server
    steps: int
    sample_steps: int
    timings: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        say(what)
        started = time.monotonic()
        yield
        self.timings.append((what, time.monotonic() - started))
        say(f"  {self.timings[-1][1]:.0f} s")

    def prompt(self, name: str) -> dict[str, Any]:
        """A shipped workflow, ready to queue with the demo's settings."""
        workflow = json.loads(workflow_file(name).read_text(encoding="utf-8"))
        return for_demo(self.server.convert(workflow), self.steps, self.sample_steps)

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        self.log = _LogLines(self.server)
        entry = self.server.queue(prompt, lambda *_: self.log.show())
        self.log.show()
        return entry

    def train(self, what: str, folder: str) -> Training:
        """With the shipped workflow, as a user would."""
        prompt = self.prompt(f"train_{what}")
        set_inputs(prompt, "SODATrain", rotation_lr=RATES[what], shift_lr=RATES[what], **OWN[what])
        drawn, inspected = node(prompt, "PreviewImage"), node(prompt, "SODAInspectAdapter")
        prompt["portrait"] = {"class_type": "PreviewImage", "inputs": {"images": [inspected, 0]}}
        before = set(self.server.adapters.glob("*.safetensors"))
        with self.timed(f"train the {what}"):
            entry = self.run(prompt)
        (file,) = set(self.server.adapters.glob("*.safetensors")) - before
        return Training(
            what=what,
            pictures=training_pictures(self.server.base / "input" / folder),
            curve=self.server.images(entry, drawn)[0],
            portrait=self.server.images(entry, "portrait")[0],
            file=file.name,
            kilobytes=file.stat().st_size / 1e3,
            settings=prompt[node(prompt, "SODATrain")]["inputs"],
            seconds=self.timings[-1][1],
        )

    def merge(self, trainings: list[Training]) -> tuple[str, str]:
        """Name of the merged adapter's file, and the report."""
        prompt = self.prompt("merge_subject_and_style")
        loaders = [key for key, value in prompt.items() if value["class_type"] == "SODALoadAdapter"]
        merge = prompt[node(prompt, "SODAMerge")]["inputs"]
        by_input = {merge["subject"][0]: trainings[0], merge["style"][0]: trainings[1]}
        for key in loaders:
            prompt[key]["inputs"]["adapter_name"] = by_input[key].file
        before = set(self.server.adapters.glob("*.safetensors"))
        with self.timed("merge them"):
            entry = self.run(prompt)
        (file,) = set(self.server.adapters.glob("*.safetensors")) - before
        return file.name, entry["outputs"][node(prompt, "PreviewAny")]["text"][0]

    def train_lora(self, bed: TestBed, task: Task) -> str:
        """The same pictures, layers, batch, steps and loss with LoRA; name of the file."""
        file = self.server.base / f"lora_{task.kind}.safetensors"
        with self.timed(f"train a LoRA of the {task.kind}, for comparison"):
            settings = {**TRAIN, **OWN[task.kind], "steps": self.steps, "seed": 0}
            train_lora(bed, task, file, LORA_RATES[task.kind], **settings)
        self.server.add_model("loras", file)
        return file.name

    def samples(self, prompts: dict[str, int], adapters: dict[str, str], loras: dict[str, float]) -> Samples:
        """One text and one noise for all columns, so that only the weights differ."""
        pictures: Samples = {}
        with self.timed(f"sample {len(prompts) * len(TITLES)} pictures"):
            for text, seed in prompts.items():
                row = pictures.setdefault(text, {})
                for column, file in adapters.items():
                    prompt = self.sample_prompt(text, seed)
                    set_inputs(prompt, "SODALoadAdapter", adapter_name=file)
                    both = self.server.images(self.run(prompt))[-1]
                    row.setdefault("base", both.crop((0, 0, SIDE, SIDE)))
                    row[column] = both.crop((SIDE, 0, 2 * SIDE, SIDE))
                prompt = with_loras(self.sample_prompt(text, seed), loras)
                row["loras"] = self.server.images(self.run(prompt))[-1].crop((SIDE, 0, 2 * SIDE, SIDE))
        return pictures

    def scheduled(self, trainings: list[Training]) -> Image.Image:
        """The subject early and the style late: what the shipped workflow of that name gives."""
        prompt = self.prompt("subject_early_style_late")
        loaders = [key for key, value in prompt.items() if value["class_type"] == "SODALoadAdapter"]
        for key, training in zip(loaders, trainings, strict=True):
            prompt[key]["inputs"]["adapter_name"] = training.file
        set_inputs(prompt, "KSampler", seed=next(iter(PROMPTS.values())))
        with self.timed("sample with both, one early and one late"):
            return self.server.images(self.run(prompt))[-1]

    def sample_prompt(self, text: str, seed: int) -> dict[str, Any]:
        prompt = self.prompt("load_and_sample")
        # not the adapter's own trigger phrase: one text for all, which also lets the host reuse the base's picture
        set_inputs(prompt, "StringReplace", string=text, replace="")
        set_inputs(prompt, "KSampler", seed=seed)
        return prompt


def with_loras(prompt: dict[str, Any], strengths: dict[str, float]) -> dict[str, Any]:
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


def demo_settings(steps: int, sample_steps: int) -> dict[str, dict[str, Any]]:
    """By node: a workflow's settings for the demo's small model instead of those for real ones."""
    return {
        "CheckpointLoaderSimple": {"ckpt_name": BASE_NAME},
        "ImageScale": {"width": SIDE, "height": SIDE},
        "EmptyLatentImage": {"width": SIDE, "height": SIDE},
        "SODATrain": {"steps": steps, "preview_every": 0, **TRAIN},
        "SODAMerge": MERGE,
        "KSampler": {**SAMPLE, "steps": sample_steps},
    }


def for_demo(prompt: dict[str, Any], steps: int, sample_steps: int) -> dict[str, Any]:
    """Give a workflow the demo's settings."""
    for kind, values in demo_settings(steps, sample_steps).items():
        set_inputs(prompt, kind, **values)
    for entry in prompt.values():
        if entry["inputs"].get("text") == NEGATIVE:  # words that the small model never learnt
            entry["inputs"]["text"] = ""
    return prompt


def set_inputs(prompt: dict[str, Any], kind: str, **values: Any) -> None:
    """Set widgets of every node of a kind."""
    for entry in prompt.values():
        if entry["class_type"] == kind:
            entry["inputs"].update(values)


def node(prompt: dict[str, Any], kind: str) -> str:
    """Id of the one node of a kind."""
    (key,) = [key for key, entry in prompt.items() if entry["class_type"] == kind]
    return key


def kept_adapters(base: Path) -> Path:
    """The folder in the cache with the adapters that the last demo trained on a base: demo_subject.safetensors, …"""
    return cache_root() / "demo-adapters" / base.stem


def keep_adapters(base: Path, folder: Path, adapters: dict[str, str]) -> None:
    """For ``python dev.py serve``.

    Args:
        adapters: what each is, and its name in the folder.
    """
    target = kept_adapters(base)
    target.mkdir(parents=True, exist_ok=True)
    for what, name in adapters.items():
        for file in (folder / name, (folder / name).with_suffix(".png")):
            if file.exists():
                shutil.copyfile(file, target / f"demo_{what}{file.suffix}")


def training_pictures(folder: Path) -> list[tuple[Image.Image, str]]:
    files = sorted(file for file in folder.iterdir() if file.suffix in (".jpg", ".png"))
    return [(Image.open(file).convert("RGB"), file.with_suffix(".txt").read_text("utf-8").strip()) for file in files]


class _LogLines:
    """Shows the pack's own new lines of the host's log: step, loss and speed while it trains."""

    def __init__(self, server: Server) -> None:
        self.server, self.shown = server, len(server.log)

    def show(self) -> None:
        log = self.server.log
        end = log.rfind("\n") + 1
        for line in log[self.shown : end].splitlines():
            if found := re.search(r"SODA: (step|saved|\d+ of|stopped).*", line):
                say("  " + found[0].removeprefix("SODA: "))
        self.shown = max(self.shown, end)


def say(text: str) -> None:
    print(text, flush=True)


def machine(server: Server) -> dict[str, str]:
    system = server.system()["system"]
    devices = ", ".join(d["name"] for d in server.system()["devices"])
    return {
        "device": devices,
        "processor": f"{processor()}, {core_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "Python": system["python_version"].split()[0],
        "PyTorch": system["pytorch_version"],
        "ComfyUI": system["comfyui_version"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a subject and a style, merge them, show what came out.")
    parser.add_argument("--steps", type=int, default=220, help="training steps for each adapter")
    parser.add_argument("--quick", action="store_true", help="only show that it works: 8 steps, one prompt")
    parser.add_argument("--out", type=Path, default=ROOT / "demo-output")
    parser.add_argument("--publish", action="store_true", help="renew docs/sheet.jpg and the workflows' thumbnails")
    args = parser.parse_args()
    steps, sample_steps, prompts = args.steps, int(SAMPLE["steps"]), PROMPTS
    if args.quick:
        steps, sample_steps, prompts = 8, 4, dict([*PROMPTS.items()][:1])

    started = time.monotonic()
    say("base model: from the weights in demo/model")
    base = checkpoint(cache_root())
    say("starting ComfyUI")
    with Server(env=THREADS) as server:
        demo = Demo(server, steps, sample_steps)
        server.add_checkpoint(base, BASE_NAME)
        demo.timings.append(("make the base model (once) and start ComfyUI", time.monotonic() - started))
        trainings = [demo.train("subject", SUBJECT_FOLDER), demo.train("style", STYLE_FOLDER)]
        merged, report = demo.merge(trainings)
        bed = TestBed(base)
        loras = {demo.train_lora(bed, task): MERGE[f"{task.kind}_strength"] for task in (SUBJECT, STYLE)}
        adapters = {"subject": trainings[0].file, "style": trainings[1].file, "merged": merged}
        if not args.quick:
            keep_adapters(base, server.adapters, adapters)
        pictures = demo.samples(prompts, adapters, loras)
        scheduled = demo.scheduled(trainings) if args.publish else None
        demo.timings.append(("all", time.monotonic() - started))

        args.out.mkdir(parents=True, exist_ok=True)
        write_sheet(args.out / "sheet.png", trainings, pictures)
        write_page(args.out / "index.html", trainings, pictures, report, demo.timings, machine(server))
        if scheduled:
            Image.open(args.out / "sheet.png").save(ROOT / "docs" / "sheet.jpg", quality=90)
            write_thumbnails(trainings, pictures, scheduled)
    say(f"done after {demo.timings[-1][1]:.0f} s: {args.out / 'index.html'}")


if __name__ == "__main__":
    main()

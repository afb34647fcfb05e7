# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo: trains a subject and a style, merges them, samples with each, and shows what came out.

Runs the workflows in ``workflows/`` as a user would, in a real ComfyUI without a window, with settings lowered to a
small base model. Writes ``demo-output/index.html`` (one file, pictures inside) and ``demo-output/sheet.png``.

    COMFYUI_PATH=... python demo/run.py [--steps 100] [--quick] [--out demo-output]
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

PACK = Path(__file__).resolve().parent.parent
sys.path.append(str(PACK))

from demo.base_model import BASE_NAME, BASE_PRESET, demo_base  # noqa: E402
from demo.build_workflows import STYLE_FOLDER, SUBJECT_FOLDER  # noqa: E402
from demo.machine import core_count, processor  # noqa: E402
from demo.page import Training, write_page, write_sheet  # noqa: E402
from demo.server import Server  # noqa: E402
from dev import cache_root  # noqa: E402

SIZE = 128  # pixels a side, for training and sampling
SEEDS = (7, 21, 42)
COLUMNS = ("base", "subject", "style", "merged")
SAMPLE_PROMPT = "a sks fox in zqx style"
# A model with random weights needs much larger steps than a real one, and has nothing that dco could keep.
TRAIN = {"rotation_lr": 3e-3, "shift_lr": 5e-3, "loss": "mse"}
# From less than full noise: what a base like this leaves of it would drown every difference.
SAMPLE = {"steps": 12, "cfg": 2.0, "denoise": 0.6}
PICTURES = Path(__file__).parent / "pictures"


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
        workflow = json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        return for_demo(self.server.convert(workflow), self.steps, self.sample_steps)

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        self.log = _LogLines(self.server)
        entry = self.server.queue(prompt, lambda *_: self.log.show())
        self.log.show()
        return entry

    def train(self, what: str, folder: str) -> Training:
        prompt = self.prompt(f"train_{what}")
        before = set(self.server.adapters.iterdir())
        with self.timed(f"train the {what}"):
            entry = self.run(prompt)
        (file,) = set(self.server.adapters.iterdir()) - before
        picture = {
            kind: self.server.images(entry, node(prompt, kind))[0] for kind in ("SODATrain", "SODAInspectAdapter")
        }
        return Training(
            what=what,
            pictures=training_pictures(PICTURES / what),
            curve=picture["SODATrain"],
            portrait=picture["SODAInspectAdapter"],
            file=file.name,
            kilobytes=file.stat().st_size / 1e3,
            settings=prompt[node(prompt, "SODATrain")]["inputs"],
            seconds=self.timings[-1][1],
            loss=(self.log.losses[0], self.log.losses[-1]),
        )

    def merge(self, trainings: list[Training]) -> tuple[str, str]:
        """Name of the merged adapter's file, and the report."""
        prompt = self.prompt("merge_subject_and_style")
        loaders = [key for key, value in prompt.items() if value["class_type"] == "SODALoadAdapter"]
        merge = prompt[node(prompt, "SODAMerge")]["inputs"]
        by_input = {merge["subject"][0]: trainings[0], merge["style"][0]: trainings[1]}
        for key in loaders:
            prompt[key]["inputs"]["adapter_name"] = by_input[key].file
        before = set(self.server.adapters.iterdir())
        with self.timed("merge them"):
            entry = self.run(prompt)
        (file,) = set(self.server.adapters.iterdir()) - before
        return file.name, entry["outputs"][node(prompt, "PreviewAny")]["text"][0]

    def samples(self, adapters: dict[str, str], seeds: tuple[int, ...]) -> dict[int, dict[str, Image.Image]]:
        """Seed -> column -> picture. One prompt text for all, so that only the adapter differs."""
        pictures: dict[int, dict[str, Image.Image]] = {}
        with self.timed(f"sample {len(seeds) * len(COLUMNS)} pictures"):
            for seed in seeds:
                row = pictures.setdefault(seed, {})
                for column, file in adapters.items():
                    prompt = self.prompt("load_and_sample")
                    set_inputs(prompt, "SODALoadAdapter", adapter_name=file)
                    # not the adapter's own trigger phrase: one text for all, which also lets the host reuse the base
                    set_inputs(prompt, "StringReplace", string=SAMPLE_PROMPT, replace="")
                    set_inputs(prompt, "KSampler", seed=seed)
                    both = self.server.images(self.run(prompt))[-1]
                    row.setdefault("base", both.crop((0, 0, SIZE, SIZE)))
                    row[column] = both.crop((SIZE, 0, 2 * SIZE, SIZE))
        return pictures


def for_demo(prompt: dict[str, Any], steps: int, sample_steps: int) -> dict[str, Any]:
    """Lower a workflow's settings from those for real models to those for the demo's small one."""
    set_inputs(prompt, "ImageScale", width=SIZE, height=SIZE)
    set_inputs(prompt, "EmptyLatentImage", width=SIZE, height=SIZE)
    set_inputs(prompt, "SODATrain", steps=steps, **TRAIN)
    set_inputs(prompt, "KSampler", **{**SAMPLE, "steps": sample_steps})
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


def training_pictures(folder: Path) -> list[tuple[Image.Image, str]]:
    files = sorted(folder.glob("*.jpg"))
    return [(Image.open(file).convert("RGB"), file.with_suffix(".txt").read_text("utf-8").strip()) for file in files]


class _LogLines:
    """Shows the pack's own new lines of the host's log: step, loss and speed while it trains."""

    def __init__(self, server: Server) -> None:
        self.server, self.shown = server, len(server.log)
        self.losses: list[float] = []

    def show(self) -> None:
        log = self.server.log
        end = log.rfind("\n") + 1
        for line in log[self.shown : end].splitlines():
            if found := re.search(r"SODA: (step|saved|\d+ of|stopped).*", line):
                say("  " + found[0].removeprefix("SODA: "))
            if found := re.search(r"SODA: step .* loss ([\d.]+)", line):
                self.losses.append(float(found[1]))
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
    parser.add_argument("--steps", type=int, default=100, help="training steps for each adapter")
    parser.add_argument("--quick", action="store_true", help="only show that it works: 8 steps, one seed")
    parser.add_argument("--out", type=Path, default=PACK / "demo-output")
    args = parser.parse_args()
    steps, sample_steps, seeds = (8, 4, SEEDS[:1]) if args.quick else (args.steps, SAMPLE["steps"], SEEDS)

    started = time.monotonic()
    say(f"base model: {BASE_PRESET}, made from a seed")
    base = demo_base(cache_root())
    say("starting ComfyUI")
    with Server() as server:
        demo = Demo(server, steps, int(sample_steps))
        demo.timings.append(("make the base model (once) and start ComfyUI", time.monotonic() - started))
        server.add_checkpoint(base, BASE_NAME)
        server.add_input(PICTURES / "subject", SUBJECT_FOLDER)
        server.add_input(PICTURES / "style", STYLE_FOLDER)
        trainings = [demo.train("subject", SUBJECT_FOLDER), demo.train("style", STYLE_FOLDER)]
        merged, report = demo.merge(trainings)
        adapters = {"subject": trainings[0].file, "style": trainings[1].file, "merged": merged}
        pictures = demo.samples(adapters, seeds)
        demo.timings.append(("all", time.monotonic() - started))

        args.out.mkdir(parents=True, exist_ok=True)
        write_sheet(args.out / "sheet.png", pictures, SAMPLE_PROMPT)
        write_page(
            args.out / "index.html",
            trainings,
            pictures,
            SAMPLE_PROMPT,
            report,
            demo.timings,
            machine(server),
            BASE_PRESET,
        )
    say(f"done after {demo.timings[-1][1]:.0f} s: {args.out / 'index.html'}")


if __name__ == "__main__":
    main()

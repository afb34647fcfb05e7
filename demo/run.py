# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo: trains subjects and styles, merges each pair, samples with each, and shows what came out.

Runs the workflows in ``workflows/`` as a user would, in a real ComfyUI without a window, with settings lowered to a
small base model. Writes ``demo-output/index.html`` (one file, pictures inside) and ``demo-output/sheet.png``.

    COMFYUI_PATH=... python -m demo.run [--all] [--lora] [--publish] [--quick] [--steps 200] [--out demo-output]
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from demo.build_workflows import workflow_file
from demo.lora import train_lora
from demo.page import write_page
from demo.prompts import Prompt, ask, for_demo, node, set_inputs, with_loras
from demo.results import BASE, SUBJECT, Results, Row, Training
from demo.settings import ANOTHER_CLASS, MERGE, SCENES, STYLE_TASKS, STYLE_WORDS, SUBJECT_TASKS
from demo.sheet import write_sheet, write_thumbnails
from testbed.bed import TestBed
from testbed.checkpoints import BASE_NAME
from testbed.demo_base import checkpoint
from testbed.machine import core_count, processor
from testbed.paths import ROOT, cache_root
from testbed.recipes import RECIPES
from testbed.server import Server
from testbed.world.render import SIDE
from testbed.world.tasks import Task

#: as a host started by hand: threads wait awake for a moment, where tests on shared machines let them sleep
THREADS = {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "300000"}

Cell = tuple[Task | None, str]  #: a subject, or none in the row of styles alone, and a column
T = TypeVar("T")


class Demo:
    """One run: the server, and what came out so far.

    Args:
        steps, sample_steps: instead of the demo's own.
    """

    def __init__(self, server: Server, steps: int | None = None, sample_steps: int | None = None) -> None:
        self.server, self.steps, self.sample_steps = server, steps, sample_steps
        self.results = Results(machine=machine(server))

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        say(what)
        started = time.monotonic()
        yield
        self.results.timings.append((what, time.monotonic() - started))
        say(f"  {self.results.timings[-1][1]:.0f} s")

    def prompt(self, name: str) -> Prompt:
        """A shipped workflow, ready to queue with the demo's settings."""
        workflow = json.loads(workflow_file(name).read_text(encoding="utf-8"))
        return for_demo(self.server.convert(workflow), name, self.steps, self.sample_steps)

    def run(self, prompt: Prompt) -> dict[str, Any]:
        log = _LogLines(self.server)
        entry = self.server.queue(prompt, lambda *_: log.show())
        log.show()
        return entry

    def run_for_adapter(self, prompt: Prompt) -> tuple[dict[str, Any], Path]:
        """Also the adapter that it saves."""
        before = set(self.server.adapters.glob("*.safetensors"))
        entry = self.run(prompt)
        (file,) = set(self.server.adapters.glob("*.safetensors")) - before
        return entry, file

    def train(self, task: Task) -> Training:
        """With the shipped workflow, as a user would."""
        folder = self.server.base / "input" / f"demo_{_slug(task)}"
        task.write(folder, SIDE)
        prompt = self.prompt(f"train_{task.kind}")
        set_inputs(prompt, "LoadImageTextDataSetFromFolder", folder=folder.name)
        set_inputs(prompt, "SODATrain", filename_prefix=_slug(task), trigger_phrase=trigger(task))
        del prompt[node(prompt, "SaveImage")]  # it is sampled with below
        drawn, inspected = node(prompt, "PreviewImage"), node(prompt, "SODAInspectAdapter")
        prompt["portrait"] = {"class_type": "PreviewImage", "inputs": {"images": [inspected, 0]}}
        with self.timed(f"train the {task.kind}: {task.name}"):
            entry, file = self.run_for_adapter(prompt)
        training = Training(
            task=task,
            pictures=training_pictures(folder),
            curve=self.server.images(entry, drawn)[0],
            portrait=self.server.images(entry, "portrait")[0],
            file=file.name,
            kilobytes=file.stat().st_size / 1e3,
            settings=prompt[node(prompt, "SODATrain")]["inputs"],
            seconds=self.results.timings[-1][1],
        )
        (self.results.subjects if task.kind == "subject" else self.results.styles).append(training)
        return training

    def merge(self, subject: Training, style: Training) -> str:
        """With the shipped workflow; name of the merged adapter's file."""
        prompt = self.prompt("merge_subject_and_style")
        merge = prompt[node(prompt, "SODAMerge")]["inputs"]
        for source, training in ((merge["subject"], subject), (merge["style"], style)):
            prompt[source[0]]["inputs"]["adapter_name"] = training.file
        set_inputs(prompt, "SODASaveAdapter", filename_prefix=f"{_slug(subject.task)}_{_slug(style.task)}")
        ask(prompt, SCENES[subject.task.name].text + STYLE_WORDS)
        pair = f"{subject.task.name} + {style.task.name}"
        with self.timed(f"merge {pair}"):
            entry, file = self.run_for_adapter(prompt)
        self.results.reports[pair] = entry["outputs"][node(prompt, "PreviewAny")]["text"][0]
        return file.name

    def train_lora(self, bed: TestBed, task: Task) -> str:
        """Of the same pictures; name of the file."""
        file = self.server.base / f"lora_{_slug(task)}.safetensors"
        with self.timed(f"train a LoRA, for comparison: {task.name}"):
            train_lora(bed, task, file, self.steps)
        self.server.add_model("loras", file)
        return file.name

    def paint(self, what: str, cells: Mapping[Cell, T], put: Callable[[Prompt, T], Prompt]) -> list[Row]:
        """The grid, row by row, with the workflow *Use an adapter*: one noise for a row.

        Args:
            what: it is painted with.
            cells: what is in the model where a subject, or none, meets a column.
            put: puts that into the workflow.
        """
        rows: dict[Task | None, Row] = {}
        with self.timed(f"sample with {what}"):
            for (subject, column), weights in cells.items():
                scene = SCENES[subject.name] if subject else ANOTHER_CLASS
                prompt = self.prompt("load_and_sample")
                # not the adapter's own trigger phrase: the base gets the same text
                text = scene.text + ("" if column == SUBJECT else STYLE_WORDS)
                set_inputs(prompt, "StringReplace", string=text, replace="")
                set_inputs(prompt, "KSampler", seed=scene.seed)
                row = rows.setdefault(subject, Row(scene, subject, {}))
                base, row.cells[column] = self._two(put(prompt, weights))
                row.cells.setdefault(BASE, base)
        return list(rows.values())

    def scheduled(self) -> Image.Image:
        """The first subject early and the first style late: what the shipped workflow of that name gives."""
        prompt = self.prompt("subject_early_style_late")
        loaders = [key for key, value in prompt.items() if value["class_type"] == "SODALoadAdapter"]
        both = self.results.subjects[0], self.results.styles[0]
        for key, training in zip(loaders, both, strict=True):
            prompt[key]["inputs"]["adapter_name"] = training.file
        scene = SCENES[both[0].task.name]
        ask(prompt, scene.text + STYLE_WORDS)
        set_inputs(prompt, "KSampler", seed=scene.seed)
        with self.timed("sample with both, one early and one late"):
            return self.server.images(self.run(prompt))[-1]

    def _two(self, prompt: Prompt) -> tuple[Image.Image, Image.Image]:
        """With the base and with the adapter, which the workflow shows side by side."""
        both = self.server.images(self.run(prompt))[-1]
        return both.crop((0, 0, SIDE, SIDE)), both.crop((SIDE, 0, 2 * SIDE, SIDE))


def cells_of(subjects: Sequence[Task], styles: Sequence[Task]) -> Iterator[tuple[Cell, list[Task]]]:
    """Every place of the grid but the base's, with what is in the model there."""
    for subject in (*subjects, None):
        if subject:
            yield (subject, SUBJECT), [subject]
        for style in styles:
            yield (subject, style.name), [subject, style] if subject else [style]


def put_adapter(prompt: Prompt, file: str) -> Prompt:
    set_inputs(prompt, "SODALoadAdapter", adapter_name=file)
    return prompt


def trigger(task: Task) -> str:
    """What stands for it in a prompt."""
    return f"sks {task.class_word}" if task.kind == "subject" else STYLE_WORDS.removeprefix(", ")


def _slug(task: Task) -> str:
    return task.name.replace(" ", "_")


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


def kept_names(files: Mapping[tuple[Task, ...], str]) -> dict[str, str]:
    """What each adapter is kept as: those of the first pair as what they are, the others by their names.

    Args:
        files: by what was learnt, one or two tasks.
    """
    subject, style = (next(t for (t, *more) in files if t.kind == kind and not more) for kind in ("subject", "style"))
    first = {(subject,): "subject", (style,): "style", (subject, style): "merged"}
    return {first.get(tasks, "_".join(_slug(task) for task in tasks)): file for tasks, file in files.items()}


def lora_strengths(tasks: Sequence[Task], files: Mapping[Task, str]) -> dict[str, float]:
    """Those of the merge where there are two; by file."""
    return {files[task]: MERGE[f"{task.kind}_strength"] if len(tasks) > 1 else 1.0 for task in tasks}


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
    steps = ", ".join(f"{recipe.settings['steps']} for a {kind}" for kind, recipe in RECIPES.items())
    parser = argparse.ArgumentParser(description="Train subjects and styles, merge each pair, show what came out.")
    parser.add_argument("--all", action="store_true", help="two subjects and two styles instead of one each")
    parser.add_argument("--lora", action="store_true", help="also LoRAs of the same pictures, to compare with")
    parser.add_argument("--steps", type=int, help=f"training steps for each adapter (default: {steps})")
    parser.add_argument("--quick", action="store_true", help="only show that it works: 8 steps")
    parser.add_argument("--out", type=Path, default=ROOT / "demo-output")
    publish = "--all, and renew docs/sheet.jpg and the workflows' thumbnails"
    parser.add_argument("--publish", action="store_true", help=publish)
    args = parser.parse_args()
    count = None if args.all or args.publish else 1

    started = time.monotonic()
    say("base model: from the weights in demo/model")
    base = checkpoint(cache_root())
    say("starting ComfyUI")
    with Server(env=THREADS) as server:
        demo = Demo(server, 8 if args.quick else args.steps, 4 if args.quick else None)
        server.add_checkpoint(base, BASE_NAME)
        results = demo.results
        results.timings.append(("make the base model (once) and start ComfyUI", time.monotonic() - started))
        subjects, styles = (tasks[:count] for tasks in (SUBJECT_TASKS, STYLE_TASKS))
        files = {(task,): demo.train(task).file for task in (*subjects, *styles)}
        for subject, style in itertools.product(results.subjects, results.styles):
            files[subject.task, style.task] = demo.merge(subject, style)
        if not args.quick:
            keep_adapters(base, server.adapters, kept_names(files))
        places = dict(cells_of(subjects, styles))
        adapters = {cell: files[tuple(tasks)] for cell, tasks in places.items()}
        results.rows = demo.paint("every adapter", adapters, put_adapter)
        if args.lora:
            bed = TestBed(base)
            loras = {task: demo.train_lora(bed, task) for task in (*subjects, *styles)}
            strengths = {cell: lora_strengths(tasks, loras) for cell, tasks in places.items()}
            results.lora_rows = demo.paint("every LoRA", strengths, with_loras)
        scheduled = demo.scheduled() if args.publish else None
        results.timings.append(("all", time.monotonic() - started))

        args.out.mkdir(parents=True, exist_ok=True)
        write_sheet(args.out / "sheet.png", results)
        write_page(args.out / "index.html", results)
        if scheduled:
            Image.open(args.out / "sheet.png").save(ROOT / "docs" / "sheet.jpg", quality=90)
            write_thumbnails(results, scheduled)
    say(f"done after {results.timings[-1][1]:.0f} s: {args.out / 'index.html'}")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo: trains subjects and styles, merges each pair, samples with each, and shows what came out.

Runs the workflows in ``workflows/`` as a user would, in a real ComfyUI without a window, with settings lowered to a
small base model. Writes ``demo-output/index.html`` (one file, pictures inside) and ``demo-output/sheet.png``.

    COMFYUI_PATH=... python -m demo.run [--all] [--lora] [--publish] [--quick] [--steps 200] [--out demo-output]
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from demo.build_workflows import workflow_file
from demo.lora import train_lora
from demo.page import write_page
from demo.prompts import Prompt, for_demo, node, set_inputs, with_loras
from demo.results import BASE, SUBJECT, Results, Row, Training
from demo.settings import ANOTHER_CLASS, MERGE, RECIPES, SCENES, STYLE_WORDS, STYLES, SUBJECTS, Scene
from demo.sheet import write_sheet, write_thumbnails
from testbed.bed import TestBed
from testbed.checkpoints import BASE_NAME
from testbed.demo_base import checkpoint
from testbed.machine import core_count, processor
from testbed.paths import ROOT, cache_root
from testbed.server import Server
from testbed.world.render import SIDE
from testbed.world.tasks import Task

#: as a host started by hand: threads wait awake for a moment, where tests on shared machines let them sleep
THREADS = {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "300000"}


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
        pair = f"{subject.task.name} + {style.task.name}"
        with self.timed(f"merge {pair}"):
            entry, file = self.run_for_adapter(prompt)
        self.results.reports[pair] = entry["outputs"][node(prompt, "PreviewAny")]["text"][0]
        return file.name

    def paint(self, merged: dict[tuple[Task, Task], str]) -> None:
        """Every cell of the grid. One noise for a row, and one text for the base and the first adapter in it.

        Args:
            merged: file by subject and style.
        """
        styles = {style.task.name: style for style in self.results.styles}
        with self.timed("sample with all of them"):
            for subject in self.results.subjects:
                files = {SUBJECT: subject.file} | {n: merged[subject.task, s.task] for n, s in styles.items()}
                self.results.rows.append(self._row(SCENES[subject.task.name], subject.task, files))
            self.results.rows.append(self._row(ANOTHER_CLASS, None, {n: s.file for n, s in styles.items()}))

    def _row(self, scene: Scene, subject: Task | None, files: dict[str, str]) -> Row:
        cells: dict[str, Image.Image] = {}
        for column, file in files.items():
            prompt = self._sample_prompt(scene, column)
            set_inputs(prompt, "SODALoadAdapter", adapter_name=file)
            base, adapted = self._two(prompt)
            cells.setdefault(BASE, base)
            cells[column] = adapted
        return Row(scene, subject, cells)

    def compare_with_loras(self, bed: TestBed) -> None:
        """The same grid with LoRAs, a subject's and a style's added up with the strengths of the merge."""
        trained = {}
        for training in (*self.results.subjects, *self.results.styles):
            file = self.server.base / f"lora_{_slug(training.task)}.safetensors"
            with self.timed(f"train a LoRA, for comparison: {training.task.name}"):
                train_lora(bed, training.task, file, self.steps)
            self.server.add_model("loras", file)
            trained[training.task.name] = file.name
        with self.timed("sample with the LoRAs"):
            for row in self.results.rows:
                cells: dict[str, Image.Image] = {}
                for column in row.cells:
                    strengths = {}
                    if row.subject and column != BASE:
                        strengths[trained[row.subject.name]] = 1.0 if column == SUBJECT else MERGE["subject_strength"]
                    if column in trained:
                        strengths[trained[column]] = MERGE["style_strength"] if row.subject else 1.0
                    if strengths:
                        prompt = with_loras(self._sample_prompt(row.scene, column), strengths)
                        cells[column] = self._two(prompt)[1]
                self.results.lora_rows.append(Row(row.scene, row.subject, cells))

    def scheduled(self) -> Image.Image:
        """The first subject early and the first style late: what the shipped workflow of that name gives."""
        prompt = self.prompt("subject_early_style_late")
        loaders = [key for key, value in prompt.items() if value["class_type"] == "SODALoadAdapter"]
        both = self.results.subjects[0], self.results.styles[0]
        for key, training in zip(loaders, both, strict=True):
            prompt[key]["inputs"]["adapter_name"] = training.file
        scene = SCENES[both[0].task.name]
        set_inputs(prompt, "KSampler", seed=scene.seed)
        with self.timed("sample with both, one early and one late"):
            return self.server.images(self.run(prompt))[-1]

    def _sample_prompt(self, scene: Scene, column: str) -> Prompt:
        prompt = self.prompt("load_and_sample")
        words = "" if column == SUBJECT else STYLE_WORDS
        # not the adapter's own trigger phrase: the base gets the same text
        set_inputs(prompt, "StringReplace", string=scene.text + words, replace="")
        set_inputs(prompt, "KSampler", seed=scene.seed)
        return prompt

    def _two(self, prompt: Prompt) -> tuple[Image.Image, Image.Image]:
        """What the workflow *Use an adapter* paints: with the base and with the adapter."""
        both = self.server.images(self.run(prompt))[-1]
        return both.crop((0, 0, SIDE, SIDE)), both.crop((SIDE, 0, 2 * SIDE, SIDE))


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


def kept_names(
    subjects: Sequence[Training], styles: Sequence[Training], merged: dict[tuple[Task, Task], str]
) -> dict[str, str]:
    """What each adapter is kept as: those of the first pair as what they are, the others by their names."""
    names = {"subject": subjects[0].file, "style": styles[0].file, "merged": next(iter(merged.values()))}
    names |= {_slug(training.task): training.file for training in (*subjects[1:], *styles[1:])}
    return names | {f"{_slug(s)}_{_slug(t)}": file for (s, t), file in [*merged.items()][1:]}


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
    publish = "--all --lora, and renew docs/sheet.jpg and the workflows' thumbnails"
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
        subjects, styles = ([demo.train(task) for task in tasks[:count]] for tasks in (SUBJECTS, STYLES))
        merged = {(s.task, t.task): demo.merge(s, t) for s in subjects for t in styles}
        if not args.quick:
            keep_adapters(base, server.adapters, kept_names(subjects, styles, merged))
        demo.paint(merged)
        if args.lora or args.publish:
            demo.compare_with_loras(TestBed(base))
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

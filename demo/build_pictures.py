# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws the pictures that the example workflows train on, ``workflows/pictures``: the demo's subject and style.

python -m demo.build_pictures
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from demo import notes
from testbed.paths import ROOT
from testbed.world.render import render
from testbed.world.tasks import STYLE, SUBJECT, Task

PICTURES = ROOT / "workflows" / "pictures"
FOLDERS: dict[str, Task] = {notes.SUBJECT.folder: SUBJECT, notes.STYLE.folder: STYLE}
SIDE, QUALITY = 512, 88


def write(folder: Path, task: Task) -> None:
    """The task's pictures as JPEG files, with their captions in text files beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = task.scenes()
    for i, (scene, text) in enumerate(zip(scenes, task.captions(scenes)[0], strict=True), 1):
        Image.fromarray(render(scene, SIDE)).save(folder / f"{i}.jpg", quality=QUALITY, optimize=True)
        (folder / f"{i}.txt").write_text(text + "\n", encoding="utf-8", newline="\n")


def main() -> None:
    for name, task in FOLDERS.items():
        write(PICTURES / name, task)
        print(f"{name}: {sum(f.stat().st_size for f in (PICTURES / name).iterdir()) / 1000:.0f} kB")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""A contact sheet of the world: a row for each style, then the held-out subjects and styles.

python -m testbed.world sheet.png [--side 192]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image

from testbed.world.render import SIDE, render
from testbed.world.scene import Scene, draw_scene
from testbed.world.vocabulary import HELD_OUT_STYLES, STYLES, SUBJECTS

COLUMNS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a contact sheet of the demo's world.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random = np.random.default_rng(args.seed)
    rows: list[list[Scene]] = [
        [draw_scene(random, styles=[style]) for _ in range(COLUMNS)] for style in (*STYLES, *HELD_OUT_STYLES)
    ]
    subjects = {name: [name] for name in SUBJECTS}
    rows.append([draw_scene(random, {name: subjects[name]}, ["flat"]) for name in (*SUBJECTS, *SUBJECTS)][:COLUMNS])
    started = time.perf_counter()
    pictures = [np.concatenate([render(scene, args.side) for scene in row], 1) for row in rows]
    seconds = time.perf_counter() - started
    Image.fromarray(np.concatenate(pictures)).save(args.out)
    print(f"{args.out}: {sum(map(len, rows))} pictures, {sum(map(len, rows)) / seconds:.0f} a second on one core")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""Trains the demo's base model, part by part; goes on where it was stopped, at most a few minutes back.

    python dev.py pretrain                      the parts in order, each to the end of its steps
    python dev.py pretrain model [--steps N]    one part; more steps than it had before go on from where its learning
                                                rate began to fall
    python dev.py pretrain export               the weights as they are shipped, and a checkpoint to try them
    python dev.py pretrain progress             how far each part is

A part begins with the weights that are shipped, and those of the others are used, until this folder has its own. Only
the model begins anew where the autoencoder is another one.

The autoencoder also learns from emoji outside the world, for which their font must be there (on Debian
``apt-get install fonts-noto-color-emoji``).
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from testbed.paths import cache_root
from testbed.pretrain import autoencoder, classifier, export, model
from testbed.pretrain.loop import STATE, progress

PARTS = {"autoencoder": autoencoder, "classifier": classifier, "model": model}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="dev.py pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=[*PARTS, "export", "progress"])
    parser.add_argument("--work", type=Path, default=cache_root() / "pretrain192", help="where everything is kept")
    parser.add_argument("--steps", type=int, help="of the part, instead of what is usual")
    parser.add_argument("--decay", type=int, help="so many of them, the last ones, with a falling learning rate")
    parser.add_argument("--lr", type=float, help="the learning rate before that")
    parser.add_argument("--batch", type=int, help="samples a step: a GPU takes ten times as many in little more time")
    parser.add_argument("--ranks", type=int, default=1, help="processes that share a batch of the model, one a core")
    parser.add_argument("--threads", type=int, help="on the CPU, 0 = all; usual is 1 but for the model")
    args = parser.parse_args()
    changes = {
        name: value
        for name in ("steps", "decay", "lr", "threads", "batch")
        if (value := getattr(args, name)) is not None
    }
    if changes and args.part not in PARTS:
        parser.error(f"--{next(iter(changes))} is of one part: {', '.join(PARTS)}")
    if args.ranks > 1 and "WORLD_SIZE" not in os.environ:
        together = ("torch.distributed.run", "--standalone", f"--nproc-per-node={args.ranks}", "-m", "testbed.pretrain")
        os.execv(sys.executable, [sys.executable, "-m", *together, *sys.argv[1:]])
    if args.part == "progress":
        for name, part in PARTS.items():
            done = progress(args.work / name / STATE)
            print(f"{name}: {done['step']} of {part.SETTINGS.steps} steps, {done['samples']} samples")
    elif args.part == "export":
        export.export(args.work)
    else:
        for part in [PARTS[args.part]] if args.part else PARTS.values():
            part.train(args.work, replace(part.SETTINGS, **changes))


if __name__ == "__main__":
    main()

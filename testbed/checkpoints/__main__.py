# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a small base checkpoint with random weights: ``python -m testbed.checkpoints --list``."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from testbed.checkpoints.file import DTYPES, write
from testbed.checkpoints.presets import PRESETS, build


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a small base checkpoint with random weights.")
    parser.add_argument("preset", nargs="?", choices=PRESETS)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--list", action="store_true", help="show the presets")
    parser.add_argument("--clip", choices=("full", "sparse", "none"), default="full")
    parser.add_argument("--vae", choices=("hand", "random"), default="hand")
    parser.add_argument("--dtype", choices=DTYPES, default="f16")
    parser.add_argument("--te-dtype", choices=DTYPES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.list:
        for name, (family, model) in PRESETS.items():
            count = sum(math.prod(shape) for shape in model.shapes().values())
            print(f"{name:16} {family:5} {count / 1e6:8.2f} M parameters")
        return
    if args.preset is None or args.out is None:
        parser.error("PRESET and OUT are needed; --list shows the presets")
    started = time.monotonic()
    write(args.out, build(args.preset, args.clip, args.vae, args.seed), args.dtype, args.te_dtype)
    size, seconds = args.out.stat().st_size / 1e6, time.monotonic() - started
    print(f"{args.out}: {args.preset}, {size:.0f} MB, {seconds:.1f} s")


if __name__ == "__main__":
    main()

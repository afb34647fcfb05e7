# SPDX-License-Identifier: GPL-3.0-or-later
"""ComfyUI's own modules, on the CPU or the GPU that is there."""

from __future__ import annotations

import os
import sys

import torch


def find_host() -> None:
    """Make ``import comfy`` work; the host, which is no package, is where COMFYUI_PATH says."""
    place = os.environ.get("COMFYUI_PATH")
    if not place:
        raise SystemExit("set COMFYUI_PATH to a ComfyUI folder (python dev.py setup brings one)")
    if place not in sys.path:
        sys.path.insert(0, place)


def import_host() -> None:
    """Import ComfyUI for work in this process, without a server, and with torch's own attention."""
    find_host()
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    args.use_pytorch_cross_attention = True

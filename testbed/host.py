# SPDX-License-Identifier: GPL-3.0-or-later
"""ComfyUI's own modules, on the CPU or the GPU that is there."""

from __future__ import annotations

import os
import sys

import torch


def import_host() -> None:
    """Make ``import comfy`` work; the host is where COMFYUI_PATH says."""
    place = os.environ.get("COMFYUI_PATH")
    if not place:
        raise SystemExit("set COMFYUI_PATH to a ComfyUI folder (python dev.py setup brings one)")
    if place not in sys.path:
        sys.path.insert(0, place)
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    args.use_pytorch_cross_attention = True

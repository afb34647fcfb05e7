# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between the versions of ComfyUI that the pack runs on. Nothing else in it knows of versions.

A difference is told by what the host has, not by its number: nightlies and forks count too. What an old host lacks is
done here in its place where that gives the same result. What only its front end lacks (a badge, say) is left out: it
passes over what it does not know in a node's description.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Sequence
from typing import Any

import torch

#: The oldest version the tests run on; ``requires-comfyui`` in pyproject.toml says the same.
OLDEST = "0.16.3"


def check() -> None:
    """Say in the log that a host is older than any the pack is tested on: what fails there fails by a name."""
    import comfyui_version

    version = str(comfyui_version.__version__)
    if _numbers(version) < _numbers(OLDEST):
        logging.warning("SODA: needs ComfyUI %s or newer, this is %s; update ComfyUI if a node fails", OLDEST, version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def is_out_of_memory(error: Exception) -> bool:
    """Newer hosts also know what drivers raise; 0.16 has PyTorch's own exception alone."""
    import comfy.model_management as mm

    told = getattr(mm, "is_oom", None)
    return bool(isinstance(error, mm.OOM_EXCEPTION) if told is None else told(error))


def is_cancel(error: BaseException) -> bool:
    """Whether somebody stopped it: up to 0.18 the host's own cancel is an Exception like any other."""
    import comfy.model_management as mm

    return isinstance(error, mm.InterruptProcessingException) or not isinstance(error, Exception)


def join_conds(conds: Sequence[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """Keyword arguments of ``apply_model`` on a device, from the COND objects of a batch.

    Up to 0.18 the host joins them where they are.
    """
    import comfy.samplers

    if "device" in inspect.signature(comfy.samplers.cond_cat).parameters:
        return dict(comfy.samplers.cond_cat(list(conds), device))
    joined = comfy.samplers.cond_cat(list(conds))
    return {name: value.to(device) if hasattr(value, "to") else value for name, value in joined.items()}

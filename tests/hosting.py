# SPDX-License-Identifier: GPL-3.0-or-later
"""A real ComfyUI in this process, and the pack loaded into it the way the host does."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from testbed import checkpoints
from testbed.host import find_host

ROOT = Path(__file__).parents[1]
ALIAS = "/host/custom_nodes/soda"  # the host names a pack's module by its path


def load_pack():
    spec = importlib.util.spec_from_file_location(ALIAS, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[ALIAS] = module
    spec.loader.exec_module(module)


def load_host(base: Path) -> SimpleNamespace:
    """``base`` folder, ``core("host.apply")`` modules of the pack, ``model("sd15-min")``; COMFYUI_PATH is set."""
    for folder in ("models/soda", "models/checkpoints", "input", "output", "temp", "user", "custom_nodes"):
        (base / folder).mkdir(parents=True)
    find_host()
    argv, sys.argv = sys.argv, ["comfy", "--cpu", "--base-directory", str(base)]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.sd
        import utils.install_util  # noqa: F401  (comfy.sd would bring another package called utils in some hosts)

        import nodes  # noqa: F401  (the host's own, before the pack)
    finally:
        sys.argv = argv
    load_pack()

    def core(name: str):
        return importlib.import_module(f"{ALIAS}.soda_core.{name}")

    core("host.folders").register()

    def checkpoint(preset: str, dtype: str = "f16") -> Path:
        path = base / "models" / "checkpoints" / f"{preset}-{dtype}.safetensors"
        if not path.exists():
            checkpoints.write(path, checkpoints.build(preset, clip="none", seed=3), dtype=dtype)
        return path

    def model(preset: str, stored: str = "f16", **options):
        """A fresh MODEL made as a loader node makes it: in inference mode."""
        with torch.inference_mode():
            return comfy.sd.load_checkpoint_guess_config(
                str(checkpoint(preset, stored)), output_vae=False, output_clip=False, model_options=options
            )[0]

    def model_and_clip(preset: str):
        path = base / "models" / "checkpoints" / f"{preset}-clip.safetensors"
        checkpoints.write(path, checkpoints.build(preset, clip="sparse", seed=3))
        with torch.inference_mode():
            return comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False)[:2]

    return SimpleNamespace(base=base, core=core, model=model, model_and_clip=model_and_clip, checkpoint=checkpoint)

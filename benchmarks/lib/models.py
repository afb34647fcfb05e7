# SPDX-License-Identifier: GPL-3.0-or-later
"""Full-size models with random weights in the host, and data to train them on: what costs do not depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.lib.methods import Method
from benchmarks.lib.turns import OnStep
from demo.base_model import PRESETS, build, write
from demo.pretrain.host import import_host
from dev import cache_root

CONTEXT = {"sd15": 768, "sdxl": 2048}


def checkpoint(preset: str) -> Path:
    """A checkpoint with random weights in fp16 in the cache folder, made from a seed if it is not there."""
    path = cache_root() / f"bench-{preset}.safetensors"
    if not path.exists():
        write(path, build(preset, clip="none"))
    return path


def load(preset: str) -> Any:
    """The MODEL, as a loader node gives it."""
    import_host()
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(checkpoint(preset)), output_vae=False, output_clip=False)[0]


def conditioning(preset: str) -> list[Any]:
    pooled = {"pooled_output": torch.zeros(1, 1280)} if PRESETS[preset][0] == "sdxl" else {}
    return [[torch.randn(1, 77, CONTEXT[PRESETS[preset][0]], generator=torch.Generator().manual_seed(1)), pooled]]


def latents(side: int) -> dict[str, Any]:
    return {"samples": torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(2))}


def our_run(patcher: Any, preset: str, side: int, method: Method) -> Callable[[OnStep], None]:
    """Our training loop, with our layers or peft's, for :class:`.turns.Turns`."""

    def run(on_step: OnStep) -> None:
        from benchmarks.lib.training import new_run
        from soda_core.host.training import RunOptions, TrainingData, _host_state
        from soda_core.training.settings import TrainSettings

        settings = TrainSettings(**{"steps": 10_000, "loss": "mse", **(method.settings or {})})
        data = TrainingData(latents=[latents(side)], positive=[conditioning(preset)])
        with _host_state(patcher):
            training = new_run(patcher, data, settings, RunOptions(dtype="fp32"), method=method)
            training._on_step = lambda _: on_step()  # type: ignore[method-assign]
            try:
                training.prepare()
                on_step()
                training.fit()
            finally:
                training.close()

    return run


def core_run(patcher: Any, preset: str, side: int, **options: Any) -> Callable[[OnStep], None]:
    """The host's own training node, for :class:`.turns.Turns`; its first step counts as getting ready."""

    def run(on_step: OnStep) -> None:
        from comfy_extras import nodes_train

        class Bar:
            def __init__(self, *_: Any) -> None:
                pass

            def update(self, _: int) -> None:
                on_step()

        inputs = {i.id: getattr(i, "default", None) for i in nodes_train.TrainLoraNode.define_schema().inputs}
        inputs |= {"steps": 10_000, "existing_lora": "[None]", **options}
        listed = {name: [value] for name, value in inputs.items()}
        listed |= {"model": [patcher], "latents": [latents(side)], "positive": [conditioning(preset)]}
        kept, nodes_train.ProgressBar = nodes_train.ProgressBar, Bar
        try:
            with torch.inference_mode():
                nodes_train.TrainLoraNode.execute(**listed)
        finally:
            nodes_train.ProgressBar = kept

    return run


def near_identity(p: Tensor) -> Tensor:
    """Random rotations by a few degrees, (n, k, k)."""
    A = 0.02 * torch.randn_like(p)
    return torch.linalg.matrix_exp(A - A.mT)


def random_adapter(patcher: Any, shapes: Mapping[str, tuple[int, ...]], settings: Any, seed: int) -> Any:
    """An adapter as training leaves it, base check included."""
    from soda_core.host import base
    from soda_core.host.spectra import store
    from soda_core.training.trainable import TrainableAdapter

    with torch.inference_mode(False), torch.no_grad():
        torch.manual_seed(seed)
        weights = {name: base.pristine_weight(patcher, f"{name}.weight") for name in shapes}
        device, kind = torch.device("cpu"), settings.decomposition
        spectra = {n: store().get(w, kind, device) for n, w in weights.items()} if settings.shifts else {}
        trainable = TrainableAdapter(shapes, settings, spectra)
        for p in trainable.rotations.values():
            p.data = near_identity(p)
        if trainable.shifts is not None:
            trainable.shifts.data = 0.01 * torch.randn_like(trainable.shifts)
        return trainable.to_adapter(weights, {"title": f"random {seed}"})


def lora_file(path: Path, shapes: Mapping[str, tuple[int, ...]], rank: int) -> Path:
    tensors = {}
    for name, (out, width) in shapes.items():
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, rank) * 0.01
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, width) * 0.01
    save_file({name: value.half() for name, value in tensors.items()}, path)
    return path


def with_lora(patcher: Any, path: Path) -> Any:
    """What the host's LoraLoader does."""
    import comfy.sd
    import comfy.utils

    weights = comfy.utils.load_torch_file(str(path), safe_load=True)
    return comfy.sd.load_lora_for_models(patcher, None, weights, 1.0, 0.0)[0]

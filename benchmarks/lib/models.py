# SPDX-License-Identifier: GPL-3.0-or-later
"""Full-size models with random weights in the host, and data to train them on: what costs do not depend on."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.lib.round_robin import OnStep
from soda_core.adapter import SodaAdapter
from soda_core.base_check import SKETCH_SHAPE, Sketches
from soda_core.base_weight import BaseWeight
from soda_core.kronecker import FACTORS, factor_sizes
from soda_core.layer import SodaLayer
from soda_core.training.loop import Progress
from soda_core.training.settings import TrainSettings
from testbed.checkpoints import PRESETS, build, write
from testbed.host import import_host
from testbed.methods import Method, lora_rank_4
from testbed.paths import cache_root

#: our training loop, with a LoRA's layers and with ours
RUNS = {
    "LoRA rank 4, our loop": Method("LoRA", "large", peft=lora_rank_4),
    "rotation": Method("rotation", "large", {"train": "rotation only"}),
    "rotation + QR shift": Method("QR", "large", {"decomposition": "qr"}),
    "rotation + SVD shift": Method("SVD", "large", {"decomposition": "svd"}),
}
#: the host's own training node, at its best on a CPU
CORE_BEST = {"training_dtype": "fp32", "lora_dtype": "fp32", "bypass_mode": True, "gradient_checkpointing": False,
             "rank": 4}  # fmt: skip
#: adapters to load
ADAPTERS = {
    "SVD": TrainSettings(decomposition="svd"),
    "QR": TrainSettings(decomposition="qr"),
    "rotation only": TrainSettings(train="rotation only"),
}
CONTEXT = {"sd15": 768, "sdxl": 2048}


def checkpoint(preset: str) -> Path:
    """A checkpoint with random weights in fp16 in the cache folder, made from a seed if it is not there."""
    path = cache_root() / f"bench-{preset}.safetensors"
    if not path.exists():
        write(path, build(preset, clip="none"))
    return path


def load(preset: str) -> Any:
    """The MODEL, as a loader node gives it; decompositions of it are neither read from nor left in a user's folder."""
    import_host()
    import comfy.sd

    from soda_core.host import spectra

    spectra.store().folder, spectra.store().disk_limit = cache_root() / "bench-none", 0
    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(checkpoint(preset)), output_vae=False, output_clip=False)[0]


def conditioning(preset: str) -> list[Any]:
    pooled = {"pooled_output": torch.zeros(1, 1280)} if PRESETS[preset][0] == "sdxl" else {}
    return [[torch.randn(1, 77, CONTEXT[PRESETS[preset][0]], generator=torch.Generator().manual_seed(1)), pooled]]


def latents(side: int) -> dict[str, Any]:
    return {"samples": torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(2))}


def evaluate(patcher: Any, preset: str, side: int) -> None:
    """The model once, as it stands, as a sampling step does."""
    with torch.inference_mode():
        patcher.model.apply_model(latents(side)["samples"], torch.tensor([0.7]), c_crossattn=conditioning(preset)[0][0])


class OneRun:
    """Our training loop on random data, with our layers or peft's: batch 1, plain loss.

    After :meth:`go`, ``seconds`` is the time of the steps, and for our own layers ``needs`` what training is said to
    need.

    Args:
        watched: whether the node's live view is made of it, as JSON that nobody reads.
        on_step: called when it is ready for the first step, and then after every step.
    """

    def __init__(
        self, patcher: Any, preset: str, side: int, method: Method, steps: int = 10_000, checkpointing: bool = False,
        watched: bool = False, on_step: OnStep = lambda: None,
    ) -> None:  # fmt: skip
        self.patcher, self.method, self.checkpointing, self.watched = patcher, method, checkpointing, watched
        self.settings = TrainSettings(**{"steps": steps, "loss": "mse", **(method.settings or {})})
        self.on_step, self.latents, self.conditioning = on_step, latents(side), conditioning(preset)
        self.needs: dict[str, int] = {}
        self.seconds = 0.0

    def go(self) -> None:
        from soda_core.host.training import TrainingData
        from soda_core.host.training.live import Live
        from soda_core.host.training.session import TrainingSession
        from testbed.training import MethodTraining

        live = Live(json.dumps if self.watched else None)

        def after_step(progress: Progress) -> None:
            live.step(progress)
            self.on_step()

        data = TrainingData([self.latents], [self.conditioning])
        dtype = "bf16" if torch.cuda.is_available() else "fp32"  # what one trains in there
        with TrainingSession.open(self.patcher, self.settings, dtype, self.checkpointing) as session:
            training = MethodTraining(session, data, self.method)
            if self.method.peft is None:
                self.needs = training.needs()
            if self.watched:
                live.begin(self.settings, Progress(), *training.watching())
            self.on_step()
            started = time.perf_counter()
            training.train(after_step)
            self.seconds = time.perf_counter() - started


def our_run(patcher: Any, preset: str, side: int, method: Method, watched: bool = False) -> Callable[[OnStep], None]:
    """:class:`OneRun` for :class:`.round_robin.RoundRobin`."""
    return lambda on_step: OneRun(patcher, preset, side, method, watched=watched, on_step=on_step).go()


def core_run(patcher: Any, preset: str, side: int, **options: Any) -> Callable[[OnStep], None]:
    """The host's own training node, for :class:`.round_robin.RoundRobin`; its first step counts as getting ready."""

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
        spectra = {n: store().get(BaseWeight(w, device), kind) for n, w in weights.items()} if settings.shifts else {}
        trainable = TrainableAdapter(shapes, settings, spectra)
        for p in trainable.rotations.values():
            p.data = near_identity(p)
        if trainable.shifts is not None:
            trainable.shifts.data = 0.01 * torch.randn_like(trainable.shifts)
        return trainable.to_adapter(weights, {"title": f"random {seed}"})


def baseless_adapter(
    layers: Mapping[str, tuple[int, ...]], seed: int, preset: str = "auto", count: int = FACTORS
) -> SodaAdapter:
    """An adapter with a shift and a base check in each of ``layers``, of no base in particular."""
    torch.manual_seed(seed)
    sizes = {name: factor_sizes(shape[1], preset, count) for name, shape in layers.items()}
    stacks = Counter(k for factors in sizes.values() for k in factors)
    rotations = {k: iter(near_identity(torch.eye(k).repeat(n, 1, 1)).unbind()) for k, n in stacks.items()}
    sketches = Sketches(torch.randn(SKETCH_SHAPE), torch.randn(SKETCH_SHAPE))
    return SodaAdapter(
        {
            name: SodaLayer(
                "qr", [next(rotations[k]).clone() for k in sizes[name]], 0.01 * torch.randn(min(shape)), shape, sketches
            )
            for name, shape in layers.items()
        },
        {"title": str(seed)},
    )


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

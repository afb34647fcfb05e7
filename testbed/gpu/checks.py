# SPDX-License-Identifier: GPL-3.0-or-later
"""Correctness on a GPU: ``python -m testbed.gpu.checks NAME`` raises, or prints what it measured as JSON.

Models are small ones with random weights in the real host; without a GPU the same runs on the CPU, which tries the
checks but says nothing of a GPU. Figures in which two sides may differ by rounding are compared within the bound that
stands beside them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from testbed.checkpoints import build, write
from testbed.host import import_host
from testbed.machine import label
from testbed.methods import Method

SODA = Method("SODA-SVD", "large", {"decomposition": "svd"})
WIDTHS = {"sd15-min": 768, "sd3-d2": 4096}
POOLED = {"sd3-d2": 2048}
SETTINGS: dict[str, Any] = {"steps": 4, "rotation_lr": 0.02, "shift_lr": 0.02, "loss": "mse", "seed": 5}
ROUNDING = 1e-2  #: of a trained change of the weights in float32, after four steps of Adam, which divides small numbers
SAME_OUTPUT = 1e-3  #: of a prediction in float32

Values = dict[str, Any]


def model(preset: str, stored: str = "f16", **options: Any) -> Any:
    """A fresh MODEL, as a loader node gives it; what is decomposed of it is kept nowhere."""
    import comfy.sd

    from soda_core.host import spectra

    spectra.store().disk_limit = 0
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = write(Path(folder, "base.safetensors"), build(preset, clip="none", seed=3), dtype=stored)
        return comfy.sd.load_checkpoint_guess_config(
            str(path), output_vae=False, output_clip=False, model_options=options
        )[0]


def pictures(patcher: Any, preset: str, side: int = 8) -> Any:
    from soda_core.host.training import TrainingData

    g = torch.Generator().manual_seed(0)
    options = {"pooled_output": torch.randn(1, POOLED[preset], generator=g)} if preset in POOLED else {}
    caption = [[torch.randn(1, 77, WIDTHS[preset], generator=g), options]]
    channels = patcher.model.latent_format.latent_channels
    return TrainingData([{"samples": torch.randn(2, channels, side, side, generator=g)}], [caption])


def trained(
    patcher: Any, preset: str, dtype: str = "fp32", checkpointing: bool = False, **settings: Any
) -> tuple[list[float], Any]:
    """Losses and the adapter of a few steps."""
    from soda_core.host.training.session import TrainingSession
    from soda_core.training.settings import TrainSettings
    from testbed.training import MethodTraining

    chosen = TrainSettings(**SETTINGS | settings)
    with TrainingSession.open(patcher, chosen, dtype, checkpointing) as session:  # type: ignore[arg-type]
        training = MethodTraining(session, pictures(patcher, preset), SODA)
        losses = training.train().losses
        return losses, training.layers.adapter()


def changes(patcher: Any, adapter: Any) -> dict[str, Tensor]:
    """What it adds to each weight, on the CPU in float64."""
    from soda_core.host.base import pristine_weight

    deltas = {}
    with torch.no_grad():
        for name in adapter.layers:
            weight = pristine_weight(patcher, f"{name}.weight").detach().float().cpu()
            deltas[name] = (adapter.adapt(name, weight).double() - weight.double()).cpu()
    return deltas


def off(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Relative error over all layers."""
    error = sum(float((found[name] - value).square().sum()) for name, value in expected.items())
    return math.sqrt(error / sum(float(value.square().sum()) for value in expected.values()))


def within(value: float, bound: float, what: str) -> float:
    if not value <= bound:
        raise AssertionError(f"{what}: {value:.3g}, allowed are {bound:.3g}")
    return value


def predicted(patcher: Any, load: bool = True) -> Tensor:
    """One prediction of SD 1.5 as it stands, on the CPU."""
    import comfy.model_management as mm

    with torch.inference_mode():
        if load:
            mm.load_models_gpu([patcher])
        g, device = torch.Generator().manual_seed(1), patcher.load_device
        x, context = (torch.randn(size, generator=g).to(device) for size in ((1, 4, 8, 8), (1, 77, 768)))
        return patcher.model.apply_model(x, torch.tensor([0.7], device=device), c_crossattn=context).float().cpu()


# ------------------------------------------------------------------------------------------------------------- checks


def device() -> Values:
    """What there is."""
    import comfy.model_management as mm

    return {"device": str(mm.get_torch_device()), "vram_state": mm.vram_state.name, "cuda": torch.version.cuda}


def equals_cpu() -> Values:
    """Training gives the adapter that it gives on the CPU, in float32."""
    values: Values = {}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        for preset in WIDTHS:
            path = Path(folder, f"{preset}.safetensors")
            command = [sys.executable, "-m", "testbed.gpu.checks", "--reference", preset, str(path)]
            subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)
            expected = load_file(path)
            reference_losses = expected.pop("losses")
            patcher = model(preset)
            losses, adapter = trained(patcher, preset)
            torch.testing.assert_close(torch.tensor(losses), reference_losses, rtol=1e-3, atol=1e-5)
            values[preset] = within(off(changes(patcher, adapter), expected), ROUNDING, f"{preset} against the CPU")
    return {"off": values, "bound": ROUNDING}


def reference(preset: str, path: str) -> None:
    patcher = model(preset)
    losses, adapter = trained(patcher, preset)
    save_file({**changes(patcher, adapter), "losses": torch.tensor(losses)}, path)


def repeats() -> Values:
    """The same seed gives the same adapter; whether to the last bit is said. Another seed gives another."""
    patcher = model("sd15-min")
    first, again, other = (changes(patcher, trained(patcher, "sd15-min", seed=seed)[1]) for seed in (4, 4, 9))
    if off(other, first) < 10 * ROUNDING:
        raise AssertionError("another seed gave the same adapter")
    equal = all(torch.equal(first[name], again[name]) for name in first)
    return {"identical": equal, "off": within(off(again, first), ROUNDING, "the same seed"), "bound": ROUNDING}


def loads() -> Values:
    """Loaded fully, and partly as in low memory, the adapted model predicts the same, which is not the base's."""
    from soda_core.host.apply import apply_adapter

    patcher = model("sd15-min", dtype=torch.float32)
    adapter = trained(patcher, "sd15-min")[1]
    base = predicted(patcher)
    with torch.inference_mode():
        patched, _ = apply_adapter(patcher, None, adapter, 1.0)
    full = predicted(patched)
    patched.detach()
    with torch.inference_mode():
        patched.load(patched.load_device, lowvram_model_memory=1)
    counted = patched.model.lowvram_patch_counter
    part = predicted(patched, load=False)
    patched.detach()
    again = predicted(patcher)
    if not counted or torch.equal(full, base):
        raise AssertionError(f"{counted} layers patched in a partial load, or nothing changed in a full one")
    values = {"partly": part, "base again": again}
    expected = {"partly": full, "base again": base}
    return {
        name: within(off({name: value}, {name: expected[name]}), SAME_OUTPUT, name) for name, value in values.items()
    } | {"changed": off({"x": full}, {"x": base})}


def dtypes() -> Values:
    """Half precisions and float8 train, and begin with nearly the loss of float32."""
    expected = trained(model("sd15-min", "f32"), "sd15-min")[0]
    values: Values = {"fp32": expected[0]}
    ways = {
        "fp16 base": ("f16", "model", {"dtype": torch.float16}),
        "bf16": ("bf16", "bf16", {}),
        "fp8 base": ("f8", "bf16", {"dtype": torch.float8_e4m3fn}),
    }
    for name, (stored, computed, options) in ways.items():
        losses = trained(model("sd15-min", stored, **options), "sd15-min", computed)[0]
        if not all(map(math.isfinite, losses)):
            raise AssertionError(f"{name}: losses {losses}")
        within(abs(losses[0] / expected[0] - 1), 0.1, name)
        values[name] = losses[0]
    return values


def hooks() -> Values:
    """The host's hooks give the weights that the plain patch gives, and take them back."""
    import comfy.hooks
    import comfy.model_management as mm
    import comfy.utils

    from soda_core.host.apply import apply_adapter
    from soda_core.host.apply import changes as changes_of

    patcher = model("sd15-min", dtype=torch.float32)
    adapter = trained(patcher, "sd15-min")[1]

    def weights(of: Any) -> dict[str, Tensor]:
        return {name: comfy.utils.get_attr(of.model, f"{name}.weight").clone().cpu() for name in adapter.layers}

    with torch.inference_mode():
        mm.load_models_gpu([patcher])
        base = weights(patcher)
        patched, _ = apply_adapter(patcher, None, adapter, 0.8)
        mm.load_models_gpu([patched])
        expected = weights(patched)
        group = changes_of(patcher, None, adapter, 0.8).hooks()
        hooked = patcher.clone()
        hooked.register_all_hook_patches(group, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model))
        mm.load_models_gpu([hooked])
        hooked.patch_hooks(group)
        found = weights(hooked)
        hooked.unpatch_hooks()
        mm.load_models_gpu([patcher])
        again = weights(patcher)
    if not all(torch.equal(again[name], value) for name, value in base.items()):
        raise AssertionError("the base did not come back")
    if off(expected, base) == 0:
        raise AssertionError("the patch changed nothing")
    return {"off": within(off(found, expected), 1e-6, "hooks against patches"), "bound": 1e-6}


def checkpointing() -> Values:
    """Gradient checkpointing changes memory, not the result."""
    patcher = model("sd15-min")
    plain, saving = (changes(patcher, trained(patcher, "sd15-min", checkpointing=on)[1]) for on in (False, True))
    return {"off": within(off(saving, plain), ROUNDING, "with checkpointing"), "bound": ROUNDING}


def cancel() -> Values:
    """A cancel in the middle of a training ends it at once, leaves no memory taken and the model as it was."""
    import comfy.model_management as mm

    from soda_core.host.training.session import TrainingSession
    from soda_core.training.settings import TrainSettings
    from testbed.training import MethodTraining

    patcher = model("sd15-min")
    trained(patcher, "sd15-min")  # what libraries take once is not the training's
    before, taken, seen = _state(patcher), _allocated(), 0

    def on_step(progress: Any) -> None:
        nonlocal seen
        seen = progress.step
        if seen == 2:
            raise mm.InterruptProcessingException

    try:
        with TrainingSession.open(patcher, TrainSettings(**SETTINGS | {"steps": 50}), "fp32") as session:
            MethodTraining(session, pictures(patcher, "sd15-min"), SODA).train(on_step)
    except mm.InterruptProcessingException:
        pass
    else:
        raise AssertionError("the cancel was not passed on")
    del session
    same = _state(patcher)
    if seen != 2 or any(not torch.equal(same[name], value) for name, value in before.items()):
        raise AssertionError(f"{seen} steps were made, or the model is another")
    return {"bytes left": within(_allocated() - taken, 2**20, "bytes still taken")}


def out_of_memory() -> Values:
    """What a GPU too small gives is our error, which says what to do; training goes on working afterwards."""
    from soda_core.errors import TrainingError
    from soda_core.host import folders
    from soda_core.host.training import RunOptions, train_in_graph
    from soda_core.training.settings import TrainSettings

    if not torch.cuda.is_available():
        return {"skipped": "needs a GPU"}
    folders.register()
    patcher = model("sd15-min")
    settings, options = TrainSettings(**SETTINGS), RunOptions(filename_prefix="gpu/too-small")
    trained(patcher, "sd15-min")
    _, whole = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / whole)
    try:
        with torch.inference_mode():
            train_in_graph(patcher, pictures(patcher, "sd15-min", side=256), settings, options)
    except TrainingError as error:
        said = str(error)
    else:
        raise AssertionError("a quarter of a gigabyte was enough")
    torch.cuda.set_per_process_memory_fraction(1.0)
    losses = trained(patcher, "sd15-min")[0]
    if "ran out of memory" not in said or not all(map(math.isfinite, losses)):
        raise AssertionError(f"it said {said!r}, and then losses {losses}")
    return {"said": said}


def _state(patcher: Any) -> dict[str, Tensor]:
    return {name: value.clone().cpu() for name, value in patcher.model.state_dict().items()}


def _allocated() -> int:
    import gc

    gc.collect()
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


CHECKS: dict[str, Callable[[], Values]] = {
    check.__name__: check
    for check in (device, equals_cpu, repeats, loads, dtypes, hooks, checkpointing, cancel, out_of_memory)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=CHECKS)
    parser.add_argument("--reference", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    import_host()
    if args.reference:
        reference(*args.reference)
    elif args.name:
        print(json.dumps({"machine": label(), **CHECKS[args.name]()}))
    else:
        parser.error("which check?")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the method costs, side by side with what a user would pick instead.

    python dev.py bench speed [--quick] [--part layer|optimizer|step|live|load|sample|merge]...

Both sides run in one process, in turn. Writes ``benchmarks/results/speed.json``: a list of flat rows.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.lib import models
from benchmarks.lib.families import attention
from benchmarks.lib.layer import layer_ways
from benchmarks.lib.results import Row, pivot, write_run
from benchmarks.lib.round_robin import RoundRobin
from benchmarks.lib.timing import Timing, interleaved
from soda_core.adapter import SodaAdapter
from soda_core.kronecker import factor_sizes
from soda_core.linalg import thin_svd
from soda_core.merge import merge
from soda_core.stiefel import StiefelAdam
from soda_core.training.settings import TrainSettings
from soda_core.training.trainable import TrainableAdapter
from testbed.machine import core_count

# ----------------------------------------------------------------------------------------------------- one layer

#: out_features, in_features, tokens
LAYERS = [
    (320, 320, 4096), (320, 768, 77), (640, 640, 1024), (1280, 1280, 256), (1280, 768, 77), (1280, 1280, 1024),
    (1280, 2048, 77), (10240, 1280, 1024),
]  # fmt: skip


def layers(quick: bool) -> list[Row]:
    """Forward and backward of one adapted layer against the same frozen one (gradient to its input only).

    Layers come in fours, as in a model: what our adapter does once a step is shared among them.
    """
    rows = []
    for out, in_features, tokens in LAYERS[:2] if quick else LAYERS:
        count = 1 if out > 2000 else 4
        ways, chosen = layer_ways(out, in_features, tokens, count)
        repeats = 5 if quick else max(7, min(60, int(6e10 / (count * tokens * out * in_features))))
        timings = interleaved(ways, repeats)
        rows += _rows("layer", f"({out}, {in_features}, {tokens})", timings, "frozen", count=count, sides=chosen)
    return rows


# ---------------------------------------------------------------------------------------------------- the optimiser


def optimizers(quick: bool) -> list[Row]:
    """A step of all factors of a model: ours in batches, and the same update one matrix at a time."""
    rows = []
    for name, preset in (("SD1.5 attention", "sd15-full"), ("SDXL attention", "sdxl-full")):
        # three factors a layer, as the authors have: the most
        factors = [k for shape in attention(preset).values() for k in factor_sizes(shape[1], count=3)]
        batched = TrainableAdapter(attention(preset), TrainSettings(train="rotation only", factor_count=3), {})
        ours = StiefelAdam(list(batched.rotations.values()), lr=1e-3)
        single = [torch.eye(k) for k in factors]
        states = [(torch.zeros(k, k), torch.zeros(k, k)) for k in factors]
        for p in batched.rotations.values():
            p.grad = torch.randn_like(p)
        gradients = [torch.randn(k, k) for k in factors]
        ways = {
            "one matrix at a time": lambda s=single, g=gradients, t=states: _one_at_a_time(s, g, t),
            "StiefelAdam": ours.step,
        }
        timings = interleaved(ways, 3 if quick else 15)
        rows += _rows("optimizer", f"{name}, {len(factors)} factors", timings, "one matrix at a time")
    return rows


def _one_at_a_time(
    matrices: list[Tensor], gradients: list[Tensor], states: list[tuple[Tensor, Tensor]], lr: float = 1e-3
) -> None:
    """The plain loop: momentum, second moment, Euler step, and the polar factor by an iterated inverse square root."""
    for X, G, (Y, P) in zip(matrices, gradients, states, strict=True):
        A = X.T @ G - G.T @ X
        Y.mul_(0.9).sub_(0.1 * A)
        P.mul_(0.99).add_(0.01 * A * A)
        xi = lr * (Y / 0.1) / ((P / 0.01).sqrt() + 1e-5)
        X.copy_((X + X @ xi) @ _inverse_root((X + X @ xi).T @ (X + X @ xi)))


def _inverse_root(M: Tensor, iterations: int = 10) -> Tensor:
    """``M^(-1/2)`` by the coupled Newton-Schulz iteration, until it no longer changes."""
    eye = torch.eye(len(M))
    scale = M.norm()
    Y, Z = M / scale, eye.clone()
    for _ in range(iterations):
        T = (3 * eye - Z @ Y) / 2
        Y, Z = Y @ T, T @ Z
        if (Z @ Y - eye).norm() < 1e-6:
            break
    return Z / scale.sqrt()


# ------------------------------------------------------------------------------------------------- a training step


def steps(quick: bool) -> list[Row]:
    """Whole training steps on a full-size SD1.5 in the host: 256 px, batch 1, float32, attention layers.

    The core node trains all layers, not attention alone; it has no other way. Its defaults (bf16, checkpointing) are
    timed at 128 px, as they take minutes a step on a CPU.
    """
    preset, side = ("sd15-12", 128) if quick else ("sd15-full", 256)
    patcher = models.load(preset)
    runs = {name: models.our_run(patcher, preset, side, method) for name, method in models.RUNS.items()}
    runs["core Train LoRA at its best"] = models.core_run(patcher, preset, side, **models.CORE_BEST)
    timings = RoundRobin(runs, 3 if quick else 5, warmup=1).measure()
    ours = "LoRA rank 4, our loop"
    rows = _rows("step", f"{preset}, {side} px", timings, ours)
    small = {
        ours: models.our_run(patcher, preset, 128, models.RUNS[ours]),
        "core Train LoRA, defaults": models.core_run(patcher, preset, 128, rank=4),
    }
    return rows + _rows("step", f"{preset}, 128 px", RoundRobin(small, 1, warmup=0).measure(), ours)


def live_view(quick: bool) -> list[Row]:
    """A thousand small steps, watched against not watched; seconds are of a hundred, in each of which one look falls.

    A look is at the validation loss; between looks the view tells twice a second. Both runs are under way at once, so
    that each step of one waits for a step of the other and twice as many states come to it as in a run alone.
    """
    preset, side, steps = "sd15-min", 64, 100 if quick else 1000
    patcher, method = models.load(preset), models.RUNS["rotation + SVD shift"]
    runs = {name: models.our_run(patcher, preset, side, method, name == "watched") for name in ("alone", "watched")}
    timings = RoundRobin(runs, steps, warmup=1).measure()
    hundreds = {
        name: Timing([sum(timing.seconds[i : i + 100]) for i in range(0, steps, 100)])
        for name, timing in timings.items()
    }
    return _rows("live", f"{preset}, {side} px", hundreds, "alone")


# --------------------------------------------------------------------------------------------------------- loading


def loading(quick: bool) -> list[Row]:
    """From a file to a model that is ready to sample, node and patching together, on a full-size SD1.5.

    *cold*: nothing was decomposed before, and nothing is read from a disk: they differ too much; *warm*: the same base,
    another adapter; *again*: the same adapter, another strength.
    """
    preset = "sd15-12" if quick else "sd15-full"
    patcher = models.load(preset)
    import comfy.model_management as mm

    from soda_core.host import spectra
    from soda_core.host.apply import apply_adapter

    mm.load_models_gpu([patcher])
    shapes = attention(preset)

    def ready(patched: Any) -> None:
        mm.load_models_gpu([patched])
        mm.load_models_gpu([patcher])  # and back

    with tempfile.TemporaryDirectory() as folder:
        lora = models.lora_file(Path(folder) / "lora.safetensors", shapes, rank=8)
        ways: dict[str, Callable[[], object]] = {"LoRA rank 8": lambda: ready(models.with_lora(patcher, lora))}
        files = {}
        for kind, settings in models.ADAPTERS.items():
            for copy in range(2):
                path = Path(folder) / f"{kind}-{copy}.safetensors"
                models.random_adapter(patcher, shapes, settings, seed=copy).save(path)
                files[kind, copy] = path

        held: dict[str, Any] = {}  # as the host holds a node's last output until the next is there

        def load(kind: str, copy: int, cold: bool = False, hold: bool = False) -> Callable[[], None]:
            def run() -> None:
                if cold:
                    spectra.store().clear_memory()
                strength = 0.5 + 0.5 * random.random()
                patched, _ = apply_adapter(patcher, None, SodaAdapter.load(files[kind, copy]), strength)
                ready(patched)
                if hold:
                    held[kind] = patched

            return run

        for kind in models.ADAPTERS:
            ways[f"{kind}, warm"] = load(kind, 0)
            ways[f"{kind}, again"] = load(kind, 1, hold=True)
        timings = interleaved(ways, 2 if quick else 5, warmup=1)
        cold = {f"{kind}, cold": load(kind, 0, cold=True) for kind in models.ADAPTERS}
        timings |= interleaved(cold, 1 if quick else 2, warmup=0)
    rows = _rows("load", preset, timings, "LoRA rank 8")
    return rows + decompositions(shapes, quick)


def sampling(quick: bool) -> list[Row]:
    """One evaluation of a full-size SD1.5 after loading: fully loaded, and in the host's mode for low memory.

    There weights stay where they are, and are patched anew in every evaluation.
    """
    preset, side = ("sd15-12", 128) if quick else ("sd15-full", 256)
    patcher = models.load(preset)
    import comfy.model_management as mm

    from soda_core.host.apply import apply_adapter

    shapes = attention(preset)
    with tempfile.TemporaryDirectory() as folder:
        lora = models.lora_file(Path(folder) / "lora.safetensors", shapes, rank=8)
        ways = {"base": patcher, "LoRA rank 8": models.with_lora(patcher, lora)}
        for name, settings in models.ADAPTERS.items():
            adapter = models.random_adapter(patcher, shapes, settings, seed=0)
            ways[name] = apply_adapter(patcher, None, adapter, 1.0)[0]
        rows = []
        for low in (False, True):
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(2 if quick else 4):
                for name, way in ways.items():
                    if low:
                        way.load(way.load_device, lowvram_model_memory=1)
                    else:
                        mm.load_models_gpu([way])
                    one = partial(models.evaluate, way, preset, side)
                    seconds[name] += interleaved({name: one}, 1, warmup=1)[name].seconds
                    way.detach()
            timings = {name: Timing(values) for name, values in seconds.items()}
            rows += _rows("sample", "low memory" if low else "loaded", timings, "LoRA rank 8" if low else "base")
    return rows


def decompositions(shapes: dict[str, tuple[int, ...]], quick: bool) -> list[Row]:
    """All layers decomposed, a weight of each shape times its count: ours against torch's SVD in a loop.

    In float64, which gives the same singular vectors as ours; and in float32, which gives them less exactly by some
    roundings times the ratio of the largest singular value to the distance of neighbours (``error``, of a shift's
    change of the weight).
    """
    rows = []
    total: dict[str, float] = {}
    for shape, count in Counter(shapes.values()).items():
        W = _decaying(shape)
        ways = {
            "torch.linalg.svd float64": lambda W=W: torch.linalg.svd(W.double(), full_matrices=False),
            "torch.linalg.svd float32": lambda W=W: torch.linalg.svd(W, full_matrices=False),
            "ours": lambda W=W: thin_svd(W),
        }
        timings = interleaved(ways, 1 if quick else 3, warmup=1)
        for way, timing in timings.items():
            total[way] = total.get(way, 0.0) + count * timing.median
        exact = _shifted(*ways["torch.linalg.svd float64"]())
        errors = {way: float((_shifted(*run()) - exact).norm() / exact.norm()) for way, run in ways.items()}
        rows += _rows("svd", str(shape), timings, "torch.linalg.svd float64", layers=count, error=errors)
    sums = {way: Timing([seconds]) for way, seconds in total.items()}
    return rows + _rows("svd", f"all {len(shapes)} layers", sums, "torch.linalg.svd float64")


def _decaying(shape: tuple[int, ...]) -> Tensor:
    """A random weight whose singular values fall as i^-0.7, as trained ones' roughly do."""
    U, S, Vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    return (U * torch.arange(1, len(S) + 1) ** -0.7) @ Vh


def _shifted(U: Tensor, S: Tensor, Vh: Tensor) -> Tensor:
    return (U.double() * torch.sin(torch.arange(len(S))).double()) @ Vh.double()


# --------------------------------------------------------------------------------------------------------- merging


def merging(quick: bool) -> list[Row]:
    """Merging two adapters for SDXL's attention, by both methods."""
    shapes = attention("sd15-12" if quick else "sdxl-full")
    adapters = [models.baseless_adapter(shapes, seed) for seed in (0, 1)]
    ways = {
        "delta": lambda: merge(*adapters, method="delta"),
        "geodesic": lambda: merge(*adapters, method="geodesic"),
    }
    timings = interleaved(ways, 3 if quick else 7, warmup=1)
    return _rows("merge", f"{len(shapes)} layers", timings, "delta")


# ------------------------------------------------------------------------------------------------------------ rows


def _rows(bench: str, what: str, timings: dict[str, Timing], against: str, **more: Any) -> list[Row]:
    base = timings[against].median
    rows = []
    for variant, timing in timings.items():
        row = {
            "bench": bench, "variant": variant, "shape": what, "against": against, "ratio": timing.median / base,
            "seconds": timing.median, "spread": timing.spread, "against_seconds": base,
        }  # fmt: skip
        row |= {k: v.get(variant) if isinstance(v, dict) else v for k, v in more.items()}
        rows.append(row)
        print(f"{bench:10} {what:24} {variant:22} {timing.median * 1e3:9.2f} ms  {row['ratio']:6.2f}", flush=True)
    return rows


def tables(rows: list[Row]) -> str:
    """One for each bench: a line for each shape, a column for each way: ratio, and milliseconds."""

    def cell(r: Row) -> str:
        return f"{r['ratio']:.2f} ({1e3 * r['seconds']:,.1f} ± {1e3 * r['spread']:,.1f} ms)"

    written = []
    for bench in dict.fromkeys(row["bench"] for row in rows):
        of = [row for row in rows if row["bench"] == bench]
        written.append(pivot(of, f"{bench}, ratio to {of[0]['against']}", "shape", "variant", cell))
    return "\n\n".join(written)


PARTS: dict[str, Callable[[bool], list[Row]]] = {
    "layer": layers,
    "optimizer": optimizers,
    "step": steps,
    "live": live_view,
    "load": loading,
    "sample": sampling,
    "merge": merging,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", choices=PARTS, action="append")
    args = parser.parse_args()
    torch.set_num_threads(core_count())
    torch.manual_seed(0)
    rows = [row for part in args.part or PARTS for row in PARTS[part](args.quick)]
    if not args.quick:
        write_run("speed", rows, tables, part=bool(args.part))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""How cost grows: from SD 1.5 to Flux, and with width, tokens, layers and factors.

    python dev.py bench scale [--quick]

No such model is loaded. Of each distinct layer shape one layer is run, and times are added up by how often the shape
occurs; merging and files are run whole. So a step is the sum of a model's adapted layers, forward and backward, without
the rest of the model. Writes ``benchmarks/results/scale.json``: a list of flat rows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks.lib import models
from benchmarks.lib.families import Family, families
from benchmarks.lib.layer import layer_ways
from benchmarks.lib.results import Row, pivot, write_run
from benchmarks.lib.timing import Timing, interleaved
from soda_core import fileformat
from soda_core.adapter import SodaAdapter
from soda_core.base_weight import BaseWeight
from soda_core.errors import SettingsError
from soda_core.interference import interference
from soda_core.kronecker import factor_sizes
from soda_core.layer import SodaLayer
from soda_core.merge import merge
from soda_core.spectral import Decomposition, Spectrum, decompose
from testbed.machine import core_count

ADAPTED = ("rotation", "rotation + QR shift", "rotation + SVD shift")
BASELINE = "LoRA rank 4"
FACTOR_CHOICES = (("auto", 3), ("auto", 2), ("large", 3), ("svdiff-size", 3), ("oft-size", 3))
ENOUGH = 1e11  #: multiplications after which a way has been timed often enough

Spectra = dict[tuple[int, int], dict[str, Spectrum]]  #: decompositions of a weight of each shape, by kind


def repeats(work: float, most: int = 9) -> int:
    return max(1, min(most, round(ENOUGH / work)))


# ------------------------------------------------------------------------------------------------------- by family


def step(family: Family, spectra: Spectra) -> Iterable[Row]:
    """All adapted layers, forward and backward, one picture."""
    total: dict[str, float] = {}
    for (out, in_features, tokens), count in family.distinct().items():
        ways, _ = layer_ways(out, in_features, tokens, 1, ADAPTED, known=spectra[out, in_features])
        work = 4.0 * out * in_features * tokens
        timings = interleaved(ways, repeats(work), warmup=1 if work < ENOUGH else 0)
        for way, timing in timings.items():
            total[way] = total.get(way, 0.0) + count * timing.median
    for way in (*ADAPTED, "frozen"):
        yield _row("step", family, way, total[way], total[BASELINE], BASELINE)


def load(family: Family, spectra: Spectra) -> Iterable[Row]:
    """The change of every weight: computed anew, and with the decompositions at hand; against a LoRA's."""
    total: dict[str, float] = {}
    for (out, in_features), count in family.shapes().items():
        W = torch.randn(out, in_features) / in_features**0.5
        shift, rank = 0.01 * torch.randn(min(out, in_features)), 8
        factors = [models.near_identity(torch.eye(k)) for k in factor_sizes(in_features)]
        up, down = torch.randn(out, rank), torch.randn(rank, in_features)
        ways: dict[str, Callable[[], object]] = {"LoRA rank 8": lambda W=W, a=up, b=down: W + a @ b}
        known = spectra[out, in_features] = {}

        def decomposing(kind: Decomposition, W: Tensor = W, known: dict[str, Spectrum] = known) -> None:
            known[kind] = decompose(W, kind)

        slow = {f"{kind.upper()}, decomposing": partial(decomposing, kind) for kind in get_args(Decomposition)}
        work = float(out * in_features * min(out, in_features))
        timings = interleaved(slow, repeats(work * 20, 3), warmup=1 if work * 20 < ENOUGH else 0)
        layer = SodaLayer("svd", factors, None)
        ways["rotation"] = lambda W=W, layer=layer: W + layer.delta(W)
        for kind in get_args(Decomposition):
            shifted = SodaLayer(kind, factors, shift)
            ways[f"{kind.upper()}, decomposed before"] = lambda W=W, layer=shifted, known=known: (
                W + layer.delta(BaseWeight(W, spectra=known.values()))
            )
        timings |= interleaved(ways, repeats(float(out * in_features * rank) * 100), warmup=1)
        for way, timing in timings.items():
            total[way] = total.get(way, 0.0) + count * timing.median
    for way, seconds in total.items():
        yield _row("load", family, way, seconds, total["LoRA rank 8"], "LoRA rank 8")


def merging(family: Family, spectra: Spectra) -> Iterable[Row]:
    """Two whole adapters, and the report of how they overlap; the report on the base, a layer of each shape."""
    pair = [models.baseless_adapter(family.layers, seed) for seed in (0, 1)]
    ways: dict[str, Callable[[], object]] = {
        "delta": lambda: merge(pair[0], pair[1], method="delta"),
        "geodesic": lambda: merge(pair[0], pair[1], method="geodesic"),
        "report, adapters alone": lambda: interference(pair[0], pair[1]),
    }
    timings = interleaved(ways, 3, warmup=1)
    for way, timing in timings.items():
        yield _row("merge", family, way, timing.median)
    seconds = timings["report, adapters alone"].median
    for shape, count in family.shapes().items():
        name = next(name for name, of in family.layers.items() if of == shape)
        one = [SodaAdapter({name: adapter.layers[name]}, adapter.metadata) for adapter in pair]
        W = torch.randn(shape)
        base = BaseWeight(W, spectra=spectra[shape].values())
        way = {"report": lambda one=one, base=base: interference(one[0], one[1], lambda _: base)}  # type: ignore[misc]
        seconds += count * interleaved(way, 3, warmup=1)["report"].median
    yield _row("merge", family, "report, with the base", seconds)


def files(family: Family, _: Spectra) -> Iterable[Row]:
    """Parameters and bytes of a trained adapter, by factor preset; a LoRA in fp16 for comparison."""
    shifts = sum(min(shape) for shape in family.layers.values())
    lora = sum(out + in_features for out, in_features in family.layers.values())
    for rank in (4, 16):
        yield _row("file", family, f"LoRA rank {rank}", params=rank * lora, bytes=2 * rank * lora)
    yield _row("file", family, "shift only", params=shifts, bytes=None)
    for preset, count in FACTOR_CHOICES:
        name = f"{count} factors" if preset == "auto" else preset
        try:
            adapter = models.baseless_adapter(family.layers, 0, preset, count)
        except SettingsError:
            continue
        size = len(fileformat.to_bytes(adapter.layers, adapter.metadata))
        yield _row("file", family, f"SODA, {name}", params=adapter.num_parameters, bytes=size)


# --------------------------------------------------------------------------------------------------- one at a time


def growth(quick: bool) -> Iterable[Row]:
    """One thing doubled at a time; ``exponent`` is the slope between neighbours on logarithmic axes."""
    widths = (320, 640, 1280) if quick else (320, 640, 1280, 2560)
    yield from _sweep("width", widths, lambda n: _step_of(n, n, 1024), ADAPTED)
    yield from _sweep(
        "tokens", (77, 256, 1024) if quick else (77, 256, 1024, 4096), lambda t: _step_of(640, 640, t), ADAPTED
    )
    yield from _sweep("layers", (2, 4, 8), lambda n: _step_of(640, 640, 256, n), ADAPTED)
    yield from _sweep("width", widths, _decomposing, ("decompose QR", "decompose SVD", "change by rotation"))
    yield from _sweep("factors", (1, 2, 3, 4), _rotating, ("change by rotation",))


def _step_of(out: int, in_features: int, tokens: int, count: int = 1) -> dict[str, Timing]:
    ways, _ = layer_ways(out, in_features, tokens, count, ADAPTED)
    return interleaved(ways, repeats(4.0 * count * out * in_features * tokens))


def _decomposing(n: int) -> dict[str, Timing]:
    W = torch.randn(n, n) / n**0.5
    layer = SodaLayer("svd", [models.near_identity(torch.eye(k)) for k in factor_sizes(n)], None)
    ways: dict[str, Callable[[], object]] = {
        "decompose QR": lambda: decompose(W, "qr"),
        "decompose SVD": lambda: decompose(W, "svd"),
        "change by rotation": lambda: layer.delta(W),
    }
    return interleaved(ways, repeats(20.0 * n**3, 5), warmup=1)


def _rotating(count: int) -> dict[str, Timing]:
    W = torch.randn(1280, 1280)
    layer = SodaLayer("svd", [models.near_identity(torch.eye(k)) for k in factor_sizes(1280, "auto", count)], None)
    return interleaved({"change by rotation": lambda: layer.delta(W)}, 9)


def _sweep(
    what: str, values: Iterable[int], run: Callable[[int], dict[str, Timing]], ways: Iterable[str]
) -> Iterable[Row]:
    before: tuple[int, dict[str, float]] | None = None
    for value in values:
        seconds = {way: timing.median for way, timing in run(value).items()}
        for way in ways:
            exponent = None
            if before is not None:
                exponent = math.log(seconds[way] / before[1][way]) / math.log(value / before[0])
            row: Row = {"bench": "growth", "variant": way, "with": what, "value": value, "seconds": seconds[way],
                        "exponent": exponent}  # fmt: skip
            if "frozen" in seconds:
                row |= {"ratio": seconds[way] / seconds["frozen"], "against": "frozen"}
            say(f"growth with {what:8} {value:6}  {way:22} {seconds[way] * 1e3:9.2f} ms"
                + (f"  exponent {exponent:.2f}" if exponent is not None else ""))  # fmt: skip
            yield row
        before = (value, seconds)


# ------------------------------------------------------------------------------------------------------------ rows


def _row(
    bench: str, family: Family, variant: str, seconds: float | None = None, against_seconds: float | None = None,
    against: str | None = None, **more: Any,
) -> Row:  # fmt: skip
    row: Row = {"bench": bench, "variant": variant, "model": family.name, "layers": len(family.layers), **more}
    if seconds is not None:
        row["seconds"] = seconds
    if against_seconds is not None and seconds is not None:
        row |= {"against": against, "against_seconds": against_seconds, "ratio": seconds / against_seconds}
    text = "" if seconds is None else f"{seconds:9.2f} s"
    text += f"  {row['ratio']:6.2f}" if "ratio" in row else ""
    text += "".join(f"  {name} {value:,}" for name, value in more.items() if value is not None)
    say(f"{family.name:14} {bench:6} {variant:24} {text}")
    return row


def say(text: str) -> None:
    print(text, flush=True)


def tables(rows: list[Row]) -> str:
    """A line for each way, a column for each model."""

    def seconds(row: Row) -> str:
        return f"{row['seconds']:.2f} s" + (f" ({row['ratio']:.2f})" if "ratio" in row else "")

    def size(row: Row) -> str:
        return f"{row['params'] / 1e6:.2f} M" + (f", {row['bytes'] / 1e6:.2f} MB" if row["bytes"] else "")

    cells = {"step": seconds, "load": seconds, "merge": seconds, "file": size}
    return "\n\n".join(
        pivot((row for row in rows if row["bench"] == bench), bench, "variant", "model", cell)
        for bench, cell in cells.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="files of all models, times of SD 1.5 alone, fewer sizes")
    args = parser.parse_args()
    torch.set_num_threads(core_count())
    torch.manual_seed(0)
    rows: list[Row] = []
    for family in families():
        spectra: Spectra = {}
        for part in (load, step, merging, files):
            if args.quick and family.name != "SD 1.5" and part is not files:
                continue
            rows += part(family, spectra)
    rows += growth(args.quick)
    say("\n" + tables(rows))
    if not args.quick:
        write_run("scale", rows, tables)


if __name__ == "__main__":
    main()

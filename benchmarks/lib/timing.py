# SPDX-License-Identifier: GPL-3.0-or-later
"""Two or more ways of doing the same, timed in turn in one process: ratios mean something, seconds alone do not."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of every repeat."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles."""
        if len(self.seconds) < 4:
            return (max(self.seconds) - min(self.seconds)) / 2
        first, _, third = statistics.quantiles(self.seconds, n=4)
        return (third - first) / 2


def interleaved(ways: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 2) -> dict[str, Timing]:
    """Time every way ``repeats`` times, one after the other in turn, so that a machine's moods hit all alike."""
    for _ in range(warmup):
        for run in ways.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, run in ways.items():
                _wait()
                started = time.perf_counter()
                run()
                _wait()
                seconds[name].append(time.perf_counter() - started)
    finally:
        gc.enable()
    return {name: Timing(values) for name, values in seconds.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

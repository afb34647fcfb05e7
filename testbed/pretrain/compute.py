# SPDX-License-Identifier: GPL-3.0-or-later
"""Where and how a part trains: on CUDA where there is one, in bfloat16 where that is faster, on one core or all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

TRIALS = 3  #: the fastest of so many counts; the first also pays for kernels made for its shapes
ALL_THREADS = torch.get_num_threads()


def use_threads(count: int) -> None:
    """On the CPU; 0 = as many as there are cores."""
    torch.set_num_threads(count or ALL_THREADS)


@dataclass(frozen=True)
class Compute:
    """``dtype`` is that of products and convolutions; weights, their moments and losses stay in float32."""

    device: torch.device
    dtype: torch.dtype = torch.float32

    @classmethod
    def find(cls) -> Compute:
        return cls(torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def faster(self, loss: Callable[[], Tensor]) -> Compute:
        """This device with the dtype in which a loss and its gradients, if any, take less time; says both times."""
        choices = [Compute(self.device, dtype) for dtype in (torch.float32, torch.bfloat16)]
        seconds = {choice: min(choice.seconds(loss) for _ in range(TRIALS)) for choice in choices}
        print(", ".join(f"{choice.dtype}: {taken:.2f} s" for choice, taken in seconds.items()) + " a step", flush=True)
        return min(choices, key=seconds.__getitem__)

    def seconds(self, loss: Callable[[], Tensor]) -> float:
        # other work may share the cores: there, only this process's own time says which is faster
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        started = clock()
        with self.autocast():
            value = loss()
        if value.requires_grad:
            value.backward()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - started


@dataclass(frozen=True)
class Ranks:
    """Processes that train one network together, started by ``torchrun``: without it there is one.

    On the CPU one process of one thread for every core is faster than one process of several threads, and beside other
    work by far: threads wait for each other within every product, processes once a step.
    """

    number: int = 0
    count: int = 1

    @classmethod
    def find(cls) -> Ranks:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=timedelta(hours=1))  # the first one alone draws and saves
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        return self.number == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def average(self, gradients: Sequence[Tensor]) -> None:
        """Put their mean over all processes in place of gradients."""
        if self.count == 1:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient) / self.count)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes of a data-parallel run. Each holds the base model; what travels are the adapter's gradients.

A batch is that of all processes together: each draws the same one and computes the pictures whose index in it is its
own, so that settings and seed mean the same however many there are. accelerate says which process this is and which
device it has. Numbers travel by way of main memory (gloo): it is a few MB a step, any device can do it, and a process
that is gone is noticed at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from ..errors import SettingsError, TrainingError
from ..text import printable

T = TypeVar("T")

#: In which launchers tell how many processes there are.
_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them; by default there is no other.

    Args:
        index: of this process.
        count: of all processes.
    """

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that reads the run's state, writes and reports."""
        return self.index == 0

    def share(self, batch_size: int) -> range:
        """The pictures of a batch that are this process's; the first has the most."""
        return range(self.index, batch_size, self.count)

    def check(self, batch_size: int) -> None:
        """
        Raises:
            SettingsError: a process would have nothing to do.
        """
        if batch_size < self.count:
            raise SettingsError(
                f"batch_size counts the pictures of all processes together: {batch_size} cannot be shared by "
                f"{self.count}; set it to {self.count} or more (lower accumulation instead), or start fewer processes"
            )

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""

    def of_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the first process; it is called there only, and what it raises, all raise."""
        return make()

    def check_same(self, values: Mapping[str, Any]) -> None:
        """
        Raises:
            TrainingError: something has another value in another process; it says what.
        """


ALONE = Ranks()


class Processes(Ranks):
    """Several, connected by torch's process group.

    Every method but :meth:`share` and :meth:`check` is called by all of them, and waits for the others.

    Raises:
        TrainingError: another process has ended.
    """

    def add(self, tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.detach().reshape(-1).float().cpu() for tensor in tensors])
        with _connected():
            torch.distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def of_first(self, make: Callable[[], T]) -> T:
        found: list[Any] = [None, None]
        if self.first:
            try:
                found[0] = make()
            except Exception as error:  # whatever it is, the others must not wait for ever
                found[1] = error
        with _connected():
            torch.distributed.broadcast_object_list(found)
        if found[1] is not None:
            raise found[1]
        return found[0]  # type: ignore[no-any-return]

    def check_same(self, values: Mapping[str, Any]) -> None:
        found: list[Any] = [None] * self.count
        with _connected():
            torch.distributed.all_gather_object(found, dict(values))
        for index, other in enumerate(found):
            for name, value in found[0].items():
                if other.get(name) != value:
                    raise TrainingError(
                        f"the processes do not train the same: {name} is {value!r} in the first and "
                        f"{other.get(name)!r} in number {index + 1}; give all of them the same files and settings"
                    )


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return any(os.environ.get(name, "1") not in ("", "1") for name in _COUNTS)


@contextmanager
def joined(cpu: bool) -> Iterator[Ranks]:
    """The processes that a launcher started this one with; on a GPU each gets a device of its own.

    Args:
        cpu: train on the processor.
    Raises:
        SettingsError: accelerate is not installed. TrainingError: another process cannot be reached.
    """
    if not launched():
        yield ALONE
        return
    try:
        from accelerate import PartialState
    except ModuleNotFoundError as error:
        raise SettingsError("several processes need accelerate; install it: pip install accelerate") from error
    with _connected():
        state = PartialState(cpu=cpu, backend="gloo")
    try:
        yield Processes(state.process_index, state.num_processes)
    finally:
        state.destroy_process_group()


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = printable((str(error).splitlines() or [type(error).__name__])[0])
        raise TrainingError(f"another process of the run has ended or cannot be reached ({reason})") from error

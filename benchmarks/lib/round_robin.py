# SPDX-License-Identifier: GPL-3.0-or-later
"""Several training runs in one process, a step at a time in turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from benchmarks.lib.timing import Timing

OnStep = Callable[[], None]


class _Stop(Exception):
    """Ends a run that has been measured."""


class RoundRobin:
    """Each run has a thread of its own and only goes on when it is its turn.

    Args:
        runs: each prepares, calls its argument once when ready for the first step, and then after every step.
        steps: to time of each, after ``warmup`` that are not counted.
    """

    def __init__(self, runs: Mapping[str, Callable[[OnStep], None]], steps: int, warmup: int = 1) -> None:
        self.runs, self.steps, self.warmup = runs, steps, warmup
        self.seconds: dict[str, list[float]] = {name: [] for name in runs}
        self._condition = threading.Condition()
        self._queue = list(runs)
        self._error: BaseException | None = None

    def measure(self) -> dict[str, Timing]:
        threads = [threading.Thread(target=self._run, args=(name,), name=name) for name in self.runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error
        return {name: Timing(values[self.warmup :]) for name, values in self.seconds.items()}

    def _run(self, name: str) -> None:
        started: float | None = None

        def on_step() -> None:
            nonlocal started
            if started is not None:
                self.seconds[name].append(time.perf_counter() - started)
                if len(self.seconds[name]) == self.warmup + self.steps:
                    raise _Stop
            self._pass_on(name)
            self._wait_for(name)
            started = time.perf_counter()

        self._wait_for(name)
        try:
            self.runs[name](on_step)
        except _Stop:
            pass
        except BaseException as error:
            self._error = error
        with self._condition:
            self._queue.remove(name)
            self._condition.notify_all()

    def _wait_for(self, name: str) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._queue[0] == name or self._error is not None)
            if self._error is not None:
                raise _Stop

    def _pass_on(self, name: str) -> None:
        with self._condition:
            self._queue.remove(name)
            self._queue.append(name)
            self._condition.notify_all()

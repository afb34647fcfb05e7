# SPDX-License-Identifier: GPL-3.0-or-later
"""A ComfyUI with the pack in a process of its own, for tests that kill it: every job runs in a child forked for it.

    python -m tests.host.worker FOLDER

It reads jobs, a line of JSON each: ``{"job": "save", …}``. A child prints what it does, a line of JSON each time, and
the parent ``{"pid": …}`` before and ``{"ended": <exit code or minus signal>}`` after it. One thread: a pool of threads
does not outlive a fork.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file

from tests.host.conftest import conditioning, in_words, latents
from tests.hosting import load_host

PRESET = "sd15-min"
#: Everything that decides a result, with what a state must remember: schedule, accumulation, moments of both kinds.
SETTINGS = {
    "rotation_lr": 1e-3, "shift_lr": 1e-3, "loss": "dco", "seed": 5, "accumulation": 2, "schedule": "cosine",
    "warmup_steps": 2,
}  # fmt: skip
#: Seconds that a job without an end goes on, should nobody kill it.
ENDLESS = 60.0
NOBODY = 65534

Say = Callable[..., None]
JOBS: dict[str, Callable[..., None]] = {}


def job(function: Callable[..., None]) -> Callable[..., None]:
    JOBS[function.__name__] = function
    return function


@job
def train(
    host: SimpleNamespace, say: Say, prefix: str, steps: int, continue_from: str = "(none)",
    state_minutes: float = 1e-9, save_every: int = 0, last: str = "", **settings: Any,
) -> None:  # fmt: skip
    """A training; ``last`` names something that happens after its last step."""
    training, config = host.core("host.training"), host.core("training.settings")

    def on_step(progress: Any) -> None:
        say(step=progress.step)
        if progress.step == steps and last:
            HAPPENINGS[last](host)

    data = training.TrainingData([latents(host.trained, 3)], [conditioning(PRESET)])
    states: list[dict[str, Any]] = []
    options = training.RunOptions(
        filename_prefix=prefix, state_minutes=state_minutes, continue_from=continue_from, save_every=save_every,
        on_step=on_step, live=host.core("host.training.live").Live(states.append),
    )  # fmt: skip
    chosen = config.TrainSettings(steps=steps, **{**SETTINGS, **settings})
    with torch.inference_mode():
        result = training.train_in_graph(host.trained, data, chosen, options)
    say(saved=result.saved_name, identity=result.adapter.identity(), losses=result.losses, warning=result.warning,
        shown=in_words(states[-1]))  # fmt: skip


def no_more_bytes(host: SimpleNamespace) -> None:
    """No file can grow any more: a full disk everywhere."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def folders_without_permission(host: SimpleNamespace) -> None:
    """The model folders belong to somebody else now, as a network share may; the temporary folder is everybody's."""
    become_nobody(host, writable=["temp"])


HAPPENINGS = {function.__name__: function for function in (no_more_bytes, folders_without_permission)}


def become_nobody(host: SimpleNamespace, writable: list[str]) -> None:
    for folder in (host.base, *(path for path in host.base.rglob("*") if path.is_dir())):
        folder.chmod(0o777 if folder.name in writable else 0o555)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


@job
def save(host: SimpleNamespace, say: Say) -> None:
    folders, adapter = host.core("host.folders"), example(host)
    for _ in endlessly(say):
        folders.save_adapter(adapter, "killed/save")


@job
def merge(host: SimpleNamespace, say: Say) -> None:
    folders, method = host.core("host.folders"), host.core("merge").merge
    adapter = example(host)
    for _ in endlessly(say):
        folders.save_adapter(method(adapter, adapter, 0.5, 0.25), "killed/merge")


@job
def cache(host: SimpleNamespace, say: Say) -> None:
    """Weights decomposed and kept; emptied when it is all there, so that there is always something to write."""
    store, base = host.core("host.spectra").store(), host.core("host.base")
    names = list(base.layer_shapes(host.trained))[:12]
    for i in endlessly(say):
        if i % len(names) == 0:
            store.clear_memory()
            for path in store.folder.glob("*.safetensors"):
                path.unlink()
        store.get(base.base_weight(host.trained, names[i % len(names)]), ("svd", "qr")[i // len(names) % 2])


@job
def check(host: SimpleNamespace, say: Say) -> None:
    """Load everything there is, as it would be used; raises where something is not whole."""
    folders, states = host.core("host.folders"), host.core("host.training.states")
    names = folders.adapter_names()
    for name in names:
        folders.load_adapter(name)
    choices = [choice for choice in states.choices() if choice.startswith("unfinished")]
    options = host.core("host.training").RunOptions
    steps = [states.Start.chosen(options(continue_from=choice)).state.step for choice in choices]
    cached = list(host.core("host.spectra").store().folder.glob("*.safetensors"))
    for path in cached:
        load_file(path)
    say(adapters=names, states=choices, steps=steps, cached=len(cached))


@job
def save_at_once(host: SimpleNamespace, say: Say, processes: int, count: int) -> None:
    """Several ComfyUIs, one folder, one name."""
    folders, adapter = host.core("host.folders"), example(host)
    start = time.monotonic() + 0.5
    children = []
    for _ in range(processes):
        if not (pid := os.fork()):
            time.sleep(max(0.0, start - time.monotonic()))
            for _ in range(count):
                say(saved=folders.save_adapter(adapter, "together"))
            os._exit(0)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0


@job
def as_nobody(host: SimpleNamespace, say: Say) -> None:
    """All that is written, by a user who may write nowhere."""
    folders, states = host.core("host.folders"), host.core("host.training.states")
    adapter, store, weight = example(host), host.core("host.spectra").store(), host.core("base_weight").BaseWeight
    become_nobody(host, writable=[])
    for attempt in (folders.save_adapter, folders.keep_adapter):
        try:
            attempt(adapter, "mine")
        except host.core("errors").SodaError as error:
            say(refused=str(error))
    try:
        folders.check_writable("mine")
    except host.core("errors").SodaError as error:
        say(refused=str(error))
    file = states.Start.chosen(host.core("host.training").RunOptions()).file
    state = host.core("training.state").RunState(host.core("training.settings").TrainSettings(), {}, {}, {})
    say(state=file.write(state))
    file.discard()
    say(decomposed=list(store.get(weight(torch.randn(5, 4)), "svd").S.shape), listed=folders.adapter_names())


def endlessly(say: Say):
    end, i = time.monotonic() + ENDLESS, 0
    while time.monotonic() < end:
        say(round=i)
        yield i
        i += 1


def example(host: SimpleNamespace) -> Any:
    """An adapter to save, of some size."""
    layer, adapter = host.core("layer").SodaLayer, host.core("adapter").SodaAdapter
    return adapter(
        {f"x.{i}": layer("svd", [torch.eye(48), torch.eye(40)], torch.ones(64)) for i in range(6)}, {"title": "x"}
    )


def main() -> None:
    channel = os.dup(1)
    os.dup2(2, 1)  # whatever else is printed goes to the log
    torch.set_num_threads(1)
    host = load_host(Path(sys.argv[1]))
    host.trained = host.model(PRESET)

    def say(**said: Any) -> None:
        os.write(channel, (json.dumps(said) + "\n").encode())

    say(ready=True)
    for line in sys.stdin:
        arguments = json.loads(line)
        if not (pid := os.fork()):
            code = 1
            # makes torch's own pool anew; threads of autograd that find the parent's at the same time would abort
            torch.set_num_threads(1)
            try:
                JOBS[arguments.pop("job")](host, say, **arguments)
                code = 0
            except BaseException as error:
                traceback.print_exc()
                say(error=f"{type(error).__name__}: {error}")
            finally:
                os._exit(code)
        say(pid=pid)
        say(ended=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""The training loop of the demo's base, and its pictures."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from testbed import model_files
from testbed.paths import ROOT, free_port
from testbed.pretrain.compute import Compute
from testbed.pretrain.data import Stream, drawn, pictures, scenes_of
from testbed.pretrain.loop import PLATEAU, STATE, PretrainSettings, finished, fit, latest, progress
from testbed.world.vocabulary import HELD_OUT_STYLES, SUBJECTS

SETTINGS = PretrainSettings(steps=9, lr=0.05, batch=2, decay=3, warmup=2, ema=0.9, look_every=4)
FLOAT32 = Compute(torch.device("cpu"))


def run(folder, settings: PretrainSettings = SETTINGS, stop_at: int | None = None) -> dict[str, torch.Tensor]:
    """Train a toy; ``stop_at``: interrupt it before that step."""
    torch.manual_seed(0)
    module = nn.Linear(4, 3)

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        return (module(torch.randn(settings.batch, 4, generator=generator)) - 1).square().mean()

    fit(module, loss_of, settings, folder, lambda _: {"answer": 42.0}, FLOAT32)
    return finished(folder)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stop_at", [2, 6, 8])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, stop_at: int) -> None:
    settings = replace(SETTINGS, save_seconds=0)  # after every step
    whole = run(tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", settings, stop_at)
    assert progress(tmp_path / "parts" / STATE) == {"step": stop_at, "samples": 2 * stop_at, "steps": 9}
    assert same(run(tmp_path / "parts", settings), whole)


def test_a_longer_plan_goes_on_before_the_rate_went_down(tmp_path) -> None:
    longer = replace(SETTINGS, steps=14)
    run(tmp_path / "twice")
    assert progress(tmp_path / "twice" / PLATEAU)["step"] == 6
    assert same(run(tmp_path / "twice", longer), run(tmp_path / "once", longer))


def test_what_is_settled_keeps_its_averages_while_the_rate_falls(tmp_path) -> None:
    settings = replace(SETTINGS, settled="bias", save_seconds=0)
    whole = run(tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", settings, stop_at=6)
    averages = finished(tmp_path / "parts")  # as they were where the rate began to fall
    assert torch.equal(whole["bias"], averages["bias"]) and not torch.equal(whole["weight"], averages["weight"])
    assert same(run(tmp_path / "parts", settings), whole)


#: A process of its own beside this one, in which ``tests`` could be another program's.
RANKED = """
import sys, torch
from pathlib import Path
from tests.testbed.test_pretrain import run
run(Path(sys.argv[1]))
torch.distributed.destroy_process_group()
"""


def test_two_processes_train_as_one_that_takes_the_mean_of_their_losses(tmp_path) -> None:
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RANKED, str(tmp_path / "two")]
    ranks = [
        subprocess.Popen(command, cwd=ROOT, env=os.environ | together | {"RANK": str(number)}) for number in range(2)
    ]
    assert [rank.wait() for rank in ranks] == [0, 0]
    torch.manual_seed(0)
    module = nn.Linear(4, 3)

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        batches = [torch.randn(2, 4, generator=torch.Generator().manual_seed(2 * step + rank)) for rank in range(2)]
        return sum((module(batch) - 1).square().mean() for batch in batches) / 2

    fit(module, loss_of, SETTINGS, tmp_path / "one", lambda _: {}, FLOAT32)
    two, one = finished(tmp_path / "two"), finished(tmp_path / "one")
    assert all(torch.allclose(two[name], one[name], atol=1e-6) for name in one)
    assert progress(tmp_path / "two" / STATE)["samples"] == 2 * progress(tmp_path / "one" / STATE)["samples"]


def test_what_is_not_trained_here_is_what_is_shipped(tmp_path) -> None:
    shipped = latest(tmp_path, "classifier")
    assert same(shipped, model_files.load(model_files.CLASSIFIER))
    (tmp_path / "classifier").mkdir()
    run(tmp_path / "classifier")
    assert latest(tmp_path, "classifier").keys() == {"weight", "bias"}


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [SETTINGS.lr_at(step) for step in range(SETTINGS.steps)]
    assert rates[0] < rates[1] == SETTINGS.lr == rates[5] == rates[6] > rates[7] > rates[8] > 0


def test_a_finished_run_is_left_alone(tmp_path) -> None:
    first = run(tmp_path)
    assert same(run(tmp_path, stop_at=0), first)


def test_pictures_are_the_same_in_bulk_and_in_parts(tmp_path) -> None:
    stream = Stream("some", seed=7)
    bulk, scenes = pictures(stream, 130, tmp_path)
    assert torch.equal(bulk[64:], drawn(stream, 64, 66))
    assert scenes == list(itertools.islice(scenes_of(stream), 130)) == pictures(stream, 130, tmp_path)[1]
    assert not {s.glyph for s in scenes} & set(SUBJECTS) and not {s.style for s in scenes} & set(HELD_OUT_STYLES)

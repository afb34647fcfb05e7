# SPDX-License-Identifier: GPL-3.0-or-later
"""``accelerate launch -m soda_core train``: several real processes, connected by gloo, make one adapter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import torch

from soda_core import SodaAdapter

from .processes import ROOT, Running, train_command
from .test_command import QUICK, checkpoint, pictures  # noqa: F401  (fixtures)

pytestmark = pytest.mark.host

pytest.importorskip("accelerate")

FLAGS = (*QUICK, "--train", "rotation only", "--loss", "dco", "--dco-beta", 10, "--out", "fox", "--json")


def files(base: Path) -> list[str]:
    return sorted(path.name for path in (base / "models" / "soda").rglob("*.safetensors"))


def states(base: Path) -> list[Path]:
    return sorted((base / "user").rglob("*soda_states/*.safetensors"))


def test_two_processes_with_one_picture_each_are_one_with_two(checkpoint, pictures, tmp_path) -> None:  # noqa: F811
    made, answers = [], []
    for processes in (1, 2):
        base = tmp_path / str(processes)
        flags = (*FLAGS, "--steps", 4, "--batch-size", 2, "--save-every", 2)
        command = train_command(base, checkpoint, pictures, *flags, processes=processes)
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
        assert files(base) == ["fox-step00002_00001_.safetensors", "fox_00001_.safetensors"], "the first alone writes"
        made.append(SodaAdapter.load(answers[-1]["file"]))
    alone, shared = made
    assert [answer["processes"] for answer in answers] == [1, 2]
    assert answers[0]["loss"] == pytest.approx(answers[1]["loss"], rel=1e-5)
    own = {"date": "", "thumbnail": ""}
    assert {**alone.metadata, **own} == {**shared.metadata, **own}
    for name, layer in alone.layers.items():
        for R, other in zip(layer.single.factors, shared.layers[name].single.factors, strict=True):
            moved = (R - torch.eye(len(R))).norm()
            # sums are rounded in another order, which Adam's division lets grow where a gradient is next to nothing
            assert moved > 1e-3 and (R - other).norm() < 1e-2 * moved, name


def ranks(running: Running) -> dict[int, psutil.Process]:
    """The processes of a run by rank."""
    children = psutil.Process(running.process.pid).children(recursive=True)
    return {int(child.environ()["RANK"]): child for child in children if "soda_core" in child.cmdline()}


@pytest.mark.parametrize("end", ["a process dies", "ctrl-c"])
def test_a_lost_process_and_a_cancel_keep_what_was_trained(checkpoint, pictures, tmp_path, end) -> None:  # noqa: F811
    base = tmp_path / "base"
    command = train_command(base, checkpoint, pictures, *FLAGS, "--steps", 100_000, "--batch-size", 2, processes=2)
    with Running(command) as running:
        running.wait_for("SODA: step")
        if end == "ctrl-c":  # a terminal sends it to all of them
            os.killpg(running.process.pid, signal.SIGINT)
        else:
            ranks(running)[1].kill()
        code, _ = running.end()
    assert code != 0
    (name,) = files(base)
    assert name == "fox-interrupted_00001_.safetensors", running.log
    steps = SodaAdapter.load(base / "models" / "soda" / name).metadata["steps"]
    (state,) = states(base)
    assert steps > 0 and f"adapter of step {steps} is saved as {name}" in running.log
    if end == "a process dies":
        more = ("--steps", steps + 1, "--continue-from", f"unfinished: {state.stem}")
        command = train_command(base, checkpoint, pictures, *FLAGS, "--batch-size", 2, *more)
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, "one process goes on where two stopped: " + done.stderr
        assert SodaAdapter.load(json.loads(done.stdout)["file"]).metadata["steps"] == steps + 1


def test_a_process_with_nothing_to_do_is_refused(checkpoint, pictures, tmp_path) -> None:  # noqa: F811
    command = train_command(tmp_path / "base", checkpoint, pictures, *FLAGS, "--steps", 1, processes=2)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode != 0 and "1 cannot be shared by 2; set it to 2 or more" in done.stderr
    assert not files(tmp_path / "base")

# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing is lost: processes killed at any moment, full disks, folders of somebody else, several on one folder.

``SODA_KILLS`` sets how often a process is killed in each of the two tests that do so.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..hosting import ROOT

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="its processes are forked"),
]
as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be somebody else")
KILLS = int(os.environ.get("SODA_KILLS", "0"))


class Worker:
    """The process of :mod:`.worker`, and the job it is at."""

    def __init__(self, base: Path) -> None:
        self.base, self.log = base, base / "worker.log"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.host.worker", str(base)], cwd=ROOT, env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self.read("ready")

    def start(self, job: str, **arguments: Any) -> None:
        self.process.stdin.write(json.dumps({"job": job, **arguments}) + "\n")
        self.process.stdin.flush()
        self.before: list[dict[str, Any]] = []
        self.pid = self.read("pid", keep=self.before)

    def read(self, key: str, keep: list[dict[str, Any]] | None = None) -> Any:
        """What is said of ``key`` next; other lines go to ``keep``."""
        while line := self.process.stdout.readline():
            said = json.loads(line)
            if key in said:
                return said[key]
            assert "ended" not in said, f"the job ended with {said} before {key}: {self.log.read_text()[-3000:]}"
            if keep is not None:
                keep.append(said)
        raise AssertionError(f"the worker has died: {self.log.read_text()[-3000:]}")

    def run(self, job: str, **arguments: Any) -> list[dict[str, Any]]:
        """Everything that a job says until it ends well."""
        self.start(job, **arguments)
        code = self.read("ended", keep=self.before)
        assert code == 0, f"{self.before[-1:]} {self.log.read_text()[-3000:]}"
        return self.before

    def refuses(self, job: str, **arguments: Any) -> str:
        """Why a job fails."""
        self.start(job, **arguments)
        assert self.read("ended", keep=self.before) == 1
        return self.before[-1]["error"]

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert self.read("ended") == -signal.SIGKILL

    def check(self) -> dict[str, Any]:
        """Everything on disk is whole."""
        return self.run("check")[-1]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH is not set; `python dev.py test` sets it")
    folder = Path(tempfile.mkdtemp(prefix="soda-crashes-"))  # (pytest's own folders are closed to other users)
    folder.chmod(0o755)
    worker = Worker(folder)
    try:
        yield worker
    finally:
        worker.process.stdin.close()
        worker.process.wait(90)
        shutil.rmtree(folder)


def test_a_killed_run_goes_on_bit_for_bit(worker) -> None:
    """Killed again and again, at steps and between them, it ends as the run that nobody touched."""
    draw = random.Random(7)
    kills = [draw.randint(1, 3) for _ in range(KILLS or 20)]
    steps = 5 * sum(kills) + 10  # (a killed run may be some steps further than was heard of it, never at its end)
    whole = worker.run("train", prefix="whole", steps=steps, state_minutes=0)[-1]
    assert worker.check()["states"] == []
    done, choice = 0, "(none)"
    for further in kills:
        worker.start("train", prefix="cut", steps=steps, continue_from=choice)
        while worker.read("step") < done + further:
            pass
        time.sleep(0.05 * draw.random())
        worker.kill()
        left = worker.check()
        (choice,), (step,) = left["states"], left["steps"]
        assert choice.startswith("unfinished: cut ") and done + further <= step < steps
        done = step
    rest = worker.run("train", prefix="cut", steps=steps, continue_from=choice)
    assert [said["step"] for said in rest if "step" in said] == list(range(done + 1, steps + 1))
    assert rest[-1]["identity"] == whole["identity"] and rest[-1]["losses"] == whole["losses"]
    after = worker.check()
    assert after["states"] == [] and rest[-1]["saved"] in after["adapters"]
    other = worker.run("train", prefix="other", steps=steps, seed=6)[-1]
    assert other["identity"] != whole["identity"], "(equal for everything would prove nothing)"


def test_whatever_is_killed_leaves_only_whole_files(worker) -> None:
    draw = random.Random(11)
    soda = worker.base / "models" / "soda" / "killed"
    partial = cached = 0
    for n in range(KILLS or 50):
        job = ("save", "cache", "merge", "train")[n % 4]
        training = {"prefix": "killed/train", "steps": 1000, "save_every": 1} if job == "train" else {}
        worker.start(job, **training)
        worker.read("step" if training else "round")
        time.sleep(0.4 * draw.random())
        worker.kill()
        left = worker.check()
        assert not any("partial" in name for name in left["adapters"])
        partial += len(list(soda.glob(".*.partial")))
        cached += left["cached"]
        if job == "train":
            assert any("killed/train-step" in name for name in left["adapters"]) and len(left["states"]) <= 10
        shutil.rmtree(soda, ignore_errors=True)
    assert partial and cached, "no kill met a file half-written: they prove nothing"


def test_several_processes_never_overwrite_each_other(worker) -> None:
    said = worker.run("save_at_once", processes=2, count=40)
    names = sorted(line["saved"] for line in said)
    assert names == [f"together_{i:05}_.safetensors" for i in range(1, 81)]
    assert sorted(p.name for p in (worker.base / "models" / "soda").glob("together*")) == names
    assert not list((worker.base / "models" / "soda").glob(".together*"))


class TestAFullDisk:
    def test_it_is_found_out_before_the_first_step(self, worker) -> None:
        soda = worker.base / "models" / "soda"
        (soda / "full").mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", soda / "full"], capture_output=True
        ).returncode:
            pytest.skip("this machine mounts no small disk; a limit of size in its place is the next test")
        try:
            error = worker.refuses("train", prefix="full/x", steps=2)
            assert "SodaError: cannot write 'full/x-interrupted': No space left" in error
            assert not any("step" in said for said in worker.before)
            assert list((soda / "full").iterdir()) == []
        finally:
            subprocess.run(["umount", soda / "full"], check=True)
            (soda / "full").rmdir()

    def test_what_is_trained_stays_in_the_graph(self, worker) -> None:
        """Everything is full after the last step: soda folders, temporary folder, states."""
        result = worker.run("train", prefix="late", steps=2, last="no_more_bytes")[-1]
        assert result["saved"] == "" and len(result["losses"]) == 2
        assert "could not be saved" in result["warning"] and "File too large" in result["warning"]
        assert result["shown"] == result["warning"]
        assert not any("late" in name for name in worker.check()["adapters"])


@as_root
class TestFoldersOfSomebodyElse:
    @pytest.fixture(autouse=True)
    def given_back(self, worker) -> Iterator[None]:
        yield
        for path in worker.base.rglob("*"):
            if path.is_dir():
                path.chmod(0o755)

    def test_everything_that_is_written_says_so_or_goes_without(self, worker) -> None:
        said = worker.run("as_nobody")
        refused = [line["refused"] for line in said if "refused" in line]
        assert len(refused) == 3 and all("cannot write 'mine': Permission denied" in text for text in refused)
        assert {"state": False} in said
        assert said[-1]["decomposed"] == [4] and isinstance(said[-1]["listed"], list)

    def test_a_finished_training_goes_to_the_temporary_folder(self, worker) -> None:
        result = worker.run("train", prefix="moved", steps=2, last="folders_without_permission")[-1]
        path = Path(result["saved"])
        assert path.parent == worker.base / "temp" and path.is_file()
        assert str(path) in result["warning"] and result["shown"] == result["warning"]

# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs on the GPU machine, in order of worth, and what became of it. Standard library.

Every part is a process of its own, so that none takes another with it, with a time limit. Its row is written as soon as
it is known: the values it printed last, or the end of what it said. A part that failed is not tried again; one that ran
out of time is, and goes on where it was if it can.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.gpu.pack import HOST, SITE
from testbed.paths import ROOT

OK, FAILED, OUT_OF_TIME = "ok", "failed", "out of time"
PIECE = 15 * 2**20  #: bytes of a file on its way back
SAID = 4000  #: characters of a failed part's last words

CHECKS = ("device", "equals_cpu", "repeats", "loads", "dtypes", "hooks", "checkpointing", "cancel", "out_of_memory")
METHODS = ("LoRA rank 4, our loop", "rotation", "rotation + QR shift", "rotation + SVD shift")


@dataclass(frozen=True)
class Part:
    """
    Args:
        command: arguments of Python.
        toy: the same for a rehearsal on the CPU.
        seconds: after which it is ended.
    """

    name: str
    command: Sequence[str]
    toy: Sequence[str]
    seconds: float = 120


def parts(work: Path) -> list[Part]:
    """All of them; ``work`` keeps the states of long ones."""
    listed = [Part(f"check {name}", *2 * (("-m", "testbed.gpu.checks", name),), seconds=240) for name in CHECKS]
    pretrain = ("-m", "testbed.pretrain")
    base = ("--work", str(work / "pretrain"))
    # ten times the samples in as many steps; at toy size only what it stands on, as its pictures alone take an hour
    listed.append(Part("base", (*pretrain, "model", "--batch", "240", *base), (*pretrain, "progress", *base), 540))
    listed.append(Part("base, as shipped", (*pretrain, "export", *base), (*pretrain, "--help")))
    memory = ("-m", "benchmarks.memory", "--one")
    toy = ("sd15-min", "64")
    for preset, side in (("sd15-full", "512"), ("sdxl-full", "1024")):
        for method in METHODS:
            command, small = (*memory, "train", preset, side, method), (*memory, "train", *toy, method)
            listed.append(Part(f"train {preset} {side} px, {method}", command, small, 150))
    for adapter in ("LoRA rank 8", "SVD", "QR"):
        command, small = (*memory, "load", "sd15-full", "512", adapter), (*memory, "load", *toy, adapter)
        listed.append(Part(f"load sd15-full, {adapter}", command, small, 150))
    quality = ("-m", "benchmarks.quality")
    places = ("--work", str(work / "quality"), "--out", str(work / "quality" / "report"))
    listed.append(Part("quality", (*quality, "--hours", "0.14", *places), (*quality, "--help"), 560))
    return listed


class Journal:
    """A row of JSON for each part that ran, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text("utf-8").splitlines()] if self.path.exists() else []

    def done(self) -> set[str]:
        """Names of parts that are not tried again."""
        return {row["part"] for row in self.rows() if row["state"] != OUT_OF_TIME}

    def add(self, row: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def environment(packed: Path, work: Path, rehearse: bool) -> dict[str, str]:
    """Variables for parts: the packed host, and no environment of this project's."""
    path = [str(ROOT), str(packed / SITE)]
    if rehearse:  # first, as its sitecustomize.py hides what that machine lacks
        path.insert(0, str(Path(__file__).with_name("rehearsal")))
    return {
        **os.environ, "COMFYUI_PATH": str(packed / HOST), "PYTHONPATH": os.pathsep.join(path),
        "SODA_DEV_CACHE": str(work / "cache"), "OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


def run_part(part: Part, command: Sequence[str], env: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """Its row."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=env, text=True, errors="replace", start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=seconds)
        state = FAILED if process.returncode else OK
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with what it started
        said, _ = process.communicate()
        state = OUT_OF_TIME
    row = {"part": part.name, "state": state, "seconds": round(time.monotonic() - started, 1)}
    if state != OK:
        return row | {"said": said[-SAID:]}
    return row | _printed(said)


def _printed(said: str) -> dict[str, Any]:
    """What a part measured: a JSON object in its last line, if there is one."""
    last = said.strip().rpartition("\n")[2]
    try:
        values = json.loads(last)
    except ValueError:
        return {"said": last}
    return values if isinstance(values, dict) else {"said": last}


def run_all(chosen: Sequence[Part], packed: Path, work: Path, out: Path, minutes: float, rehearse: bool) -> int:
    """What is not done, while there is time; returns how many parts failed.

    Args:
        out: gets the rows so far and, in pieces, what was trained, after every part.
    """
    ends = time.monotonic() + 60 * minutes
    journal, env = Journal(work / "results.jsonl"), environment(packed, work, rehearse)
    failed = 0
    for part in chosen:
        if part.name in journal.done():
            print(f"{part.name}: done before", flush=True)
            continue
        left = ends - time.monotonic()
        if left < 10:
            print("the time is up; the same command goes on", flush=True)
            break
        # a rehearsal may share its cores with anything, so its only limit is the time in all
        command, limit = (part.toy, left) if rehearse else (part.command, min(part.seconds, left))
        row = run_part(part, command, env, limit)
        journal.add(row | ({"rehearsal": True} if rehearse else {}))
        print(f"{part.name}: {row['state']} after {row['seconds']:.0f} s", flush=True)
        failed += row["state"] == FAILED
        bring_back(work, out)
    bring_back(work, out)
    return failed


def bring_back(work: Path, out: Path) -> None:
    """The rows, and the exported weights in pieces small enough: ``cat NAME.0 NAME.1 ... > NAME`` joins them."""
    out.mkdir(parents=True, exist_ok=True)
    if (work / "results.jsonl").exists():
        shutil.copyfile(work / "results.jsonl", out / "results.jsonl")
    for path in sorted((work / "pretrain" / "export").glob("*.safetensors")):
        data = path.read_bytes()
        for number, start in enumerate(range(0, len(data), PIECE)):
            (out / f"{path.name}.{number}").write_bytes(data[start : start + PIECE])
    report = work / "quality" / "report" / "quality.json"
    if report.exists():
        shutil.copyfile(report, out / report.name)

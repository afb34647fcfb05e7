# SPDX-License-Identifier: GPL-3.0-or-later
"""``soda train`` in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from testbed.paths import free_port

ROOT = Path(__file__).parents[2]
#: Seconds that anything may take on a busy machine.
PATIENCE = 900.0


def train_command(base: Path, checkpoint: Path, pictures: Path, *flags: object, processes: int = 1) -> list[str]:
    """With ComfyUI's folders in ``base``; of several processes, by accelerate's launcher."""
    for folder in ("models/soda", "input", "output", "temp", "user", "custom_nodes"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    start = [sys.executable, "-m"]
    if processes > 1:
        # the launcher for GPUs: its one for processors starts a single process unless there is MPI
        plain = ("--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no")
        start += ["accelerate.commands.launch", "--multi_gpu", "--num_processes", processes, *plain,
                  "--main_process_port", free_port(), "-m"]  # fmt: skip
    given = ["soda_core", "train", "--host", os.environ["COMFYUI_PATH"], "--checkpoint", checkpoint, "--pictures",
             pictures, *flags, "--", "--cpu", "--base-directory", base]  # fmt: skip
    return [str(part) for part in (*start, *given)]


class Running:
    """A command while it runs, in a process group of its own; killed at the end if it is still there."""

    def __init__(self, command: list[str]) -> None:
        self.log = ""
        self._answer = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by __exit__)
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=self._answer, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.log += line

    def wait_for(self, text: str) -> None:
        """Until the log holds a text."""
        end = time.monotonic() + PATIENCE
        while text not in self.log:
            assert self.process.poll() is None and time.monotonic() < end, self.log
            time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        """Exit code, and the standard output."""
        code = self.process.wait(PATIENCE)
        self._reader.join(10)
        self._answer.seek(0)
        return code, self._answer.read()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
            self.process.wait()
        self._answer.close()

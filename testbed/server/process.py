# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's program: found, started, watched and ended."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.paths import free_port
from testbed.server.errors import ServerError

START_ATTEMPTS = 3  #: a free port can be taken by another program before the host binds it
TAIL_LINES = 40


def comfyui_path() -> Path:
    """Where the host's source is: the environment variable COMFYUI_PATH."""
    value = os.environ.get("COMFYUI_PATH")
    if not value:
        raise ServerError("COMFYUI_PATH is not set; point it to a ComfyUI folder (the one with main.py)")
    path = Path(value).expanduser().resolve()
    if not (path / "main.py").is_file():
        raise ServerError(f"COMFYUI_PATH is {path}, where there is no main.py")
    return path


class HostProcess:
    """One host that was launched; :func:`start` waits until it answers.

    Args:
        base: the folder to work in, also of its log.
        args: more command line options for the host.
        env: more environment variables.
    """

    def __init__(self, base: Path, args: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.log_path = base / "server.log"
        command = [
            sys.executable, str(comfyui_path() / "main.py"),
            "--base-directory", str(base),
            "--database-url", "sqlite:///:memory:",
            "--disable-api-nodes",
            "--disable-auto-launch",
            "--port", str(self.port),
            *args,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
        environment.pop("PYTHONPATH", None)  # the host must find its own modules, and ours only as its pack
        with open(self.log_path, "wb") as log:
            self._program = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=base, env=environment)

    @property
    def pid(self) -> int:
        return self._program.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What the host has printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    @property
    def log_tail(self) -> str:
        """The end of the log, to end a message with."""
        lines = self.log.splitlines()[-TAIL_LINES:]
        return "; the end of its log:\n" + "\n".join(f"    {line}" for line in lines)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._program.poll()

    def check_alive(self) -> None:
        if self.exit_code is not None:
            raise ServerError(f"ComfyUI ended with code {self.exit_code}{self.log_tail}")

    def answers(self, timeout: float) -> bool:
        """Wait until it answers, ends (False) or ``timeout`` seconds have passed (an error)."""
        deadline = time.monotonic() + timeout
        while self.exit_code is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/system_stats", timeout=5):
                return True
            time.sleep(0.2)
        if self.exit_code is None:
            raise ServerError(f"ComfyUI did not answer within {timeout:.0f} s{self.log_tail}")
        return False

    def stop(self) -> None:
        """End it. May be called twice."""
        if self.exit_code is not None:
            return
        self._program.terminate()
        try:
            self._program.wait(20)
        except subprocess.TimeoutExpired:
            self._program.kill()
            self._program.wait()


def start(base: Path, args: Sequence[str], env: Mapping[str, str] | None, timeout: float) -> HostProcess:
    """A host that answers; see :class:`HostProcess`.

    Raises:
        ServerError: when it does not come up within ``timeout`` seconds, with the end of its log.
    """
    for _ in range(START_ATTEMPTS):
        process = HostProcess(base, args, env)
        try:
            if process.answers(timeout):
                return process
        except BaseException:
            process.stop()
            raise
        if "address already in use" not in process.log.lower():
            break
    raise ServerError(f"ComfyUI ended with code {process.exit_code} at start{process.log_tail}")

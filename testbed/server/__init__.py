# SPDX-License-Identifier: GPL-3.0-or-later
"""A real ComfyUI without a window, for the demo and the tests.

    with Server() as server:
        server.add_checkpoint(path)
        entry = server.queue(server.convert(workflow))
        pictures = server.images(entry)

The host is the unmodified program at ``COMFYUI_PATH``, run with the Python that runs this file. It works in a folder
of its own (models, input, output, user, temp, custom_nodes with this pack): a user's installation is not touched.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from testbed.server.client import Client
from testbed.server.errors import PromptError, PromptInterrupted, ServerError
from testbed.server.files import HostFolder
from testbed.server.process import start

__all__ = ["PromptError", "PromptInterrupted", "Server", "ServerError"]


class Server(HostFolder, Client):
    """One running host: its folder, its process, and a client that talks to it.

    Args:
        args: more command line options for the host, such as ``["--novram"]``.
        base: the folder to work in, kept afterwards; without it a temporary one, removed on stop.
        cpu: pass ``--cpu``; None = where there is no CUDA device.
        env: more environment variables.
        pack: whether to install this pack.
        timeout: seconds the host may take to answer.

    Raises:
        ServerError: when the host does not come up, with the end of its log.
    """

    def __init__(
        self,
        args: Sequence[str] = (),
        *,
        base: Path | None = None,
        cpu: bool | None = None,
        env: Mapping[str, str] | None = None,
        pack: bool = True,
        timeout: float = 900,
    ) -> None:
        self._temporary = base is None
        folder = Path(tempfile.mkdtemp(prefix="soda-comfyui-")) if base is None else base.resolve()
        try:
            HostFolder.__init__(self, folder, pack)
            on_cpu = not has_cuda() if cpu is None else cpu
            Client.__init__(self, start(folder, [*(["--cpu"] if on_cpu else []), *args], env, timeout))
        except BaseException:
            self._remove(folder)
            raise
        try:
            self._check_pack()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the host; a temporary folder goes with it. May be called twice."""
        self.process.stop()
        self._remove(self.base)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """What the host has printed so far."""
        return self.process.log

    def _check_pack(self) -> None:
        """The host goes on without a pack that it cannot import."""
        if any("IMPORT FAILED" in line and line.rstrip().endswith(str(self.pack)) for line in self.log.splitlines()):
            raise ServerError(f"ComfyUI could not import the pack{self.process.log_tail}")

    def _remove(self, folder: Path) -> None:
        if self._temporary:
            shutil.rmtree(folder, ignore_errors=True)


def has_cuda() -> bool:
    import torch  # slow to import and not needed where the caller says --cpu

    return torch.cuda.is_available()

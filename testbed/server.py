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

import asyncio
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
from PIL import Image

from testbed.paths import ROOT, free_port

PACK_NAME = "soda"
FOLDERS = ("models/checkpoints", "models/soda", "models/loras", "input", "output", "user", "temp", "custom_nodes")
START_ATTEMPTS = 3  # a free port can be taken by another program before the host binds it
TAIL_LINES = 40

OnProgress = Callable[[str, int, int], None]  #: node id, value, maximum
OnBinary = Callable[[bytes], None]  #: a binary websocket message: previews and texts on nodes
OnEvent = Callable[[str, dict[str, Any]], None]  #: type and data of any websocket message


class ServerError(RuntimeError):
    """The host did not start, died or refused a request; the message ends with its log."""


class PromptError(ServerError):
    """A prompt that the host refused, or that failed while running."""

    def __init__(self, message: str, *, node_id: str = "", node_type: str = "", exception_type: str = "") -> None:
        super().__init__(message)
        self.node_id, self.node_type, self.exception_type = node_id, node_type, exception_type


class PromptInterrupted(ServerError):
    """A prompt that was cancelled."""


def comfyui_path() -> Path:
    """Where the host's source is: the environment variable COMFYUI_PATH."""
    value = os.environ.get("COMFYUI_PATH")
    if not value:
        raise ServerError("COMFYUI_PATH is not set; point it to a ComfyUI folder (the one with main.py)")
    path = Path(value).expanduser().resolve()
    if not (path / "main.py").is_file():
        raise ServerError(f"COMFYUI_PATH is {path}, where there is no main.py")
    return path


def has_cuda() -> bool:
    import torch  # slow to import and not needed where the caller says --cpu

    return torch.cuda.is_available()


class Server:
    """One running host.

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
        timeout: float = 240,
    ) -> None:
        self.comfyui = comfyui_path()
        self._temporary = base is None
        self.base = Path(tempfile.mkdtemp(prefix="soda-comfyui-")) if base is None else Path(base).resolve()
        self.log_path = self.base / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self._args = [*(["--cpu"] if (not has_cuda() if cpu is None else cpu) else []), *args]
        self._env = {"OMP_WAIT_POLICY": "passive", "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
        self._object_info: dict[str, Any] | None = None
        try:
            self._lay_out(pack)
            self._start(timeout)
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

    # -------------------------------------------------------------------------------------------------- life cycle

    def _lay_out(self, pack: bool) -> None:
        for folder in FOLDERS:
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        if pack:
            link_or_copy(ROOT, self.base / "custom_nodes" / PACK_NAME)

    def _start(self, timeout: float) -> None:
        for attempt in range(1, START_ATTEMPTS + 1):
            self.port = free_port()
            command = [
                sys.executable, str(self.comfyui / "main.py"),
                "--base-directory", str(self.base),
                "--database-url", "sqlite:///:memory:",
                "--disable-api-nodes",
                "--disable-auto-launch",
                "--port", str(self.port),
                *self._args,
            ]  # fmt: skip
            with open(self.log_path, "wb") as log:
                env = {**os.environ, **self._env}
                env.pop("PYTHONPATH", None)  # the host must find its own modules, and ours only as its pack
                self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=self.base, env=env)
            deadline = time.monotonic() + timeout
            while self.process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    self._get("/system_stats", timeout=5)
                    return
                time.sleep(0.2)
            if self.process.poll() is None:
                raise ServerError(f"ComfyUI did not answer within {timeout:.0f} s{self._tail()}")
            if attempt == START_ATTEMPTS or "address already in use" not in self.log.lower():
                raise ServerError(f"ComfyUI ended with code {self.process.returncode} at start{self._tail()}")

    def _check_pack(self) -> None:
        """The host goes on without a pack that it cannot import."""
        folder = str(self.base / "custom_nodes" / PACK_NAME)
        if any("IMPORT FAILED" in line and line.rstrip().endswith(folder) for line in self.log.splitlines()):
            raise ServerError(f"ComfyUI could not import the pack{self._tail()}")

    def stop(self) -> None:
        """End the host; a temporary folder goes with it. May be called twice."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self._temporary:
            shutil.rmtree(self.base, ignore_errors=True)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What the host has printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def _tail(self) -> str:
        lines = self.log.splitlines()[-TAIL_LINES:]
        return "; the end of its log:\n" + "\n".join(f"    {line}" for line in lines)

    # ------------------------------------------------------------------------------------------------------- files

    def add_model(self, kind: str, path: Path, name: str | None = None) -> None:
        """Make a file available as ``models/<kind>/<name>``, without copying it where links are possible."""
        target = self.base / "models" / kind / (name or path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path, target)

    def add_checkpoint(self, path: Path, name: str | None = None) -> None:
        self.add_model("checkpoints", path, name)

    def add_input(self, path: Path, name: str | None = None) -> None:
        """Copy a file or a folder of pictures to ``input/<name>``."""
        target = self.base / "input" / (name or path.name)
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, target)

    @property
    def adapters(self) -> Path:
        """The folder where the pack saves adapters."""
        return self.base / "models" / "soda"

    # ---------------------------------------------------------------------------------------------------- requests

    def object_info(self, refresh: bool = False) -> dict[str, Any]:
        """Every node's sockets and widgets, as the host tells the front end; kept until ``refresh``."""
        if self._object_info is None or refresh:
            self._object_info = self._json("/object_info")
        return self._object_info

    def system(self) -> dict[str, Any]:
        """Versions and devices."""
        return self._json("/system_stats")

    def convert(self, workflow: Mapping[str, Any]) -> dict[str, Any]:
        """A workflow as the front end saves it, turned into the form that :meth:`queue` takes."""
        os.environ.setdefault("DO_NOT_TRACK", "1")  # before comfy-cli is imported: a demo and a test phone nobody
        from comfy_cli.workflow_to_api import convert_ui_to_api

        return convert_ui_to_api(dict(workflow), self.object_info())

    def submit(self, prompt: Mapping[str, Any], client_id: str = "", workflow: Mapping[str, Any] | None = None) -> str:
        """Queue a prompt and return its id at once.

        Args:
            workflow: the UI form, which the host keeps in the files it saves.

        Raises:
            PromptError: when the host refuses any part of it.
        """
        body: dict[str, Any] = {"prompt": prompt}
        if client_id:
            body["client_id"] = client_id
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        try:
            answer = self._json("/prompt", body)
        except _Refused as refused:
            raise self._refusal(prompt, refused.answer) from None
        if answer.get("node_errors"):  # the host runs the valid rest; a caller here wants all of it
            self._post(f"/api/jobs/{answer['prompt_id']}/cancel")
            raise self._refusal(prompt, answer)
        return str(answer["prompt_id"])

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The finished prompt's entry, or None while it waits or runs."""
        entry: dict[str, Any] | None = self._json(f"/history/{prompt_id}").get(prompt_id)
        return entry

    def wait(self, prompt_id: str, timeout: float = 3600) -> dict[str, Any]:
        """Wait for a submitted prompt by asking; returns its history entry. Raises as :meth:`queue`."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self._check_alive()
            if entry := self.history(prompt_id):
                return self._checked(entry)
            time.sleep(0.05)
        raise ServerError(f"prompt {prompt_id} did not end within {timeout:.0f} s{self._tail()}")

    def queue(
        self,
        prompt: Mapping[str, Any],
        on_progress: OnProgress | None = None,
        *,
        on_event: OnEvent | None = None,
        on_binary: OnBinary | None = None,
        workflow: Mapping[str, Any] | None = None,
        timeout: float = 3600,
    ) -> dict[str, Any]:
        """Run a prompt to its end, with progress from the websocket; returns its history entry.

        Raises:
            PromptError: naming node, type and exception when it is refused or fails.
            PromptInterrupted: when it was cancelled.
            ServerError: when the host dies or takes longer than ``timeout`` seconds.
        """
        return asyncio.run(self._queue(prompt, on_progress, on_event, on_binary, workflow, timeout))

    async def _queue(
        self,
        prompt: Mapping[str, Any],
        on_progress: OnProgress | None,
        on_event: OnEvent | None,
        on_binary: OnBinary | None,
        workflow: Mapping[str, Any] | None,
        timeout: float,
    ) -> dict[str, Any]:
        client_id = uuid.uuid4().hex
        deadline = time.monotonic() + timeout
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={client_id}", max_msg_size=0) as socket_,
        ):
            prompt_id = self.submit(prompt, client_id, workflow)
            while time.monotonic() < deadline:
                try:
                    message = await socket_.receive(timeout=2)
                except asyncio.TimeoutError:  # two types before Python 3.11
                    message = None
                if message is not None and message.type == aiohttp.WSMsgType.TEXT:
                    event = json.loads(message.data)
                    kind, data = event["type"], event.get("data", {})
                    if on_event:
                        on_event(kind, data)
                    if on_progress and kind == "progress":
                        on_progress(str(data.get("node")), int(data["value"]), int(data["max"]))
                    ended = kind == "executing" and data.get("node") is None and data.get("prompt_id") == prompt_id
                    if not ended:
                        continue
                elif message is not None and message.type == aiohttp.WSMsgType.BINARY:
                    if on_binary:
                        on_binary(message.data)
                    continue
                elif message is not None:
                    break  # closed: what has happened is in the history or the log
                self._check_alive()
                if entry := self.history(prompt_id):
                    return self._checked(entry)
        return self.wait(prompt_id, max(1.0, deadline - time.monotonic()))

    @property
    def busy(self) -> bool:
        """Whether a prompt runs or waits, whoever queued it."""
        return any(self._json("/queue").values())

    def finished(self) -> set[str]:
        """Ids of the prompts that have run, whoever queued them."""
        return set(self._json("/history"))

    def interrupt(self) -> None:
        """Cancel what is running."""
        self._post("/interrupt")

    def free(self) -> None:
        """Unload models and drop cached results, once the queue is idle."""
        self._post("/free", {"unload_models": True, "free_memory": True})

    def view(self, item: Mapping[str, str]) -> bytes:
        """A file named in a history entry."""
        query = {"filename": item["filename"], "subfolder": item.get("subfolder", ""), "type": item.get("type", "")}
        return self._get("/view?" + urllib.parse.urlencode(query))

    def images(self, entry: Mapping[str, Any], node_id: str | None = None) -> list[Image.Image]:
        """The pictures in a history entry, of all nodes or one."""
        outputs = entry["outputs"]
        chosen = outputs.values() if node_id is None else [outputs.get(node_id, {})]
        return [
            Image.open(io.BytesIO(self.view(item))).convert("RGB")
            for output in chosen
            for item in output.get("images", [])
        ]

    # ------------------------------------------------------------------------------------------------------ inside

    def _get(self, path: str, timeout: float = 60) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
            content: bytes = answer.read()
        return content

    def _post(self, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        request = urllib.request.Request(
            self.url + path, data=json.dumps(body or {}).encode(), headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def _json(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            return json.loads(self._get(path) if body is None else self._post(path, body))
        except urllib.error.HTTPError as error:
            content = error.read().decode(errors="replace")
            with contextlib.suppress(json.JSONDecodeError):
                raise _Refused(json.loads(content)) from None
            raise ServerError(f"{path} answered {error.code}: {content[:500]}{self._tail()}") from None
        except OSError as error:
            self._check_alive()
            raise ServerError(f"{path} cannot be reached: {error}{self._tail()}") from None

    def _check_alive(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            raise ServerError(f"ComfyUI ended with code {self.process.returncode}{self._tail()}")

    def _refusal(self, prompt: Mapping[str, Any], answer: Mapping[str, Any]) -> PromptError:
        error = answer.get("error") or {}
        lines = [error.get("message", "the prompt is not valid") if isinstance(error, dict) else str(error)]
        node_errors = answer.get("node_errors") or {}
        for node_id, node in node_errors.items():
            where = f"node {node_id} ({node.get('class_type')})"
            lines += [f"{where}: {detail['message']}: {detail['details']}" for detail in node.get("errors", [])]
        first = next(iter(node_errors), "")
        return PromptError("; ".join(lines), node_id=first, node_type=prompt.get(first, {}).get("class_type", ""))

    def _checked(self, entry: dict[str, Any]) -> dict[str, Any]:
        status = entry.get("status") or {}
        if status.get("status_str") == "success":
            return entry
        for kind, data in status.get("messages", []):
            if kind == "execution_interrupted":
                raise PromptInterrupted(f"cancelled in node {data.get('node_id')} ({data.get('node_type')})")
            if kind == "execution_error":
                raise PromptError(
                    f"node {data['node_id']} ({data['node_type']}) failed with {data['exception_type']}: "
                    f"{data['exception_message'].strip()}{self._tail()}",
                    node_id=str(data["node_id"]),
                    node_type=data["node_type"],
                    exception_type=data["exception_type"],
                )
        raise ServerError(f"the prompt ended with status {status.get('status_str')!r}{self._tail()}")


class _Refused(Exception):
    """An answer of 4xx or 5xx with JSON."""

    def __init__(self, answer: Any) -> None:
        super().__init__(str(answer))
        self.answer = answer if isinstance(answer, dict) else {"error": str(answer)}


def link_or_copy(source: Path, target: Path) -> None:
    """A symbolic link, or a copy where the system does not allow one. An existing target stays."""
    if target.exists():
        return
    try:
        target.symlink_to(source.resolve(), target_is_directory=source.is_dir())
    except OSError:
        if source.is_dir():
            ignored = shutil.ignore_patterns(".git", "__pycache__", "demo-output", "node_modules", ".venv")
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copyfile(source, target)

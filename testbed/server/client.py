# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user of a running host does: queue prompts, follow them, look at what came out."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import time
import urllib.parse
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
from PIL import Image

from testbed.server.connection import Connection, Refused
from testbed.server.errors import PromptError, PromptInterrupted, ServerError
from testbed.server.process import HostProcess

OnProgress = Callable[[str, int, int], None]  #: node id, value, maximum
OnBinary = Callable[[bytes], None]  #: a binary websocket message: previews and texts on nodes
OnEvent = Callable[[str, dict[str, Any]], None]  #: type and data of any websocket message


class Client:
    """Talks to one host, by requests and its websocket."""

    def __init__(self, process: HostProcess) -> None:
        self.process, self.url, self.connection = process, process.url, Connection(process)
        self._object_info: dict[str, Any] | None = None

    def object_info(self, refresh: bool = False) -> dict[str, Any]:
        """Every node's sockets and widgets, as the host tells the front end; kept until ``refresh``."""
        if self._object_info is None or refresh:
            self._object_info = self.connection.json("/object_info")
        return self._object_info

    def system(self) -> dict[str, Any]:
        """Versions and devices."""
        return self.connection.json("/system_stats")

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
            answer = self.connection.json("/prompt", body)
        except Refused as refused:
            raise _refusal(prompt, refused.answer) from None
        if answer.get("node_errors"):  # the host runs the valid rest; a caller here wants all of it
            self.connection.post(f"/api/jobs/{answer['prompt_id']}/cancel")
            raise _refusal(prompt, answer)
        return str(answer["prompt_id"])

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The finished prompt's entry, or None while it waits or runs."""
        entry: dict[str, Any] | None = self.connection.json(f"/history/{prompt_id}").get(prompt_id)
        return entry

    def wait(self, prompt_id: str, timeout: float = 3600) -> dict[str, Any]:
        """Wait for a submitted prompt by asking; returns its history entry. Raises as :meth:`queue`."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.process.check_alive()
            if entry := self.history(prompt_id):
                return _checked(entry, self.process.log_tail)
            time.sleep(0.05)
        raise ServerError(f"prompt {prompt_id} did not end within {timeout:.0f} s{self.process.log_tail}")

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
                with contextlib.suppress(asyncio.TimeoutError):  # two types before Python 3.11
                    message = await socket_.receive(timeout=2)
                    if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                        break  # closed: what has happened is in the history or the log
                    if not _passed_on(message, prompt_id, on_progress, on_event, on_binary):
                        continue
                self.process.check_alive()
                if entry := self.history(prompt_id):
                    return _checked(entry, self.process.log_tail)
        return self.wait(prompt_id, max(1.0, deadline - time.monotonic()))

    @property
    def busy(self) -> bool:
        """Whether a prompt runs or waits, whoever queued it."""
        return any(self.connection.json("/queue").values())

    def finished(self) -> set[str]:
        """Ids of the prompts that have run, whoever queued them."""
        return set(self.connection.json("/history"))

    def interrupt(self) -> None:
        """Cancel what is running."""
        self.connection.post("/interrupt")

    def free(self) -> None:
        """Unload models and drop cached results, once the queue is idle."""
        self.connection.post("/free", {"unload_models": True, "free_memory": True})

    def view(self, item: Mapping[str, str]) -> bytes:
        """A file named in a history entry."""
        query = {"filename": item["filename"], "subfolder": item.get("subfolder", ""), "type": item.get("type", "")}
        return self.connection.get("/view?" + urllib.parse.urlencode(query))

    def images(self, entry: Mapping[str, Any], node_id: str | None = None) -> list[Image.Image]:
        """The pictures in a history entry, of all nodes or one."""
        outputs = entry["outputs"]
        chosen = outputs.values() if node_id is None else [outputs.get(node_id, {})]
        return [
            Image.open(io.BytesIO(self.view(item))).convert("RGB")
            for output in chosen
            for item in output.get("images", [])
        ]


def _passed_on(
    message: aiohttp.WSMessage,
    prompt_id: str,
    on_progress: OnProgress | None,
    on_event: OnEvent | None,
    on_binary: OnBinary | None,
) -> bool:
    """Whether the message, which has been passed on, says that the prompt has ended."""
    if message.type == aiohttp.WSMsgType.BINARY:
        if on_binary:
            on_binary(message.data)
        return False
    event = json.loads(message.data)
    kind, data = event["type"], event.get("data", {})
    if on_event:
        on_event(kind, data)
    if on_progress and kind == "progress":
        on_progress(str(data.get("node")), int(data["value"]), int(data["max"]))
    return kind == "executing" and data.get("node") is None and data.get("prompt_id") == prompt_id


def _refusal(prompt: Mapping[str, Any], answer: Mapping[str, Any]) -> PromptError:
    error = answer.get("error") or {}
    lines = [error.get("message", "the prompt is not valid") if isinstance(error, dict) else str(error)]
    node_errors = answer.get("node_errors") or {}
    for node_id, node in node_errors.items():
        where = f"node {node_id} ({node.get('class_type')})"
        lines += [f"{where}: {detail['message']}: {detail['details']}" for detail in node.get("errors", [])]
    first = next(iter(node_errors), "")
    return PromptError("; ".join(lines), node_id=first, node_type=prompt.get(first, {}).get("class_type", ""))


def _checked(entry: dict[str, Any], log_tail: str) -> dict[str, Any]:
    status = entry.get("status") or {}
    if status.get("status_str") == "success":
        return entry
    for kind, data in status.get("messages", []):
        if kind == "execution_interrupted":
            raise PromptInterrupted(f"cancelled in node {data.get('node_id')} ({data.get('node_type')})")
        if kind == "execution_error":
            raise PromptError(
                f"node {data['node_id']} ({data['node_type']}) failed with {data['exception_type']}: "
                f"{data['exception_message'].strip()}{log_tail}",
                node_id=str(data["node_id"]),
                node_type=data["node_type"],
                exception_type=data["exception_type"],
            )
    raise ServerError(f"the prompt ended with status {status.get('status_str')!r}{log_tail}")

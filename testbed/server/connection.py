# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests to a running host."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from testbed.server.errors import ServerError
from testbed.server.process import HostProcess


class Refused(Exception):
    """An answer of 4xx or 5xx with JSON."""

    def __init__(self, answer: Any) -> None:
        super().__init__(str(answer))
        self.answer = answer if isinstance(answer, dict) else {"error": str(answer)}


class Connection:
    """Asks one host; what fails is said with the end of its log."""

    def __init__(self, process: HostProcess) -> None:
        self.process = process

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.process.url + path, timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        request = urllib.request.Request(
            self.process.url + path,
            data=json.dumps(body or {}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def json(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What the host answers to a GET, or to a POST of ``body``.

        Raises:
            Refused: when it says no and why.
            ServerError: when it fails or cannot be reached.
        """
        try:
            return json.loads(self.get(path) if body is None else self.post(path, body))
        except urllib.error.HTTPError as error:
            content = error.read().decode(errors="replace")
            with contextlib.suppress(json.JSONDecodeError):
                raise Refused(json.loads(content)) from None
            raise ServerError(f"{path} answered {error.code}: {content[:500]}{self.process.log_tail}") from None
        except OSError as error:
            self.process.check_alive()
            raise ServerError(f"{path} cannot be reached: {error}{self.process.log_tail}") from None

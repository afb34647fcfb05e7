# SPDX-License-Identifier: GPL-3.0-or-later
"""The trainings of this server, for whoever opens a page: told as they go on, and asked to finish."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from .server import running, tell
from .training.live import EVERY, Live, State

#: Nodes whose last training is kept.
_KEPT = 16


class Board:
    """The newest state of each training, told to all front ends at most twice a second."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, str], State] = {}  # by workflow and node, the newest last
        self._running: dict[str, Live] = {}
        self._unsent: set[tuple[str, str]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._sent = 0.0

    def open(self, node: str, graph: Mapping[str, Any] | None, prompt: str) -> Live:
        """A view of the training that a node begins now.

        Args:
            node: as the host's executor calls it.
            graph: the workflow as the front end saved it, where there is one.
            prompt: id of what is executed.
        """
        workflow = str((graph or {}).get("id") or "")
        live = Live(self.post, node=node, workflow=workflow, prompt=prompt)
        self._running = {live.id: live}  # the host executes one at a time
        return live

    def post(self, state: State) -> None:
        """Take a run's new state; from any thread."""
        key = (state["workflow"], state["node"])
        self._states.pop(key, None)
        self._states[key] = state
        for old in list(self._states)[:-_KEPT]:
            del self._states[old]
        if (server := running()) is not None:
            server.loop.call_soon_threadsafe(self._schedule, key, server.loop)

    def states(self) -> list[State]:
        return list(self._states.values())

    def finish(self, run: str) -> bool:
        """Whether that run is still going; then it ends after the step it is at."""
        live = self._running.get(run)
        return live is not None and live.ask_finish()

    def _schedule(self, key: tuple[str, str], loop: asyncio.AbstractEventLoop) -> None:
        self._unsent.add(key)
        if self._timer is None:
            self._timer = loop.call_at(max(loop.time(), self._sent + EVERY), self._send, loop)

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self._sent = None, loop.time()
        for key in self._unsent:
            if key in self._states:
                tell("soda.training", self._states[key])
        self._unsent.clear()


board = Board()


def register_routes() -> None:
    """``GET /soda/trainings``: the newest state of each; ``POST /soda/finish {"id": …}``: end one in good order."""
    routes = running().routes

    @routes.get("/soda/trainings")
    async def trainings(request: web.Request) -> web.Response:
        return web.json_response(board.states())

    @routes.post("/soda/finish")
    async def finish(request: web.Request) -> web.Response:
        try:
            run = (await request.json())["id"]
        except (ValueError, KeyError, TypeError):
            return web.json_response({"error": 'expected {"id": id of a training}'}, status=400)
        if not board.finish(str(run)):
            return web.json_response({"error": "that training has ended"}, status=404)
        return web.json_response({})

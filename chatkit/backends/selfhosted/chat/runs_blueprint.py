"""Blueprint of active runs: look up a thread's run, stop a run."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response

from chatkit.backends.selfhosted.chat.blueprint import session_of_request
from chatkit.backends.selfhosted.chat.runs import Runs
from chatkit.backends.selfhosted.chat.server import api_errors
from chatkit.backends.selfhosted.sessions import SessionStore
from chatkit.limits.concurrency import ChatConcurrency
from chatkit.limits.rate import Action, Limits, address
from chatkit.web.asgi import deferred
from chatkit.web.buffer import Buffer
from chatkit.web.errors import NotFound
from chatkit.web.request_body import CHAT_PATH


def blueprint(runs: Runs, sessions: SessionStore, limits: Limits, concurrency: ChatConcurrency) -> Blueprint:
    """Create the blueprint of ``/api/chatkit/threads/{id}/run`` and ``/api/chatkit/runs/{id}``.

    The bearer token is the secret of a live session, as in the chat. Other users' runs are not found.
    """
    bp = Blueprint("runs", __name__)

    @bp.get(f"{CHAT_PATH}/threads/<thread_id>/run")
    def run_of_thread(thread_id: str) -> Response:
        """Return the active or interrupted run of a thread, or ``null``."""

        async def find(user: str) -> dict[str, Any] | None:
            run = await runs.of_thread(thread_id, user)
            if run is None:
                return None
            started_at = f"{datetime.fromtimestamp(run.started_at, UTC):%Y-%m-%dT%H:%M:%SZ}"
            return {"id": run.id, "status": "active" if run.is_active else "interrupted", "started_at": started_at}

        return respond("polls", thread_id, find)

    @bp.delete(f"{CHAT_PATH}/runs/<run_id>")
    def stop_run(run_id: str) -> Response:
        """Stop an active run. The text so far is kept."""

        async def stop(user: str) -> dict[str, Any]:
            await runs.stop(run_id, user)
            return {"id": run_id, "stopped": True}

        return respond("stops", run_id, stop)

    def respond(action: Action, id_: str, load: Callable[[str], Awaitable[dict[str, Any] | None]]) -> Response:
        """Count the ``action``, and respond with what ``load`` returns for the user of the session."""
        session = session_of_request(sessions, limits, action)
        if "\0" in id_:
            raise NotFound("an id contains a NUL")  # PostgreSQL rejects it

        async def produce(buffer: Buffer) -> None:
            with api_errors():
                data = await load(session.user)
            buffer.put(json.dumps({"status": "success", "data": data}).encode())

        with ExitStack() as held:
            held.enter_context(concurrency.held("requests", session.user, address()))
            response = deferred(produce, streaming=False)
            response.call_on_close(held.pop_all().close)
            return response

    return bp

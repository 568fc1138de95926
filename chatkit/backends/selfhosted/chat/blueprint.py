"""Blueprint: the ChatKit protocol over HTTP, JSON responses and event streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from flask import Blueprint, Response, request
from requests.structures import CaseInsensitiveDict
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.utils import get_current_url

from chatkit.backends.selfhosted.chat.composer import Composer
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.rows import new_id
from chatkit.backends.selfhosted.chat.server import MESSAGES, REPEATABLE, GuardedServer, handle, read_request
from chatkit.backends.selfhosted.chat.usage import UsageStore
from chatkit.backends.selfhosted.sessions import LiveSession, SessionStore
from chatkit.limits.concurrency import ChatConcurrency
from chatkit.limits.rate import Action, Limits, address
from chatkit.limits.starts import Starts
from chatkit.types import is_streaming_req
from chatkit.web import logs
from chatkit.web.asgi import deferred
from chatkit.web.buffer import Buffer
from chatkit.web.errors import ClientSecretMissing
from chatkit.web.request_body import CHAT_PATH, MAX_CHAT_BYTES, read_json_body

MAX_MESSAGE_BYTES = 64 * 1024  # other requests; their content is sent to a model, which costs money
MAX_BYTES = {"input.transcribe": MAX_CHAT_BYTES, "threads.add_client_tool_output": 256 * 1024}
MAX_PARSED_BYTES = 256 * 1024  # a longer body is parsed only if it looks like dictation
MAX_DICTATION_DELIMITERS = 40
ON_DISCONNECT_HEADER = "ChatKit-On-Disconnect"
_ON_DISCONNECT = {"continue": True, "stop": False}
RUN_HEADER = "ChatKit-Run"
# Starting a turn takes some milliseconds of the event loop's time.
MAX_STARTS, MAX_STARTS_PER_ADDRESS = 32, 2


def blueprint(
    servers: Mapping[str | None, GuardedServer],
    sessions: SessionStore,
    limits: Limits,
    concurrency: ChatConcurrency,
    header_names: Sequence[str],
    composer: Composer,
    usage: UsageStore,
    *,
    outlives_client: bool,
) -> Blueprint:
    """Create the blueprint of ``POST /api/chatkit`` and ``GET /api/chatkit/composer``.

    Args:
        servers: the servers by agent name; the key ``None`` is the default.
        sessions: the sessions.
        limits: the rate limits.
        concurrency: the concurrency limits.
        header_names: the request headers that are passed to servers, besides ``Accept-Language``.
        composer: what users may choose from.
        usage: stores the usage of each response, and limits it.
        outlives_client: whether a response goes on without a reader, unless the request says.
    """
    bp = Blueprint("conversation", __name__)
    starts = Starts(MAX_STARTS, MAX_STARTS_PER_ADDRESS, None)

    @bp.post(CHAT_PATH)
    def chat() -> Response:
        """Handle one ChatKit request. The bearer token is the secret of a live session."""
        session = session_of_request(sessions, limits)
        chat_request = _read()
        is_turn = _is_turn(chat_request)
        if is_turn:
            limits.count("turns")
            limits.count("turns", session.user)
            usage.check(session.user)
        given = request.headers
        headers = {name: given[name] for name in ("Accept-Language", *header_names) if name in given}
        root_url = partial(get_current_url, request.scheme, request.host, request.root_path)  # slow, and rarely needed
        is_streaming = is_streaming_req(chat_request)
        run_id = new_id("run") if is_streaming else ""
        with ExitStack() as held:
            holder = address()
            held.enter_context(concurrency.held("turns" if is_turn else "requests", session.user, holder))

            async def produce(buffer: Buffer) -> None:
                started = await starts.enter(holder)
                meter = usage.meter(session.user, session.session_id)
                try:
                    context = ChatContext(
                        session.user,
                        buffer,
                        session.agent,
                        session.claims,
                        headers=CaseInsensitiveDict(headers),
                        metadata=chat_request.metadata,
                        root_url=root_url,
                        started=started,
                        usage=meter,
                        session_id=session.session_id,
                        run_id=run_id,
                        is_repeatable=chat_request.type in REPEATABLE,
                        brings_message=chat_request.type in MESSAGES,
                    )
                    await handle(servers.get(session.agent) or servers[None], chat_request, context)
                finally:
                    started()
                    meter.close()

            goes_on = _ON_DISCONNECT.get(given.get(ON_DISCONNECT_HEADER, ""), outlives_client)
            response = deferred(produce, streaming=is_streaming, outlives_client=is_streaming and goes_on)
            if is_streaming:
                response.headers[RUN_HEADER] = run_id
                response.headers["X-Accel-Buffering"] = "no"
                response.headers["Cache-Control"] = "no-store, no-transform"
            response.call_on_close(held.pop_all().close)
            return response

    @bp.get(f"{CHAT_PATH}/composer")
    def choices() -> dict[str, Any]:
        """Return models, tools and dictation for ChatKit's option ``composer``. They are the same for all callers."""
        limits.count("requests")
        return {"status": "success", "data": composer.shown}

    return bp


def _read() -> Any:
    body = read_json_body(MAX_CHAT_BYTES)
    if len(body) > MAX_PARSED_BYTES and not _looks_like_dictation(body):
        raise RequestEntityTooLarge
    chat_request = read_request(body)
    if len(body) > MAX_BYTES.get(chat_request.type, MAX_MESSAGE_BYTES):
        raise RequestEntityTooLarge
    return chat_request


def _looks_like_dictation(body: bytes) -> bool:
    """Whether ``body`` is mostly one long string, such as base64 audio. Anything else of this size is slow to parse."""
    return b'"input.transcribe"' in body and all(
        body.count(delimiter) <= MAX_DICTATION_DELIMITERS for delimiter in (b'"', b",", b"[", b"{")
    )


def _is_turn(chat_request: Any) -> bool:
    """Whether the request causes a call to a model, now or, with what it stores, later."""
    return is_streaming_req(chat_request) or chat_request.type in ("input.transcribe", "threads.sync_custom_action")


def session_of_request(sessions: SessionStore, limits: Limits, action: Action = "requests") -> LiveSession:
    """Return the session whose secret is the request's bearer token, after counting an ``action`` per address and user.

    Raises:
        ApiError: there is no bearer token, or it belongs to no live session, or there were too many requests.
    """
    limits.count(action)
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise ClientSecretMissing("no bearer token")
    session = sessions.find(secret.strip())
    logs.session_id.set(session.session_id)
    limits.count(action, session.user)
    return session

"""Blueprint: the ChatKit protocol over HTTP, JSON answers and event streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from flask import Blueprint, Response, request
from werkzeug.exceptions import RequestEntityTooLarge

from chatkit import logs
from chatkit.conversation.chat_server import ChatServer, read_request
from chatkit.conversation.event_loop import Answer, event_loop
from chatkit.conversation.places import Places
from chatkit.conversation.storage import ChatContext
from chatkit.issuers.selfhosted import LiveSession, SelfhostedIssuer
from chatkit.limits import Limits, address
from chatkit.problems import ClientSecretMissing, NotFound
from chatkit.request_body import read_json_body
from chatkit.types import is_streaming_req

MAX_BODY_BYTES = 8 * 1024 * 1024  # dictated audio comes in the body
MAX_MESSAGE_BYTES = 64 * 1024  # all else: a model reads it, and somebody pays for that
MAX_BYTES = {"input.transcribe": MAX_BODY_BYTES, "threads.add_client_tool_output": 256 * 1024}
HEARTBEAT_SECONDS = 10  # platforms cut connections that are silent for 30 to 60 s
HEARTBEAT = b": still here\n\n"


def blueprint(server: ChatServer, issuer: SelfhostedIssuer, limits: Limits, places: Places) -> Blueprint:
    """``POST /api/chatkit``, for whoever has the secret of a live session of ``issuer``, within ``limits`` and ``places``."""
    bp = Blueprint("conversation", __name__)

    @bp.post("/api/chatkit")
    def chat() -> Response:
        """Handle one request of the ChatKit protocol."""
        session = _session(issuer)
        chat_request = _read()
        with ExitStack() as held:
            if _is_turn(chat_request):
                limits.count("turns")
                limits.count("turns", session.user)
                held.enter_context(places.taken(session.user, address()))
            return answer_to(chat_request, session, held)

    def answer_to(chat_request: Any, session: LiveSession, held: ExitStack) -> Response:
        """The answer; a stream lets go of what is ``held`` when it is over."""

        async def produce(answer: Answer) -> None:
            context = ChatContext(session.user, answer, session.agent, session.claims)
            await server.answer(chat_request, context, answer)

        answer = event_loop().answer(produce)
        # Waiting for the first event lets a request that can't be served have its status instead of a stream.
        first = answer.take()
        if first is None:
            raise NotFound("nothing to answer: no such item in this thread")
        if not is_streaming_req(chat_request):
            return Response(first, mimetype="application/json")
        response = Response(_stream(first, answer), mimetype="text/event-stream")
        response.headers["X-Accel-Buffering"] = "no"
        response.headers["Cache-Control"] = "no-store, no-transform"
        held.callback(answer.cancel)
        response.call_on_close(held.pop_all().close)
        return response

    return bp


def _read() -> Any:
    body = read_json_body(MAX_BODY_BYTES)
    chat_request = read_request(body)
    if len(body) > MAX_BYTES.get(chat_request.type, MAX_MESSAGE_BYTES):
        raise RequestEntityTooLarge
    return chat_request


def _is_turn(chat_request: Any) -> bool:
    """Whether a model is asked, now or, with what is kept of this, later."""
    return is_streaming_req(chat_request) or chat_request.type in ("input.transcribe", "threads.sync_custom_action")


def _session(issuer: SelfhostedIssuer) -> LiveSession:
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise ClientSecretMissing("no bearer")
    session = issuer.find(secret.strip())
    logs.session_id.set(session.session_id)
    return session


def _stream(first: bytes, answer: Answer) -> Iterator[bytes]:
    chunk: bytes | None = first
    while chunk is not None:
        yield chunk or HEARTBEAT
        chunk = answer.take(HEARTBEAT_SECONDS)

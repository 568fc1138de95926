"""Blueprint: the ChatKit protocol over HTTP, JSON answers and event streams."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Blueprint, Response, request

from chatkit import logs
from chatkit.conversation.chat_server import ChatServer, read_request
from chatkit.conversation.event_loop import Answer, event_loop
from chatkit.conversation.storage import ChatContext
from chatkit.issuers.selfhosted import LiveSession, SelfhostedIssuer
from chatkit.problems import ClientSecretMissing, NotFound
from chatkit.request_body import read_json_body
from chatkit.types import is_streaming_req

MAX_BODY_BYTES = 8 * 1024 * 1024  # dictated audio comes in the body
HEARTBEAT_SECONDS = 10  # platforms cut connections that are silent for 30 to 60 s
HEARTBEAT = b": still here\n\n"


def blueprint(server: ChatServer, issuer: SelfhostedIssuer) -> Blueprint:
    """``POST /api/chatkit``, for whoever has the secret of a live session of ``issuer``."""
    bp = Blueprint("conversation", __name__)

    @bp.post("/api/chatkit")
    def chat() -> Response:
        """Handle one request of the ChatKit protocol."""
        session = _session(issuer)
        chat_request = read_request(read_json_body(MAX_BODY_BYTES))

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
        response.call_on_close(answer.cancel)
        return response

    return bp


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

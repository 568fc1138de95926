"""Blueprint of the sessions endpoint, which issues sessions and ends them early."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint

from chatkit.backends.interface import Backend
from chatkit.endpoints.schemas import read_session_request, success_envelope
from chatkit.identity.caller import Identity
from chatkit.identity.visitor_cookie import forget_visitor
from chatkit.limits.rate import Limits
from chatkit.web import logs
from chatkit.web.errors import InvalidRequestBody, NotFound, UserMismatch
from chatkit.web.request_body import read_json_body

MAX_BODY_BYTES = 16 * 1024
_SESSION_ID = r"[A-Za-z0-9_-]{1,200}"


def blueprint(identity: Identity, limits: Limits, backend: Backend) -> Blueprint:
    """Serve ``POST /api/chatkit/sessions`` and ``DELETE …/{session_id}``."""
    bp = Blueprint("sessions", __name__)

    @bp.post("/api/chatkit/sessions")
    def create() -> dict[str, Any]:
        """Issue a session to the caller."""
        limits.count("sessions")
        claimed = _read_request().get("user_id")
        caller = identity.caller()
        user = caller.user
        if user.kind == "user" or caller.visitor:  # new visitors have nothing to count
            limits.count("sessions", user.id)
        if claimed is not None and claimed.lower() != user.subject.lower():
            raise UserMismatch("the body names another user")
        if user.kind == "user" and caller.visitor and backend.take_over(caller.visitor, user):
            forget_visitor()
        session = backend.issue(user)
        logs.session_id.set(session.session_id)
        return success_envelope(session)

    @bp.delete("/api/chatkit/sessions/<session_id>")
    def end(session_id: str) -> dict[str, Any]:
        """End a session of the caller. Respond with 404 to unknown sessions and to those of other users."""
        limits.count("endings")
        user = identity.caller().user
        if not re.fullmatch(_SESSION_ID, session_id):
            raise NotFound("no such session of this user")
        logs.session_id.set(session_id)
        backend.end(session_id, user)
        return {"status": "success", "data": {"session_id": session_id, "ended": True}}

    return bp


def _read_request() -> dict[str, Any]:
    try:
        return read_session_request(read_json_body(MAX_BODY_BYTES))
    except ValueError as error:
        raise InvalidRequestBody(str(error)) from None

"""Blueprint: the sessions endpoint of the contract, and the way to end a session early."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from flask import Blueprint

from chatkit import logs, minted
from chatkit.envelopes import read_session_request, success_envelope
from chatkit.identity import Identity, forget_visitor, known_visitor
from chatkit.issuers import Issuer
from chatkit.limits.rate import Limits
from chatkit.problems import InvalidRequestBody, NotFound, UserMismatch
from chatkit.request_body import read_json_body
from chatkit.users import User

MAX_BODY_BYTES = 16 * 1024
_SESSION_ID = r"[A-Za-z0-9_-]{1,200}"


def blueprint(identity: Identity, limits: Limits, issuer: Issuer, hand_over: Callable[[User, User], None] | None) -> Blueprint:
    """``POST /api/chatkit/sessions`` and ``DELETE …/{session_id}``: ``identity`` says who is asking, ``issuer`` does it.

    ``hand_over``, where there is one, gives a visitor's conversations to the user who signs in with the same browser.
    """
    bp = Blueprint("sessions", __name__)

    @bp.post("/api/chatkit/sessions")
    def create() -> dict[str, Any]:
        """Mint a session for whoever is asking."""
        limits.count("sessions")
        claimed = _read_request().get("user_id")
        visitor = known_visitor()
        user = identity.current_user()
        if user.kind == "user" or visitor:  # a new visitor has had none, and there is no end of them to keep count of
            limits.count("sessions", user.id)
        if claimed is not None and claimed.lower() != user.subject.lower():
            raise UserMismatch("the body names somebody else")
        if hand_over and user.kind == "user" and visitor:
            hand_over(visitor, user)
            forget_visitor()
        session = issuer.issue(user)
        logs.session_id.set(session.session_id)
        if not issuer.knows_owners:
            minted.remember(user, session.session_id)
        return success_envelope(session)

    @bp.delete("/api/chatkit/sessions/<session_id>")
    def end(session_id: str) -> dict[str, Any]:
        """End a session of whoever is asking. Of somebody else's it says the same as of one that never was."""
        limits.count("endings")
        user = identity.current_user()
        known = re.fullmatch(_SESSION_ID, session_id) and (issuer.knows_owners or minted.is_remembered(user, session_id))
        if not known:
            raise NotFound("no such session of this user")
        logs.session_id.set(session_id)
        issuer.end(session_id, user)
        return {"status": "success", "data": {"session_id": session_id, "ended": True}}

    return bp


def _read_request() -> dict[str, Any]:
    try:
        return read_session_request(read_json_body(MAX_BODY_BYTES))
    except ValueError as error:
        raise InvalidRequestBody("the body is not the contract's") from error

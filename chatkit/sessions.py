"""Blueprint: the sessions endpoint of the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint

from chatkit import logs
from chatkit.envelopes import read_session_request, success_envelope
from chatkit.identity import Identity, forget_visitor, known_visitor
from chatkit.issuers import Issuer
from chatkit.problems import InvalidRequestBody, UserMismatch
from chatkit.request_body import read_json_body
from chatkit.users import User

MAX_BODY_BYTES = 16 * 1024


def blueprint(identity: Identity, issuer: Issuer, hand_over: Callable[[User, User], None] | None) -> Blueprint:
    """``POST /api/chatkit/sessions``: ``identity`` says who is asking, ``issuer`` mints.

    ``hand_over``, where there is one, gives a visitor's conversations to the user who signs in with the same browser.
    """
    bp = Blueprint("sessions", __name__)

    @bp.post("/api/chatkit/sessions")
    def create() -> dict[str, Any]:
        """Mint a session for whoever is asking."""
        claimed = _read_request().get("user_id")
        user = identity.current_user()
        if claimed is not None and claimed.lower() != user.subject.lower():
            raise UserMismatch("the body names somebody else")
        if hand_over and user.kind == "user" and (visitor := known_visitor()):
            hand_over(visitor, user)
            forget_visitor()
        session = issuer.issue(user)
        logs.session_id.set(session.session_id)
        return success_envelope(session)

    return bp


def _read_request() -> dict[str, Any]:
    try:
        return read_session_request(read_json_body(MAX_BODY_BYTES))
    except ValueError as error:
        raise InvalidRequestBody("the body is not the contract's") from error

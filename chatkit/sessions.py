"""Blueprint: the sessions endpoint of the contract."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from chatkit import identity, logs
from chatkit.envelopes import read_session_request, success_envelope
from chatkit.issuers import Issuer
from chatkit.problems import InvalidRequestBody, NotJson, UserMismatch

MAX_BODY_BYTES = 16 * 1024


def blueprint(issuer: Issuer) -> Blueprint:
    """``POST /api/chatkit/sessions``, with ``issuer`` behind it."""
    bp = Blueprint("sessions", __name__)

    @bp.post("/api/chatkit/sessions")
    def create() -> dict[str, Any]:
        """Mint a session for whoever is asking."""
        claimed = _read_body().get("user_id")
        user = identity.current_user()
        if claimed is not None and claimed.lower() != user.subject:
            raise UserMismatch("the body names somebody else")
        session = issuer.issue(user.id)
        logs.session_id.set(session.session_id)
        return success_envelope(session)

    return bp


def _read_body() -> dict[str, Any]:
    # Werkzeug cuts a body of unknown length silently at the limit, so one byte more tells that there was more.
    request.max_content_length = MAX_BODY_BYTES + 1
    try:
        body = request.get_data()
    except HTTPException:
        raise  # too large
    except Exception as error:  # the server's own, one for each way in which a body can be broken
        raise InvalidRequestBody("the body could not be read") from error
    if len(body) > MAX_BODY_BYTES:
        raise RequestEntityTooLarge
    if request.content_length not in (None, len(body)):
        raise InvalidRequestBody("the body ended early")
    if body and not _says_json():
        raise NotJson("a body that is not declared as JSON")
    try:
        return read_session_request(body)
    except ValueError as error:
        raise InvalidRequestBody("the body is not the contract's") from error


def _says_json() -> bool:
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    return request.mimetype == "application/json" and charset in ("utf-8", "utf8")

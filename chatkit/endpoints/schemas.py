"""The request body and the success envelope of the sessions endpoint, as marshmallow schemas (contract version 1.0)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields, validate

from chatkit.backends.interface import Session

_UUID = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z"


class SessionRequestSchema(Schema):
    """The body of ``POST /api/chatkit/sessions``. ``user_id`` is only compared with the verified user."""

    class Meta:
        unknown = RAISE

    user_id = fields.String(validate=validate.Regexp(_UUID))


class SessionSchema(Schema):
    """A session. ``expires_in``, in whole seconds, is for browsers whose clock is wrong."""

    client_secret = fields.String(required=True)
    session_id = fields.String(required=True)
    expires_at = fields.DateTime(format="%Y-%m-%dT%H:%M:%SZ", required=True)
    expires_in = fields.Function(lambda session: max(0, int((session.expires_at - datetime.now(UTC)).total_seconds())))


class SuccessSchema(Schema):
    """The success envelope of a session."""

    status = fields.Constant("success")
    data = fields.Nested(SessionSchema, required=True)


_session_request, _success = SessionRequestSchema(), SuccessSchema()


def read_session_request(body: bytes) -> dict[str, Any]:
    """Parse and validate a request body. An empty body counts as ``{}``.

    Raises:
        ValueError: it is not JSON (RFC 8259: UTF-8, no NaN; and no duplicate names), or does not fit the schema.
    """
    if not body:
        return {}
    try:
        parsed = json.loads(body.decode("utf-8"), object_pairs_hook=_reject_duplicates, parse_constant=_reject_constant)
        loaded: dict[str, Any] = _session_request.load(parsed)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError("not JSON") from None
    except ValidationError as error:
        raise ValueError("does not fit the schema") from error
    return loaded


def success_envelope(session: Session) -> dict[str, Any]:
    """``{"status": "success", "data": {…}}``."""
    dumped: dict[str, Any] = _success.dump({"data": session})
    return dumped


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate name")
    return result


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")

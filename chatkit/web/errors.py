"""Every error of the API: status, code and message; and the handlers that send it in the error envelope.

The messages are the contract's, to the letter, and a frontend may show them. ``code`` is for programs. Details go to the log,
never into a response.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, jsonify
from marshmallow import Schema, fields
from werkzeug.exceptions import HTTPException

log = logging.getLogger(__name__)


class ErrorSchema(Schema):
    """The envelope of everything that is not a success."""

    status = fields.Constant("error")
    message = fields.String(required=True)
    code = fields.String(required=True)


_error = ErrorSchema()


def error_envelope(message: str, code: str) -> dict[str, Any]:
    """``{"status": "error", "message": …, "code": …}``."""
    dumped: dict[str, Any] = _error.dump({"message": message, "code": code})
    return dumped


class ApiError(Exception):
    """A failure that has a row in the contract.

    Args:
        detail: for the log; it must hold no key, secret or workflow id.
        retry_after: seconds until it makes sense to try again, where that differs from the row's own.
    """

    status: HTTPStatus
    code: str
    message: str
    retry_after: int | None = None
    log_level = logging.INFO
    authenticate: str | None = None  # for WWW-Authenticate
    allowed: int | None = None  # a minute, of what has just been refused

    def __init__(self, detail: str = "", *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        if retry_after is not None:
            self.retry_after = retry_after


class InvalidRequestBody(ApiError):
    status, code, message = HTTPStatus.BAD_REQUEST, "invalid_request_body", "Invalid request body"


class AuthenticationRequired(ApiError):
    """Nobody is signed in, and ``AUTH_REQUIRED`` asks for it."""

    status, code, message = HTTPStatus.UNAUTHORIZED, "authentication_required", "Authentication required"
    authenticate = "Bearer"


class InvalidToken(ApiError):
    """A token came, and it proves nothing. It is never taken for no token, whose bearer would be an anonymous visitor."""

    status, code, message = HTTPStatus.UNAUTHORIZED, "invalid_token", "Invalid or expired token"
    authenticate = 'Bearer error="invalid_token"'


class SignInUnavailable(ApiError):
    """A token can't be checked now, because the keys that it is signed with can't be had."""

    status, code, message = HTTPStatus.SERVICE_UNAVAILABLE, "sign_in_unavailable", "Sign-in temporarily unavailable"
    retry_after = 5
    log_level = logging.ERROR


class ClientSecretMissing(ApiError):
    """No secret came with a call to the chat."""

    status, code, message = HTTPStatus.UNAUTHORIZED, "client_secret_missing", "Chat session required"
    authenticate = "Bearer"


class ClientSecretUnknown(ApiError):
    """A secret that nobody has issued, or so long ago that it is forgotten."""

    status, code, message = HTTPStatus.UNAUTHORIZED, "client_secret_unknown", "Unknown chat session"
    authenticate = 'Bearer error="invalid_token"'


class ClientSecretExpired(ApiError):
    """The frontend is to ask the sessions endpoint for the next secret."""

    status, code, message = HTTPStatus.UNAUTHORIZED, "client_secret_expired", "Chat session expired"
    authenticate = 'Bearer error="invalid_token"'


class OriginNotAllowed(ApiError):
    status, code, message = HTTPStatus.FORBIDDEN, "origin_not_allowed", "Origin not allowed"
    log_level = logging.WARNING


class UserMismatch(ApiError):
    status, code, message = HTTPStatus.FORBIDDEN, "user_mismatch", "user_id is not the user who is asking"


class NotFound(ApiError):
    """Not there, or another user's: the answer is the same."""

    status, code, message = HTTPStatus.NOT_FOUND, "not_found", "Not found"


class AttachmentsOff(ApiError):
    status, code, message = HTTPStatus.FORBIDDEN, "attachments_off", "This chat takes no attachments"


class ThreadNotActive(ApiError):
    """A thread that is locked or closed takes nothing that would be answered."""

    status, code, message = HTTPStatus.FORBIDDEN, "thread_not_active", "This conversation takes no new messages"


class NotJson(ApiError):
    status, code, message = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "Content-Type must be application/json"


class OpenAIAuthenticationFailed(ApiError):
    status, code, message = HTTPStatus.UNAUTHORIZED, "openai_authentication_failed", "OpenAI authentication failed"
    log_level = logging.ERROR


class OpenAIRateLimited(ApiError):
    status, code = HTTPStatus.TOO_MANY_REQUESTS, "openai_rate_limited"
    message = "Rate limited by OpenAI. Please try again in a moment."
    retry_after = 10
    log_level = logging.WARNING


class TooManyRequests(ApiError):
    """More than one user's or one address's share."""

    status, code = HTTPStatus.TOO_MANY_REQUESTS, "too_many_requests"
    message = "Too many requests. Please try again in a moment."

    def __init__(self, detail: str, *, retry_after: int, allowed: int | None = None) -> None:
        super().__init__(detail, retry_after=retry_after)
        self.allowed = allowed


class ApiKeyMissing(ApiError):
    status, code, message = HTTPStatus.INTERNAL_SERVER_ERROR, "openai_api_key_missing", "OpenAI API key not configured"
    log_level = logging.ERROR


class WorkflowMissing(ApiError):
    status, code, message = HTTPStatus.INTERNAL_SERVER_ERROR, "chatkit_workflow_missing", "ChatKit workflow not configured"
    log_level = logging.ERROR


class SessionNotCreated(ApiError):
    status, code = HTTPStatus.INTERNAL_SERVER_ERROR, "openai_session_not_created"
    message = "OpenAI service error: Could not create session"
    log_level = logging.ERROR


class SessionNotEnded(ApiError):
    status, code = HTTPStatus.INTERNAL_SERVER_ERROR, "openai_session_not_ended"
    message = "OpenAI service error: Could not end session"
    log_level = logging.ERROR


class OpenAIUnavailable(ApiError):
    status, code, message = HTTPStatus.SERVICE_UNAVAILABLE, "openai_unavailable", "OpenAI service temporarily unavailable"
    retry_after = 5
    log_level = logging.ERROR


class DatabaseUnavailable(ApiError):
    status, code, message = HTTPStatus.SERVICE_UNAVAILABLE, "database_unavailable", "Service temporarily unavailable"
    retry_after = 5
    log_level = logging.ERROR


class ServiceBusy(ApiError):
    """All that the process can do at once is being done, or it is about to stop."""

    status, code, message = HTTPStatus.SERVICE_UNAVAILABLE, "service_busy", "Service temporarily unavailable"
    retry_after = 5
    log_level = logging.WARNING


class NotReady(ApiError):
    """Args: missing: the names of what has to be set or to come back. They are part of the answer."""

    status, code, message = HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", "Not ready"
    retry_after = 5
    log_level = logging.WARNING

    def __init__(self, missing: list[str]) -> None:
        super().__init__(", ".join(missing))
        self.message = f"Not ready. Missing: {', '.join(missing)}"


def register_error_handlers(app: Flask) -> None:
    """Send every error of ``app`` in the error envelope."""
    app.register_error_handler(ApiError, _answer_api_error)
    app.register_error_handler(HTTPException, _answer_http_exception)
    app.register_error_handler(Exception, _answer_unhandled)


def _envelope(status: int, code: str, message: str) -> Response:
    response = jsonify(error_envelope(message, code))
    response.status_code = status
    return response


def _answer_api_error(error: ApiError) -> Response:
    log.log(error.log_level, "%d %s: %s%s", error.status, error.code, error, _cause(error))
    response = _envelope(error.status, error.code, error.message)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    if error.allowed is not None:
        response.headers["RateLimit-Limit"] = str(error.allowed)
        response.headers["RateLimit-Remaining"] = "0"
        response.headers["RateLimit-Reset"] = str(error.retry_after)
    if error.authenticate is not None:
        response.headers["WWW-Authenticate"] = error.authenticate
    return response


def _cause(error: ApiError) -> str:
    """The kind of the first exception that led here; its text may quote what must not be logged."""
    first: BaseException = error
    while earlier := first.__cause__ or first.__context__:
        first = earlier
    return "" if first is error else f" ({type(first).__name__})"


def _answer_http_exception(error: HTTPException) -> Response:
    """What Flask and Werkzeug refuse by themselves: 404, 405 (with its ``Allow``), 413, a host that is not ours."""
    # Werkzeug's name for it: Python's own, in http.HTTPStatus, differ from version to version, and codes are to be stable.
    response = _envelope(error.code or 500, error.name.lower().replace(" ", "_"), error.name.capitalize())
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    return response


def _answer_unhandled(_error: Exception) -> Response:
    log.exception("unhandled exception")
    return _envelope(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_server_error", "Internal server error")

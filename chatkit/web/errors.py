"""The errors of the API, each with status, code and message, and the handlers that render them.

The messages are the contract's, word for word, and a frontend may show them. ``code`` is for programs. Details go to the log,
never into a response.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, jsonify
from marshmallow import Schema, fields
from werkzeug.exceptions import HTTPException, SecurityError

log = logging.getLogger(__name__)


class ErrorSchema(Schema):
    """The error envelope."""

    status = fields.Constant("error")
    message = fields.String(required=True)
    code = fields.String(required=True)


_error = ErrorSchema()


def error_envelope(message: str, code: str) -> dict[str, Any]:
    """``{"status": "error", "message": …, "code": …}``."""
    dumped: dict[str, Any] = _error.dump({"message": message, "code": code})
    return dumped


def http_code_and_message(phrase: str) -> tuple[str, str]:
    """Return the code and the message for an HTTP reason phrase such as "Not Found"."""
    return phrase.lower().replace(" ", "_"), phrase.capitalize().replace(" uri ", " URI ")


class ApiError(Exception):
    """An error with a row in the contract's table.

    Args:
        detail: for the log; must not contain a key, a secret or a workflow id.
        retry_after: the value of ``Retry-After`` in seconds, if not the default of the class.
    """

    status: int
    code: str
    message: str
    retry_after: int | None = None
    log_level = logging.INFO
    authenticate: str | None = None  # for WWW-Authenticate
    allowed: int | None = None  # per minute; for RateLimit-Limit

    def __init__(self, detail: str = "", *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        if retry_after is not None:
            self.retry_after = retry_after


class InvalidRequestBody(ApiError):
    status, code, message = HTTPStatus.BAD_REQUEST, "invalid_request_body", "Invalid request body"


class AuthenticationRequired(ApiError):
    """The request has no token, and ``AUTH_REQUIRED`` is set."""

    status, code, message = HTTPStatus.UNAUTHORIZED, "authentication_required", "Authentication required"
    authenticate = "Bearer"


class InvalidToken(ApiError):
    """The token is invalid. Such a request is never treated as one without a token, which would be a visitor's."""

    status, code, message = HTTPStatus.UNAUTHORIZED, "invalid_token", "Invalid or expired token"
    authenticate = 'Bearer error="invalid_token"'


class SignInUnavailable(ApiError):
    """The token can't be verified, because the JWKS can't be fetched."""

    status, code, message = HTTPStatus.SERVICE_UNAVAILABLE, "sign_in_unavailable", "Sign-in temporarily unavailable"
    retry_after = 5
    log_level = logging.ERROR


class ClientSecretMissing(ApiError):
    status, code, message = HTTPStatus.UNAUTHORIZED, "client_secret_missing", "Chat session required"
    authenticate = "Bearer"


class ClientSecretUnknown(ApiError):
    """The secret was never issued, or expired so long ago that its session has been deleted."""

    status, code, message = HTTPStatus.UNAUTHORIZED, "client_secret_unknown", "Unknown chat session"
    authenticate = 'Bearer error="invalid_token"'


class ClientSecretExpired(ApiError):
    """The frontend has to request a new session."""

    status, code, message = HTTPStatus.UNAUTHORIZED, "client_secret_expired", "Chat session expired"
    authenticate = 'Bearer error="invalid_token"'


class OriginNotAllowed(ApiError):
    status, code, message = HTTPStatus.FORBIDDEN, "origin_not_allowed", "Origin not allowed"
    log_level = logging.WARNING


class UserMismatch(ApiError):
    status, code, message = HTTPStatus.FORBIDDEN, "user_mismatch", "user_id is not the user who is asking"


class NotFound(ApiError):
    """It does not exist, or belongs to another user: the response is the same."""

    status, code, message = HTTPStatus.NOT_FOUND, "not_found", "Not found"


class AttachmentsOff(ApiError):
    status, code, message = HTTPStatus.FORBIDDEN, "attachments_off", "This chat takes no attachments"


class RequestRefused(ApiError):
    """An operator's server refused the request.

    Args:
        detail: for the log.
        status: the status that it chose.
        message: its message for the user.
    """

    status: int = HTTPStatus.BAD_REQUEST
    code, message = "request_refused", "This request can't be served"

    def __init__(self, detail: str, *, status: int = HTTPStatus.BAD_REQUEST, message: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.message = message or self.message


class ThreadNotActive(ApiError):
    """The thread is locked or closed."""

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
    """A limit of one user or one address is exceeded."""

    status, code = HTTPStatus.TOO_MANY_REQUESTS, "too_many_requests"
    message = "Too many requests. Please try again in a moment."

    def __init__(self, detail: str, *, retry_after: int, allowed: int | None = None) -> None:
        super().__init__(detail, retry_after=retry_after)
        self.allowed = allowed


class ApiKeyMissing(ApiError):
    status, code, message = HTTPStatus.INTERNAL_SERVER_ERROR, "openai_api_key_missing", "OpenAI API key not configured"
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
    """A limit of the process is reached, or it is shutting down."""

    status, code, message = HTTPStatus.SERVICE_UNAVAILABLE, "service_busy", "Service temporarily unavailable"
    retry_after = 5
    log_level = logging.WARNING


class NotReady(ApiError):
    """``/readyz`` can't promise a session. The message says why."""

    status, code, message = HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", "Not ready"
    retry_after = 5
    log_level = logging.WARNING

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.message = f"Not ready. {reason}"


def register_error_handlers(app: Flask) -> None:
    """Render every error of ``app`` in the error envelope."""
    app.register_error_handler(ApiError, _handle_api_error)
    app.register_error_handler(HTTPException, _handle_http_exception)
    app.register_error_handler(Exception, _handle_unhandled_exception)


def _envelope(status: int, code: str, message: str) -> Response:
    response = jsonify(error_envelope(message, code))
    response.status_code = status
    return response


def _handle_api_error(error: ApiError) -> Response:
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
    """The type of the exception at the root. Its text may quote what must not be logged."""
    root: BaseException = error
    while cause := root.__cause__ or (None if root.__suppress_context__ else root.__context__):
        root = cause
    return "" if root is error else f" ({type(root).__name__})"


def _handle_http_exception(error: HTTPException) -> Response:
    """Render errors of Flask and Werkzeug, such as 404, 405 (with its ``Allow``), 413 and an untrusted host."""
    if isinstance(error, SecurityError):
        log.warning("the Host header is not localhost, the only host with CHATKIT_ENV=development")
    # The codes are made of Werkzeug's names, because those of http.HTTPStatus differ between versions of Python.
    response = _envelope(error.code or 500, *http_code_and_message(error.name))
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    return response


def _handle_unhandled_exception(_error: Exception) -> Response:
    log.exception("unhandled exception")
    return _envelope(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_server_error", "Internal server error")

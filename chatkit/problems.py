"""Each way to fail: status, code and message; and the handlers that answer so.

The messages are the contract's, to the letter, and a frontend may show them. ``code`` is for programs. What went wrong in
detail goes to the log, never into an answer.
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from flask import Flask, Response, jsonify
from werkzeug.exceptions import HTTPException

from chatkit.envelopes import error_envelope

log = logging.getLogger(__name__)


class Problem(Exception):
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


class InvalidRequestBody(Problem):
    status, code, message = HTTPStatus.BAD_REQUEST, "invalid_request_body", "Invalid request body"


class AuthenticationRequired(Problem):
    """Nobody is signed in, and ``AUTH_REQUIRED`` asks for it."""

    status, code, message = HTTPStatus.UNAUTHORIZED, "authentication_required", "Authentication required"
    authenticate = "Bearer"


class InvalidToken(Problem):
    """A token came, and it proves nothing. It is never taken for no token, whose bearer would be an anonymous visitor."""

    status, code, message = HTTPStatus.UNAUTHORIZED, "invalid_token", "Invalid or expired token"
    authenticate = 'Bearer error="invalid_token"'


class SignInUnavailable(Problem):
    """A token can't be checked now, because the keys that it is signed with can't be had."""

    status, code, message = HTTPStatus.SERVICE_UNAVAILABLE, "sign_in_unavailable", "Sign-in temporarily unavailable"
    retry_after = 5
    log_level = logging.ERROR


class ClientSecretMissing(Problem):
    """No secret came with a call to the chat."""

    status, code, message = HTTPStatus.UNAUTHORIZED, "client_secret_missing", "Chat session required"
    authenticate = "Bearer"


class ClientSecretUnknown(Problem):
    """A secret that nobody has issued, or so long ago that it is forgotten."""

    status, code, message = HTTPStatus.UNAUTHORIZED, "client_secret_unknown", "Unknown chat session"
    authenticate = 'Bearer error="invalid_token"'


class ClientSecretExpired(Problem):
    """The frontend is to ask the sessions endpoint for the next secret."""

    status, code, message = HTTPStatus.UNAUTHORIZED, "client_secret_expired", "Chat session expired"
    authenticate = 'Bearer error="invalid_token"'


class OriginNotAllowed(Problem):
    status, code, message = HTTPStatus.FORBIDDEN, "origin_not_allowed", "Origin not allowed"
    log_level = logging.WARNING


class UserMismatch(Problem):
    status, code, message = HTTPStatus.FORBIDDEN, "user_mismatch", "user_id is not the user who is asking"


class NotFound(Problem):
    """Not there, or another user's: the answer is the same."""

    status, code, message = HTTPStatus.NOT_FOUND, "not_found", "Not found"


class AttachmentsOff(Problem):
    status, code, message = HTTPStatus.FORBIDDEN, "attachments_off", "This chat takes no attachments"


class ThreadNotActive(Problem):
    """A thread that is locked or closed takes nothing that would be answered."""

    status, code, message = HTTPStatus.FORBIDDEN, "thread_not_active", "This conversation takes no new messages"


class NotJson(Problem):
    status, code, message = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "Content-Type must be application/json"


class OpenAIAuthenticationFailed(Problem):
    status, code, message = HTTPStatus.UNAUTHORIZED, "openai_authentication_failed", "OpenAI authentication failed"
    log_level = logging.ERROR


class OpenAIRateLimited(Problem):
    status, code = HTTPStatus.TOO_MANY_REQUESTS, "openai_rate_limited"
    message = "Rate limited by OpenAI. Please try again in a moment."
    retry_after = 10
    log_level = logging.WARNING


class TooManyRequests(Problem):
    """More than one user's or one address's share."""

    status, code = HTTPStatus.TOO_MANY_REQUESTS, "too_many_requests"
    message = "Too many requests. Please try again in a moment."

    def __init__(self, detail: str, *, retry_after: int, allowed: int | None = None) -> None:
        super().__init__(detail, retry_after=retry_after)
        self.allowed = allowed


class ApiKeyMissing(Problem):
    status, code, message = HTTPStatus.INTERNAL_SERVER_ERROR, "openai_api_key_missing", "OpenAI API key not configured"
    log_level = logging.ERROR


class WorkflowMissing(Problem):
    status, code, message = HTTPStatus.INTERNAL_SERVER_ERROR, "chatkit_workflow_missing", "ChatKit workflow not configured"
    log_level = logging.ERROR


class SessionNotCreated(Problem):
    status, code = HTTPStatus.INTERNAL_SERVER_ERROR, "openai_session_not_created"
    message = "OpenAI service error: Could not create session"
    log_level = logging.ERROR


class SessionNotEnded(Problem):
    status, code = HTTPStatus.INTERNAL_SERVER_ERROR, "openai_session_not_ended"
    message = "OpenAI service error: Could not end session"
    log_level = logging.ERROR


class OpenAIUnavailable(Problem):
    status, code, message = HTTPStatus.SERVICE_UNAVAILABLE, "openai_unavailable", "OpenAI service temporarily unavailable"
    retry_after = 5
    log_level = logging.ERROR


class DatabaseUnavailable(Problem):
    status, code, message = HTTPStatus.SERVICE_UNAVAILABLE, "database_unavailable", "Service temporarily unavailable"
    retry_after = 5
    log_level = logging.ERROR


class ServiceBusy(Problem):
    """All that the process can do at once is being done, or it is about to stop."""

    status, code, message = HTTPStatus.SERVICE_UNAVAILABLE, "service_busy", "Service temporarily unavailable"
    retry_after = 5
    log_level = logging.WARNING


class NotReady(Problem):
    """Args: missing: the names of what has to be set or to come back. They are part of the answer."""

    status, code, message = HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", "Not ready"
    retry_after = 5
    log_level = logging.WARNING

    def __init__(self, missing: list[str]) -> None:
        super().__init__(", ".join(missing))
        self.message = f"Not ready. Missing: {', '.join(missing)}"


def register(app: Flask) -> None:
    """Make every failure of ``app`` an error envelope."""
    app.register_error_handler(Problem, _answer_problem)
    app.register_error_handler(HTTPException, _answer_http_exception)
    app.register_error_handler(Exception, _answer_fault)


def _envelope(status: int, code: str, message: str) -> Response:
    response = jsonify(error_envelope(message, code))
    response.status_code = status
    return response


def _answer_problem(problem: Problem) -> Response:
    log.log(problem.log_level, "%d %s: %s%s", problem.status, problem.code, problem, _cause(problem))
    response = _envelope(problem.status, problem.code, problem.message)
    if problem.retry_after is not None:
        response.headers["Retry-After"] = str(problem.retry_after)
    if problem.allowed is not None:
        response.headers["RateLimit-Limit"] = str(problem.allowed)
        response.headers["RateLimit-Remaining"] = "0"
        response.headers["RateLimit-Reset"] = str(problem.retry_after)
    if problem.authenticate is not None:
        response.headers["WWW-Authenticate"] = problem.authenticate
    return response


def _cause(problem: Problem) -> str:
    """The kind of the first exception that led here; its text may quote what must not be logged."""
    first: BaseException = problem
    while earlier := first.__cause__ or first.__context__:
        first = earlier
    return "" if first is problem else f" ({type(first).__name__})"


def _answer_http_exception(error: HTTPException) -> Response:
    """What Flask and Werkzeug refuse by themselves: 404, 405 (with its ``Allow``), 413, a host that is not ours."""
    # Werkzeug's name for it: Python's own, in http.HTTPStatus, differ from version to version, and codes are to be stable.
    response = _envelope(error.code or 500, error.name.lower().replace(" ", "_"), error.name.capitalize())
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    return response


def _answer_fault(_error: Exception) -> Response:
    log.exception("fault of our own")
    return _envelope(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_server_error", "Internal server error")

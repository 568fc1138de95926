"""A client of OpenAI's ChatKit Sessions API, for workflows of Agent Builder.

Its requests equal those of OpenAI's Python SDK (``client.beta.chatkit.sessions.create``); a test compares the two.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import requests

from chatkit.backends.hosted.errors import SessionNotCreated, SessionNotEnded, WorkflowMissing
from chatkit.backends.interface import Session
from chatkit.identity.user import User
from chatkit.settings import MAX_SESSION_TTL, Settings
from chatkit.web import errors, logs
from chatkit.web.http_client import CallFailed, Response, ResponseUnreadable, bounded_session, call

log = logging.getLogger(__name__)

CALL_SECONDS = 9.5  # of the contract's 10 s; the rest is for the work around the call
MAX_RESPONSE_BYTES = 256 * 1024  # a session is about 1 KB
MAX_RETRY_AFTER = 600
_ENDED = "After 30 November 2026: hosted workflows have ended, set CHATKIT_BACKEND=selfhosted"


class SessionsApi:
    """Calls the API over one connection pool per process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ttl = settings.session_ttl or MAX_SESSION_TTL
        self.http = api_session(settings, settings.threads)
        # Prepared once, because that takes longer than all other work for a call.
        self._prepared = self.http.prepare_request(requests.Request("POST", f"{settings.api_base}/v1/chatkit/sessions"))
        self._url = str(self._prepared.url)
        if missing := self.missing():
            log.warning("sessions can't be issued until these are set: %s", ", ".join(missing))

    def missing(self) -> list[str]:
        """See ``Backend.missing``."""
        required = {"OPENAI_API_KEY": self._settings.openai_api_key, "CHATKIT_WORKFLOW_ID": self._settings.workflow_id}
        return [name for name, value in required.items() if not value]

    def issue(self, user: User) -> Session:
        """See ``Backend.issue``. Takes at most ``CALL_SECONDS``."""
        if not self._settings.openai_api_key:
            raise errors.ApiKeyMissing("OPENAI_API_KEY is not set")
        if not self._settings.workflow_id:
            raise WorkflowMissing("CHATKIT_WORKFLOW_ID is not set")
        return self._read_session(*self._call(self._url, self._request_body(user)))

    def end(self, session_id: str, user: User) -> None:
        """See ``Backend.end``. Does not check the owner. Takes at most ``CALL_SECONDS``."""
        if not self._settings.openai_api_key:
            raise errors.ApiKeyMissing("OPENAI_API_KEY is not set")
        status, headers, body = self._call(f"{self._url}/{quote(session_id, safe='')}/cancel", None)
        summary = _raise_for_common_status(status, headers, json_object(body))
        if status in (400, 404, 409, 410):
            log.info("%s: the session (%s) had already ended", summary, user.kind)
        elif not 200 <= status < 300:
            raise SessionNotEnded(summary)

    def _call(self, url: str, body: dict[str, Any] | None) -> Response:
        """Send a POST request and return the response.

        Raises:
            OpenAIUnavailable: there was no response in time.
            SessionNotCreated: the response can't be decoded.
        """
        request = self._prepared.copy()
        request.url = url
        if request_id := logs.request_id.get():
            request.headers["X-Client-Request-Id"] = request_id
        request.prepare_body(data=None, files=None, json=body)
        try:
            return call(self.http, request, seconds=CALL_SECONDS, max_bytes=MAX_RESPONSE_BYTES)
        except ResponseUnreadable as error:
            raise SessionNotCreated("OpenAI's response can't be decoded") from error
        except CallFailed as error:
            raise errors.OpenAIUnavailable("no response from OpenAI") from error

    def _request_body(self, user: User) -> dict[str, Any]:
        settings = self._settings
        return _without_unset(
            {
                "user": user.id,
                "workflow": {
                    "id": settings.workflows[user.agent] if user.agent else settings.workflow_id,
                    "version": None if user.agent else settings.workflow_version,
                    "state_variables": dict(user.claims),
                    "tracing": {"enabled": settings.tracing},
                },
                "expires_after": {"anchor": "created_at", "seconds": settings.session_ttl} if settings.session_ttl else None,
                "rate_limits": {"max_requests_per_1_minute": settings.max_requests_per_minute},
                "chatkit_configuration": {
                    "file_upload": {
                        "enabled": settings.file_upload,
                        "max_files": settings.file_upload_max_files,
                        "max_file_size": settings.file_upload_max_mb,
                    },
                    "history": {"enabled": settings.history, "recent_threads": settings.history_recent_threads},
                },
            }
        )

    def _read_session(self, status: int, headers: Any, body: bytes) -> Session:
        data = json_object(body)
        summary = _raise_for_common_status(status, headers, data)
        if status == 404:
            raise SessionNotCreated(
                f"{summary}: most likely the key belongs to another project than the workflow; is another OPENAI_API_KEY set "
                f"on this machine? {_ENDED}"
            )
        if not 200 <= status < 300:
            raise SessionNotCreated(f"{summary}. {_ENDED}")
        if not body and status == 200 and not headers.keys() & {"content-length", "transfer-encoding"}:
            raise errors.OpenAIUnavailable(f"{summary} and closed the connection within the headers")
        if len(body) > MAX_RESPONSE_BYTES:
            raise SessionNotCreated(f"{summary} with more than {MAX_RESPONSE_BYTES} bytes")
        session_id, secret = data.get("id"), data.get("client_secret")
        if not (isinstance(session_id, str) and session_id and isinstance(secret, str) and secret):
            raise SessionNotCreated(f"{summary} without an id or a client_secret")
        return Session(session_id=session_id, client_secret=secret, expires_at=self._expiry(data.get("expires_at")))

    def _expiry(self, expires_at: Any) -> datetime:
        """Return ``expires_at`` (Unix seconds), or the requested lifetime from now if the clocks differ.

        They do if the session has already expired, or would last longer than requested.
        """
        now = datetime.now(UTC)
        latest = now + timedelta(seconds=self._ttl)
        if isinstance(expires_at, int | float) and now.timestamp() < expires_at <= latest.timestamp():
            return datetime.fromtimestamp(expires_at, UTC)
        return latest


def api_session(settings: Settings, connections: int) -> requests.Session:
    """Return a ``bounded_session`` with the headers of OpenAI's ChatKit API."""
    session = bounded_session(connections)
    session.headers.update(
        {
            "Accept": "application/json",
            "Authorization": f"Bearer {settings.openai_api_key}",
            "OpenAI-Beta": "chatkit_beta=v1",
            "User-Agent": "chatkit-session-service",
        }
    )
    return session


def _raise_for_common_status(status: int, headers: Any, data: dict[str, Any]) -> str:
    """Raise for statuses common to all calls; otherwise describe the response for the log."""
    summary = f"OpenAI answered {status}{reference(headers, data)}"
    if status == 401:
        raise errors.OpenAIAuthenticationFailed(f"{summary}: OPENAI_API_KEY is not valid, or no longer valid")
    if status == 429:
        raise errors.OpenAIRateLimited(summary, retry_after=_retry_after(headers))
    if status >= 500:
        raise errors.OpenAIUnavailable(summary)
    return summary


def _without_unset(value: dict[str, Any]) -> dict[str, Any]:
    """Remove ``None`` values, and objects that are empty without them."""
    nested = {name: _without_unset(item) if isinstance(item, dict) else item for name, item in value.items()}
    return {name: item for name, item in nested.items() if item is not None and item != {}}


def json_object(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def reference(headers: Any, data: dict[str, Any]) -> str:
    """Return OpenAI's request id and error code, for the log.

    The error message is left out, because it quotes the workflow id and parts of the key.
    """
    parts = []
    request_id = headers.get("x-request-id", "")
    if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", request_id):
        parts.append(f"request {request_id}")
    error = data.get("error")
    code = error.get("code") or error.get("type") if isinstance(error, dict) else None
    if isinstance(code, str) and re.fullmatch(r"[a-z]+(_[a-z]+)*", code[:60]):
        parts.append(code[:60])
    return f" ({', '.join(parts)})" if parts else ""


def _retry_after(headers: Any) -> int | None:
    value = headers.get("Retry-After", "")
    return min(int(value), MAX_RETRY_AFTER) if re.fullmatch(r"[0-9]{1,6}", value) else None

"""Sessions issued by OpenAI for a workflow of Agent Builder, until 30 November 2026.

The request is the one that OpenAI's own Python SDK sends for the same arguments
(``client.beta.chatkit.sessions.create``); a test compares the two.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import requests

from chatkit.backends.interface import Session
from chatkit.identity.user import User
from chatkit.settings import MAX_SESSION_TTL, Settings
from chatkit.web import errors, logs
from chatkit.web.http_client import CallFailed, Response, ResponseUnreadable, bounded_session, call

log = logging.getLogger(__name__)

CALL_SECONDS = 9.5  # of the contract's 10 s; the rest is for everything around the call
MAX_ANSWER_BYTES = 256 * 1024  # a session is about 1 KB
MAX_RETRY_AFTER = 600


class SessionsApi:
    """Asks OpenAI's ChatKit Sessions API, over one pool of connections for the whole process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ttl = settings.session_ttl or MAX_SESSION_TTL
        self.http = bounded_session(settings.threads)
        self.http.headers.update(
            {
                "Accept": "application/json",
                "Authorization": f"Bearer {settings.openai_api_key}",
                "OpenAI-Beta": "chatkit_beta=v1",
                "User-Agent": "chatkit-session-service",
            }
        )
        # All calls differ in their body alone; preparing the rest anew takes longer than all else that is done for a call.
        self._prepared = self.http.prepare_request(requests.Request("POST", f"{settings.api_base}/v1/chatkit/sessions"))
        self._url = str(self._prepared.url)
        if missing := self.missing():
            log.warning("Sessions can't be issued before this is set: %s", ", ".join(missing))

    def missing(self) -> list[str]:
        """See ``Backend.missing``."""
        required = {"OPENAI_API_KEY": self._settings.openai_api_key, "CHATKIT_WORKFLOW_ID": self._settings.workflow_id}
        return [name for name, value in required.items() if not value]

    def issue(self, user: User) -> Session:
        """See ``Backend.issue``. Takes at most ``CALL_SECONDS``, whatever the upstream does."""
        if not self._settings.openai_api_key:
            raise errors.ApiKeyMissing("OPENAI_API_KEY is not set")
        if not self._settings.workflow_id:
            raise errors.WorkflowMissing("CHATKIT_WORKFLOW_ID is not set")
        return self._read_session(*self._call(self._url, self._request_body(user)))

    def end(self, session_id: str, user: User) -> None:
        """See ``Backend.end``; the caller has checked whose session it is. Takes as long as ``issue`` at most."""
        if not self._settings.openai_api_key:
            raise errors.ApiKeyMissing("OPENAI_API_KEY is not set")
        status, headers, body = self._call(f"{self._url}/{quote(session_id, safe='')}/cancel", None)
        about = _refuse_known(status, headers, _json_object(body))
        if status in (400, 404, 409, 410):
            log.info("%s: the session of %s was over", about, user.kind)
        elif not 200 <= status < 300:
            raise errors.SessionNotEnded(about)

    def _call(self, url: str, body: dict[str, Any] | None) -> Response:
        """OpenAI's response to a POST.

        Raises:
            OpenAIUnavailable: there was none in time.
            SessionNotCreated: it can't be read.
        """
        request = self._prepared.copy()
        request.url = url
        if request_id := logs.request_id.get():
            request.headers["X-Client-Request-Id"] = request_id
        request.prepare_body(data=None, files=None, json=body)
        try:
            return call(self.http, request, seconds=CALL_SECONDS, max_bytes=MAX_ANSWER_BYTES)
        except ResponseUnreadable as error:
            raise errors.SessionNotCreated("OpenAI's answer is not encoded as it says") from error
        except CallFailed as error:
            raise errors.OpenAIUnavailable("no answer from OpenAI") from error

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
        answer = _json_object(body)
        about = _refuse_known(status, headers, answer)
        if status == 404:
            raise errors.SessionNotCreated(
                f"{about}: most often the key belongs to another project than the workflow; is another OPENAI_API_KEY set on "
                "this machine? From 30 November 2026 on: hosted workflows have ended, set CHATKIT_BACKEND=selfhosted"
            )
        if not 200 <= status < 300:
            raise errors.SessionNotCreated(about)
        if not body and status == 200 and not headers.keys() & {"content-length", "transfer-encoding"}:
            raise errors.OpenAIUnavailable(f"{about} and hung up within the headers")
        if len(body) > MAX_ANSWER_BYTES:
            raise errors.SessionNotCreated(f"{about} with more than {MAX_ANSWER_BYTES} bytes")
        session_id, secret = answer.get("id"), answer.get("client_secret")
        if not (isinstance(session_id, str) and session_id and isinstance(secret, str) and secret):
            raise errors.SessionNotCreated(f"{about} without an id and a client_secret")
        return Session(session_id=session_id, client_secret=secret, expires_at=self._expiry(answer.get("expires_at")))

    def _expiry(self, expires_at: Any) -> datetime:
        """When the session ends by our clock: ``expires_at`` (Unix seconds), unless the two clocks can't both be right.

        A life of nothing or of more than was asked for means a clock that is off. Then it is what was asked for.
        """
        now = datetime.now(UTC)
        longest = now + timedelta(seconds=self._ttl)
        if isinstance(expires_at, int | float) and now.timestamp() < expires_at <= longest.timestamp():
            return datetime.fromtimestamp(expires_at, UTC)
        return longest


def _refuse_known(status: int, headers: Any, answer: dict[str, Any]) -> str:
    """Raise what an answer means whatever was asked; else say, for the log, which answer it is."""
    about = f"OpenAI answered {status}{_reference(headers, answer)}"
    if status == 401:
        raise errors.OpenAIAuthenticationFailed(f"{about}: OPENAI_API_KEY is not valid (any more)")
    if status == 429:
        raise errors.OpenAIRateLimited(about, retry_after=_retry_after(headers))
    if status >= 500:
        raise errors.OpenAIUnavailable(about)
    return about


def _without_unset(value: dict[str, Any]) -> dict[str, Any]:
    """``value`` without ``None`` and without what is empty because of that."""
    nested = {name: _without_unset(item) if isinstance(item, dict) else item for name, item in value.items()}
    return {name: item for name, item in nested.items() if item is not None and item != {}}


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _reference(headers: Any, answer: dict[str, Any]) -> str:
    """What helps to find the call at OpenAI and says nothing of it: their request id and their word for the error.

    Their error message is left out: it quotes the workflow id and parts of the key.
    """
    parts = []
    request_id = headers.get("x-request-id", "")
    if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", request_id):
        parts.append(f"request {request_id}")
    error = answer.get("error")
    code = error.get("code") or error.get("type") if isinstance(error, dict) else None
    if isinstance(code, str) and re.fullmatch(r"[a-z]+(_[a-z]+)*", code[:60]):
        parts.append(code[:60])
    return f" ({', '.join(parts)})" if parts else ""


def _retry_after(headers: Any) -> int | None:
    value = headers.get("Retry-After", "")
    return min(int(value), MAX_RETRY_AFTER) if re.fullmatch(r"[0-9]{1,6}", value) else None

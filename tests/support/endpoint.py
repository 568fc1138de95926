"""``POST /api/chatkit/sessions`` through Flask's test client."""

from __future__ import annotations

import re
from copy import copy
from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from chatkit.identity.user import User
from tests.support.applications import MakeApp

ENDPOINT = "/api/chatkit/sessions"
USER = User("anonymous", "6f1b3c1e-6a0f-4f43-9d53-0a1b2c3d4e5f")


def error_of(response: TestResponse) -> tuple[int, str, str]:
    """Return status, code and message, after checking what all error responses have in common."""
    body: dict[str, Any] = response.get_json()
    assert body.keys() == {"status", "message", "code"}
    assert body["status"] == "error"
    assert response.content_type == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Request-ID"])
    return response.status_code, body["code"], body["message"]


def create_session(client: FlaskClient, **headers: str) -> str:
    session_id: str = client.post(ENDPOINT, headers=headers).get_json()["data"]["session_id"]
    return session_id


def restarted(client: FlaskClient, make_app: MakeApp, **variables: str) -> FlaskClient:
    """The same browser, after a restart of the service with other variables."""
    later = make_app(**variables).test_client()
    later._cookies = copy(client._cookies)
    return later

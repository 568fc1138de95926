"""The hosted backend's client of OpenAI's Sessions API."""

from __future__ import annotations

from typing import Any

from chatkit.backends.hosted.sessions_api import SessionsApi
from chatkit.settings import Settings
from tests.support.fake_openai import API_KEY, WORKFLOW_ID
from tests.support.fake_server import Received
from tests.support.service import SECRET_KEY

COMPLETE = {"SECRET_KEY": SECRET_KEY, "OPENAI_API_KEY": API_KEY, "CHATKIT_WORKFLOW_ID": WORKFLOW_ID}


def sessions_api(base: str, **variables: str) -> SessionsApi:
    return SessionsApi(Settings.load({**COMPLETE, "CHATKIT_API_BASE": base, **variables}))


def what_counts(received: Received) -> tuple[str, str, Any, dict[str, str | None]]:
    headers = {
        name: received.headers.get(name) for name in ("authorization", "openai-beta", "content-type", "accept", "cookie")
    }
    return received.method, received.path, received.body, headers

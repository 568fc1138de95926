"""A fake of OpenAI over real HTTP, which can be made to fail. The Responses API's behaviours are in ``responses_api``."""

from __future__ import annotations

import secrets
import ssl
import time
from typing import Any

from tests.support.fake_server import Behaviour, FakeServer, Handler, responding

API_KEY = "sk-test-4ee0d2f7c1a94b3e8f60"
WORKFLOW_ID = "wf_test_68f0c1d2e3b4a5968778"
SECRET_PREFIX = "ek_test_"


class FakeOpenAI(FakeServer):
    """Issues sessions, by default."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
        self.behaviour = issue_session
        self.list_models: Behaviour = responding(200, {"object": "list", "data": []})

    def handle(self, handler: Handler) -> None:
        if handler.path == "/v1/models":  # requested at the start of a process; no test's ``received`` has it
            self.list_models(handler)
        else:
            super().handle(handler)


def session(**changes: Any) -> dict[str, Any]:
    """A ``chatkit.session`` as OpenAI documents it. ``None`` omits a member."""
    whole = {
        "id": f"cksess_{secrets.token_hex(24)}",
        "object": "chatkit.session",
        "client_secret": f"{SECRET_PREFIX}{secrets.token_hex(48)}",
        "expires_at": int(time.time()) + 600,
        "workflow": {"id": WORKFLOW_ID, "version": None, "state_variables": None, "tracing": {"enabled": True}},
        "user": "anonymous:someone",
        "rate_limits": {"max_requests_per_1_minute": 10},
        "max_requests_per_1_minute": 10,
        "status": "active",
        "chatkit_configuration": {
            "automatic_thread_titling": {"enabled": True},
            "file_upload": {"enabled": False, "max_file_size": None, "max_files": None},
            "history": {"enabled": True, "recent_threads": None},
        },
    }
    return {name: value for name, value in {**whole, **changes}.items() if value is not None}


def issue_session(handler: Handler) -> None:
    handler.respond(200, session())


def issuing(**changes: Any) -> Behaviour:
    """Respond with a session that has ``changes``."""
    return lambda handler: handler.respond(200, session(**changes))


def failing(status: int, code: str, **headers: str) -> Behaviour:
    """Respond with an error like OpenAI's, whose message quotes what must never be shown."""
    message = f"Workflow with id '{WORKFLOW_ID}' not found. Incorrect API key provided: {API_KEY}."
    return responding(status, {"error": {"message": message, "type": "invalid_request_error", "code": code}}, **headers)


def delayed(seconds: float) -> Behaviour:
    """Respond with a session after ``seconds``."""

    def behave(handler: Handler) -> None:
        time.sleep(seconds)
        issue_session(handler)

    return behave


def users(fake_openai: FakeOpenAI) -> list[str]:
    return [received.body["user"] for received in fake_openai.received]


def cancelled(fake_openai: FakeOpenAI) -> list[str]:
    return [received.path for received in fake_openai.received if received.path.endswith("/cancel")]


def user_of(fake_openai: FakeOpenAI) -> str:
    user: str = fake_openai.received[-1].body["user"]
    return user

"""Fixtures of the unit tests."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from chatkit import create_app
from chatkit.backends.hosted import sessions_api
from chatkit.settings import Settings
from chatkit.web.asgi import AsgiFlask
from tests.support.applications import MakeApp
from tests.support.identity_provider import SECRET


@pytest.fixture(scope="session")
def one_client() -> FlaskClient:
    """A client of an application without an API key, whose error shows that a request has passed all checks."""
    app = create_app(Settings.load({"SECRET_KEY": "a-key-of-the-tests-and-nobody-else", "RATE_LIMIT": "1000000"}))
    return app.test_client(use_cookies=False)


@pytest.fixture
def short_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds instead of ten for a call of OpenAI's Sessions API. tests/service/test_gunicorn.py covers the real budget."""
    monkeypatch.setattr(sessions_api, "CALL_SECONDS", 2.0)


@pytest.fixture
def with_secret(make_app: MakeApp) -> FlaskClient:
    """A client of a service that trusts tokens signed with ``SECRET``."""
    return make_app(AUTH_JWT_SECRET=SECRET).test_client()


@pytest.fixture
def app(make_app: MakeApp, database: str) -> AsgiFlask:
    """A self-hosted application with the demo, on each kind of database."""
    return make_app(CHATKIT_BACKEND="selfhosted", DATABASE_URL=database, OPENAI_API_KEY="")

"""Fixtures of the unit tests."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from chatkit import create_app
from chatkit.settings import Settings


@pytest.fixture(scope="session")
def one_client() -> FlaskClient:
    """A client of an application without an API key, whose error shows that a request has passed all checks."""
    app = create_app(Settings.load({"SECRET_KEY": "a-key-of-the-tests-and-nobody-else", "RATE_LIMIT": "1000000"}))
    return app.test_client(use_cookies=False)

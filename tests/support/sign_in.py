"""Sessions for the tokens of an identity provider."""

from __future__ import annotations

from typing import Any

from flask.testing import FlaskClient

from tests.support.endpoint import ENDPOINT

INVALID = (401, "invalid_token", "Invalid or expired token")
ISSUER = "https://login.example.com/"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def issue(client: FlaskClient, token: str, **options: Any) -> Any:
    return client.post(ENDPOINT, headers=bearer(token), **options)

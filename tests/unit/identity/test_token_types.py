"""Tokens of other kinds, signed by the right key: what an identity provider signs besides sign-ins is not one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT, error_of
from tests.support.provider import SECRET, Provider, claims, signed_with

ISSUER = "https://login.example.com/"
INVALID = (401, "invalid_token", "Invalid or expired token")
LOGOUT: dict[str, Any] = {"http://schemas.openid.net/event/backchannel-logout": {}}


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as running:
        yield running


@pytest.fixture(params=["published key", "shared secret"])
def asked(request: pytest.FixtureRequest, make_app: MakeApp, provider: Provider) -> Any:
    """Sends a token with a header and claims, signed by the right key, and gives the answer."""
    shared = request.param == "shared secret"
    app = make_app(**({"AUTH_JWT_SECRET": SECRET} if shared else {"AUTH_JWKS_URL": provider.url, "AUTH_JWT_ISSUER": ISSUER}))
    client: FlaskClient = app.test_client()

    def ask(header: dict[str, Any], **changes: Any) -> Any:
        payload = claims(iss=ISSUER, **changes)
        token = signed_with(SECRET.encode(), {**header, "alg": "HS256"}, payload) if shared else provider.token(payload, header)
        return client.post(ENDPOINT, headers={"Authorization": f"Bearer {token}"})

    return ask


@pytest.mark.parametrize("type_", [None, "JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "application/jwt"])
def test_a_sign_in(asked: Any, type_: str | None) -> None:
    # PyJWT leaves the member out for None.
    assert asked({"typ": type_} if type_ else {}).status_code == 200


@pytest.mark.parametrize(
    "type_",
    [
        "logout+jwt",
        "LOGOUT+JWT",
        "application/logout+jwt",
        "secevent+jwt",
        "dpop+jwt",
        "token-introspection+jwt",
        "JOSE",
        "at+jwt ",
        "application/application/jwt",
    ],
)
def test_another_type_is_no_sign_in(asked: Any, type_: str) -> None:
    assert error_of(asked({"typ": type_})) == INVALID


@pytest.mark.parametrize("type_", [1, True, ["JWT"], {"typ": "JWT"}])
def test_a_type_that_is_no_text(asked: Any, type_: Any) -> None:
    assert error_of(asked({"typ": type_})) == INVALID


@pytest.mark.parametrize("type_", ["JWT", "at+jwt"])
def test_a_logout_token_that_does_not_say_so_in_its_header(asked: Any, type_: str) -> None:
    assert error_of(asked({"typ": type_}, events=LOGOUT)) == INVALID


@pytest.mark.parametrize("events", [{}, [], "login", {"https://example.com/concert": {}}, None])
def test_other_events_are_a_claim_like_any(asked: Any, events: Any) -> None:
    assert asked({}, events=events).status_code == 200

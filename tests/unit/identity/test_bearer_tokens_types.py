"""Tokens that an identity provider signs for other purposes than sign-in are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT, error_of
from tests.support.identity_provider import SECRET, IdentityProvider, claims, signed_with
from tests.support.sign_in import INVALID, ISSUER

LOGOUT: dict[str, Any] = {"http://schemas.openid.net/event/backchannel-logout": {}}


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as running:
        yield running


@pytest.fixture(params=["published key", "shared secret"])
def send(request: pytest.FixtureRequest, make_app: MakeApp, provider: IdentityProvider) -> Any:
    """Send a token with the given header and claims, signed with the right key, and return the response."""
    shared = request.param == "shared secret"
    app = make_app(**({"AUTH_JWT_SECRET": SECRET} if shared else {"AUTH_JWKS_URL": provider.url, "AUTH_JWT_ISSUER": ISSUER}))
    client: FlaskClient = app.test_client()

    def post(header: dict[str, Any], **changes: Any) -> Any:
        payload = claims(iss=ISSUER, **changes)
        token = signed_with(SECRET.encode(), {**header, "alg": "HS256"}, payload) if shared else provider.token(payload, header)
        return client.post(ENDPOINT, headers={"Authorization": f"Bearer {token}"})

    return post


@pytest.mark.parametrize("type_", [None, "JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "application/jwt"])
def test_accepted_types(send: Any, type_: str | None) -> None:
    # For None, PyJWT omits the member.
    assert send({"typ": type_} if type_ else {}).status_code == 200


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
def test_other_types_are_refused(send: Any, type_: str) -> None:
    assert error_of(send({"typ": type_})) == INVALID


@pytest.mark.parametrize("type_", [1, True, ["JWT"], {"typ": "JWT"}])
def test_type_that_is_not_a_string(send: Any, type_: Any) -> None:
    assert error_of(send({"typ": type_})) == INVALID


@pytest.mark.parametrize("type_", ["JWT", "at+jwt"])
def test_logout_token_without_its_type_in_the_header(send: Any, type_: str) -> None:
    assert error_of(send({"typ": type_}, events=LOGOUT)) == INVALID


@pytest.mark.parametrize("events", [{}, [], "login", {"https://example.com/concert": {}}, None])
def test_other_events_claims_are_ignored(send: Any, events: Any) -> None:
    assert send({}, events=events).status_code == 200

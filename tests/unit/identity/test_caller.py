"""Who is calling: the user of a token, or else the visitor of the cookie."""

from __future__ import annotations

import jwt
import pytest
from flask.testing import FlaskClient

from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT, error_of
from tests.support.fake_openai import FakeOpenAI, user_of
from tests.support.identity_provider import SECRET, claims, shared
from tests.support.leaks import Recorder
from tests.support.sign_in import INVALID, issue


def test_token_size_limit(with_secret: FlaskClient) -> None:
    assert issue(with_secret, shared(more="x" * 5000)).status_code == 200
    assert error_of(issue(with_secret, shared(more="x" * 7000))) == INVALID


@pytest.mark.parametrize(("length", "good"), [(8192, True), (8193, False)])
def test_length_of_a_token(with_secret: FlaskClient, length: int, good: bool) -> None:
    tokens = (
        jwt.encode(claims(more="x" * more), SECRET, "HS256", {"kid": "k" * kid})
        for kid in range(1, 5)
        for more in range(5900, 6100)
    )
    answer = issue(with_secret, next(token for token in tokens if len(token) == length))
    assert (answer.status_code == 200) is good


@pytest.mark.parametrize(
    ("header", "good"),
    [
        ("Bearer {token}", True),
        ("bearer {token}", True),
        ("BEARER  {token}", True),
        ("Bearer{token}", False),
        ("Bearer\t{token}", False),
        ("Bearer {token},", False),
        ("Bearer {token}!", False),
        ("Bearer {token} more", False),
        ("Basic x, Bearer {token}", False),
        ("Bearer ", False),
        ("Basic YTpi", False),
    ],
)
def test_form_of_the_header(with_secret: FlaskClient, header: str, good: bool) -> None:
    response = with_secret.post(ENDPOINT, headers={"Authorization": header.format(token=shared())})
    assert (response.status_code == 200) is good, response.text
    assert good or error_of(response) == INVALID


def test_visitor_and_signed_in_user(with_secret: FlaskClient, fake_openai: FakeOpenAI) -> None:
    assert with_secret.post(ENDPOINT).status_code == 200
    visitor = user_of(fake_openai)
    assert visitor.startswith("anonymous:")
    assert issue(with_secret, shared()).status_code == 200
    assert user_of(fake_openai) == "user:ada"
    assert with_secret.post(ENDPOINT).status_code == 200
    assert user_of(fake_openai) == visitor


def test_visitor_is_refused_if_auth_is_required(make_app: MakeApp, fake_openai: FakeOpenAI) -> None:
    client = make_app(AUTH_REQUIRED="true", AUTH_JWT_SECRET=SECRET).test_client()
    response = client.post(ENDPOINT)
    assert error_of(response) == (401, "authentication_required", "Authentication required")
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert "Set-Cookie" not in response.headers
    assert fake_openai.received == []
    assert issue(client, shared()).status_code == 200


def test_invalid_token_has_the_header_of_rfc_6750(with_secret: FlaskClient) -> None:
    response = issue(with_secret, "e30.e30.x")
    assert error_of(response) == INVALID
    assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


def test_without_auth_settings_tokens_are_refused_and_other_schemes_are_ignored(
    client: FlaskClient, fake_openai: FakeOpenAI, recorder: Recorder
) -> None:
    for value in (f"Bearer {shared()}", "bearer x", "Bearer"):
        assert error_of(client.post(ENDPOINT, headers={"Authorization": value})) == INVALID
    assert fake_openai.received == []
    for value in ("Basic c3RhZ2luZzpwYXNzd29yZA==", 'Digest username="bearer"', "Bearers x"):
        assert client.post(ENDPOINT, headers={"Authorization": value}).status_code == 200
    assert "neither AUTH_JWT_SECRET nor AUTH_JWKS_URL" in "\n".join(recorder.lines[-30:])

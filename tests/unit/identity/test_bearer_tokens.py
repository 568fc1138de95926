"""Tokens of common identity providers, and the claims that are passed on. Forged tokens: tests/service/test_attacks.py."""

from __future__ import annotations

import json
import time
from datetime import datetime, tzinfo
from typing import Any, Self

import jwt
import pytest
from flask.testing import FlaskClient
from sqlalchemy import create_engine, text

from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT, error_of
from tests.support.fake_openai import WORKFLOW_ID, FakeOpenAI, user_of
from tests.support.identity_provider import SECRET, IdentityProvider, claims, shared
from tests.support.leaks import Recorder
from tests.support.sign_in import INVALID, issue

# Claims and headers as the providers document them

PROVIDERS: dict[str, tuple[dict[str, str], dict[str, Any], dict[str, Any], str]] = {
    "Auth0, an access token for an API": (
        {"AUTH_JWT_ISSUER": "https://shop.eu.auth0.com/", "AUTH_JWT_AUDIENCE": "https://api.example.com"},
        {"typ": "JWT"},
        {
            "iss": "https://shop.eu.auth0.com/",
            "sub": "auth0|6563f1a0c5b9d1e8a7f0b2c3",
            "aud": ["https://api.example.com", "https://shop.eu.auth0.com/userinfo"],
            "scope": "openid profile email",
            "azp": "Zq8Vb1mTn4cXyR2kLs7Pd0Wf",
        },
        "auth0|6563f1a0c5b9d1e8a7f0b2c3",
    ),
    "Auth0, RFC 9068 profile": (
        {"AUTH_JWT_ISSUER": "https://shop.eu.auth0.com/", "AUTH_JWT_AUDIENCE": "https://api.example.com"},
        {"typ": "at+jwt"},
        {
            "iss": "https://shop.eu.auth0.com/",
            "sub": "google-oauth2|104857600000000000001",
            "aud": "https://api.example.com",
            "client_id": "Zq8Vb1mTn4cXyR2kLs7Pd0Wf",
            "jti": "u5Fq2Lk9",
        },
        "google-oauth2|104857600000000000001",
    ),
    "Clerk, version 1": (
        {"AUTH_JWT_ISSUER": "https://clerk.example.com"},
        {"typ": "JWT"},
        {
            "iss": "https://clerk.example.com",
            "sub": "user_2fXkQ0aBcDeFgHiJkLmNoPqRsT",
            "sid": "sess_2fXkQ1aBcDeFgHiJkLmNoPqRsT",
            "azp": "https://app.example.com",
            "nbf": int(time.time()) - 10,
            "org_id": "org_2fXk",
            "org_role": "org:admin",
        },
        "user_2fXkQ0aBcDeFgHiJkLmNoPqRsT",
    ),
    "Clerk, version 2, checked by azp": (
        {
            "AUTH_JWT_ISSUER": "https://clerk.example.com",
            "AUTH_JWT_AUDIENCE": "https://app.example.com,https://www.example.com",
        },
        {"typ": "JWT", "cat": "cl_B7d4PD111AAA"},
        {
            "iss": "https://clerk.example.com",
            "sub": "user_2fXkQ0aBcDeFgHiJkLmNoPqRsT",
            "azp": "https://app.example.com",
            "v": 2,
            "fva": [5, -1],
            "o": {"id": "org_2fXk", "rol": "admin"},
        },
        "user_2fXkQ0aBcDeFgHiJkLmNoPqRsT",
    ),
    "Supabase": (
        {"AUTH_JWT_ISSUER": "https://abcdefghij.supabase.co/auth/v1", "AUTH_JWT_AUDIENCE": "authenticated"},
        {"typ": "JWT"},
        {
            "iss": "https://abcdefghij.supabase.co/auth/v1",
            "aud": "authenticated",
            "sub": "123e4567-e89b-12d3-a456-426614174000",
            "role": "authenticated",
            "aal": "aal1",
            "session_id": "9d4f3c1e-6a0f-4f43-9d53-0a1b2c3d4e5f",
            "email": "ada@example.com",
            "phone": "",
            "is_anonymous": False,
            "app_metadata": {"provider": "email", "providers": ["email"]},
            "user_metadata": {},
            "amr": [{"method": "password", "timestamp": 1640991600}],
        },
        "123e4567-e89b-12d3-a456-426614174000",
    ),
    "Cognito, an access token": (
        {
            "AUTH_JWT_ISSUER": "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEfGhI",
            "AUTH_JWT_AUDIENCE": "1example23456789",
        },
        {},
        {
            "iss": "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEfGhI",
            "sub": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
            "client_id": "1example23456789",
            "token_use": "access",
            "scope": "aws.cognito.signin.user.admin",
            "cognito:groups": ["pro"],
            "username": "ada",
            "jti": "aaaaaaaa-bbbb-cccc-dddd-000000000000",
        },
        "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
    ),
    "Cognito, an ID token": (
        {
            "AUTH_JWT_ISSUER": "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEfGhI",
            "AUTH_JWT_AUDIENCE": "1example23456789",
        },
        {},
        {
            "iss": "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEfGhI",
            "sub": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
            "aud": "1example23456789",
            "token_use": "id",
            "cognito:username": "ada",
            "email": "ada@example.com",
            "email_verified": True,
        },
        "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
    ),
}


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("shape", PROVIDERS)
def test_tokens_of_common_providers(make_app: MakeApp, fake_openai: FakeOpenAI, shape: str, algorithm: str) -> None:
    """Also after key rotation, with the old key still published and without it."""
    variables, headers, payload, subject = PROVIDERS[shape]
    with IdentityProvider(algorithm) as provider:
        client = make_app(AUTH_JWKS_URL=provider.url, **variables).test_client()
        for keep in (None, True, False):
            if keep is not None:
                provider.rotate(algorithm, keep=keep)
            response = issue(client, provider.token(claims(**payload), headers))
            assert response.status_code == 200, response.text
            assert user_of(fake_openai) == f"user:{subject}"
        for other in ({"iss": "https://other.example.com"}, {"aud": "other", "client_id": "other", "azp": "other"}):
            if "AUTH_JWT_AUDIENCE" in variables or "iss" in other:
                assert error_of(issue(client, provider.token(claims(**{**payload, **other})))) == INVALID
    assert len(fake_openai.received) == 3


@pytest.mark.parametrize(
    ("variables", "payload", "subject"),
    [
        (
            {"AUTH_JWT_AUDIENCE": "authenticated"},
            {"aud": "authenticated", "sub": "123e4567-e89b-12d3-a456-426614174000", "role": "authenticated"},
            "123e4567-e89b-12d3-a456-426614174000",
        ),
        ({}, {"sub": "42", "name": "Ada", "email": "ada@example.com", "picture": None, "jti": "0b7f"}, "42"),
        ({"AUTH_USER_CLAIM": "email"}, {"name": "Ada", "email": "ada@example.com"}, "ada@example.com"),
    ],
    ids=["Supabase, legacy secret", "Auth.js, signed", "Auth.js, by email"],
)
def test_tokens_signed_with_a_shared_secret(
    make_app: MakeApp, fake_openai: FakeOpenAI, variables: dict[str, str], payload: dict[str, Any], subject: str
) -> None:
    client = make_app(AUTH_JWT_SECRET=SECRET, **variables).test_client()
    assert issue(client, shared(claims(**payload))).status_code == 200
    assert user_of(fake_openai) == f"user:{subject}"


@pytest.mark.parametrize(("length", "good"), [(255, True), (256, False)])
def test_length_of_a_subject(with_secret: FlaskClient, length: int, good: bool) -> None:
    assert (issue(with_secret, shared(sub="a" * length)).status_code == 200) is good


@pytest.mark.parametrize(
    ("subject", "good"),
    [
        ("!", True),
        ("~", True),
        ("auth0|ada@example.com", True),
        ("a b", False),
        ("\x7f", False),
        ("\u00e4", False),
        ("a\n", False),
        ("", False),
    ],
)
def test_characters_of_a_subject(with_secret: FlaskClient, subject: str, good: bool) -> None:
    assert (issue(with_secret, shared(sub=subject)).status_code == 200) is good


def test_encrypted_token_is_refused(with_secret: FlaskClient) -> None:
    """By default Auth.js encrypts its session token, which only Auth.js can read."""
    header = jwt.utils.base64url_encode(b'{"alg":"dir","enc":"A256CBC-HS512"}').decode()
    assert error_of(issue(with_secret, f"{header}..aXY.Y2lwaGVydGV4dA.dGFn")) == INVALID


def test_supabase_anon_key_is_refused(make_app: MakeApp) -> None:
    """A valid token that is public in the frontend and names no user."""
    client = make_app(AUTH_JWT_SECRET=SECRET).test_client()
    anon = {"iss": "supabase", "ref": "abcdefghij", "role": "anon", "iat": 1640991600, "exp": 1956567600}
    assert error_of(issue(client, shared(anon))) == INVALID


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({"exp": 30}, True),
        ({"exp": -29}, True),
        ({"exp": -30}, False),
        ({"exp": None}, False),
        ({"nbf": 30}, True),
        ({"nbf": 31}, False),
        ({"iat": 30}, True),
        ({"iat": 31}, False),
        ({"iat": None}, True),
    ],
)
def test_time_claims(
    with_secret: FlaskClient, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int | None], good: bool
) -> None:
    now = int(time.time())

    class StoppedClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromtimestamp(now, tz)

    monkeypatch.setattr("jwt.api_jwt.datetime", StoppedClock)
    moved = {name: None if seconds is None else now + seconds for name, seconds in changes.items()}
    assert (issue(with_secret, shared(claims(**moved))).status_code == 200) is good


@pytest.mark.parametrize(
    ("configured", "audience", "good"),
    [
        ("api", "api", True),
        ("api,web", ["other", "web"], True),
        ("api", ["other"], False),
        ("api", "", False),
        ("api", [], False),
        ("api", {"api": 1}, False),
        ("api", ["API"], False),
        ("api", "api,web", False),
        ("api", None, False),
        ("", "api", False),  # RFC 7519: a token with an audience must name this service
        ("", None, True),
    ],
)
def test_audience(make_app: MakeApp, configured: str, audience: Any, good: bool) -> None:
    client = make_app(AUTH_JWT_SECRET=SECRET, AUTH_JWT_AUDIENCE=configured).test_client()
    assert (issue(client, shared(claims(aud=audience))).status_code == 200) is good


# Claims that are passed on


STATE = "plan,seats,admin,share,name,app_metadata.plan,https://example.com/role,org.id,missing,groups,nothing,endless"
CLAIMS: dict[str, Any] = {
    "plan": "pro",
    "seats": 3,
    "admin": False,
    "share": 0.5,
    "app_metadata": {"plan": "team", "internal": "not listed"},
    "https://example.com/role": "editor",
    "org": "acme",
    "groups": ["a", "b"],
    "endless": float("inf"),
    "email": "not-listed@example.com",
    "name": "Ada\r\nSet-Cookie: x=1\u2028",
}


def test_only_listed_claims_become_state_variables(make_app: MakeApp, fake_openai: FakeOpenAI) -> None:
    client = make_app(AUTH_JWT_SECRET=SECRET, CHATKIT_STATE_CLAIMS=STATE).test_client()
    assert issue(client, shared(claims(**CLAIMS))).status_code == 200
    assert fake_openai.received[0].body["workflow"]["state_variables"] == {
        "plan": "pro",
        "seats": 3,
        "admin": False,
        "share": 0.5,
        "name": "Ada\r\nSet-Cookie: x=1\u2028",
        "app_metadata.plan": "team",
        "https://example.com/role": "editor",
    }
    client.post(ENDPOINT)
    assert "state_variables" not in fake_openai.received[1].body["workflow"]


@pytest.mark.parametrize(
    ("claim", "held", "workflow"),
    [
        ("plan", {"plan": "pro"}, "wf_test_pro"),
        ("plan", {"plan": "free"}, WORKFLOW_ID),
        ("plan", {"plan": ""}, WORKFLOW_ID),
        ("plan", {"plan": None}, WORKFLOW_ID),
        ("plan", {"plan": {"pro": True}}, WORKFLOW_ID),
        ("cognito:groups", {"cognito:groups": ["team", "pro"]}, "wf_test_pro"),
        ("cognito:groups", {"cognito:groups": ["team"]}, "wf_test_team"),
        ("app_metadata.plan", {"app_metadata": {"plan": "team"}, "user_metadata": {"plan": "pro"}}, "wf_test_team"),
        ("app_metadata.billing.plan", {"app_metadata": {"billing": {"plan": "team"}}}, "wf_test_team"),
    ],
)
def test_workflow_by_claim(make_app: MakeApp, fake_openai: FakeOpenAI, claim: str, held: dict[str, Any], workflow: str) -> None:
    variables = {"CHATKIT_AGENT_CLAIM": claim, "CHATKIT_WORKFLOWS": "pro=wf_test_pro,team=wf_test_team"}
    client = make_app(AUTH_JWT_SECRET=SECRET, **variables).test_client()
    response = issue(client, shared(claims(**held)))
    assert response.status_code == 200
    assert fake_openai.received[0].body["workflow"] == {"id": workflow}
    assert "wf_test" not in response.text


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_only_listed_claims_are_stored(make_app: MakeApp, database: str) -> None:
    agents = {"CHATKIT_AGENT_CLAIM": "plan", "CHATKIT_AGENTS": "pro=tests.support.agents_under_test:simple"}
    variables = {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": database, "AUTH_JWT_SECRET": SECRET, **agents}
    client = make_app(**variables, CHATKIT_STATE_CLAIMS="seats,odd").test_client()
    assert issue(client, shared(plan="pro", seats=3, odd="\x00\ud800", email="ada@example.com")).status_code == 200
    assert client.post(ENDPOINT).status_code == 200
    with create_engine(database).connect() as connection:
        rows = connection.execute(text("SELECT user_id, agent, claims FROM chat_sessions ORDER BY agent")).all()
    kept = {row.user_id.partition(":")[0]: (row.agent, row.claims and json.loads(row.claims)) for row in rows}
    assert kept == {"user": ("pro", {"seats": 3, "odd": "\x00\ud800"}), "anonymous": (None, None)}


def test_log_has_the_reason_and_no_token(with_secret: FlaskClient, recorder: Recorder) -> None:
    before = len(recorder.lines)
    token = shared(claims(sub="ada\r\nINFO forged", exp=1))
    issue(with_secret, token)
    issue(with_secret, shared(claims(sub="ada\r\nINFO forged")))
    lines = recorder.lines[before:]
    assert any("(ExpiredSignatureError)" in json.loads(line)["message"] for line in lines)
    assert any("AUTH_USER_CLAIM" in json.loads(line)["message"] for line in lines)
    assert not any("forged" in line or token in line for line in lines)

"""Tokens of common identity providers, key rotation, and failing key servers. Forged tokens: tests/service/test_attacks.py."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jwt
import pytest
from flask.testing import FlaskClient
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from sqlalchemy import create_engine, text

from chatkit.identity import jwks
from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT, error_of
from tests.support.fake_openai import WORKFLOW_ID, FakeOpenAI
from tests.support.fake_server import Handler, dripping, endless, responding, silent
from tests.support.identity_provider import SECRET, IdentityProvider, claims, private_key, public_jwk, shared
from tests.support.leaks import Recorder

INVALID = (401, "invalid_token", "Invalid or expired token")
UNAVAILABLE = (503, "sign_in_unavailable", "Sign-in temporarily unavailable")
ISSUER = "https://login.example.com/"


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as running:
        yield running


@pytest.fixture
def with_keys(make_app: MakeApp, provider: IdentityProvider) -> FlaskClient:
    """A client of a service that trusts the provider's JWKS."""
    return make_app(AUTH_JWKS_URL=provider.url, AUTH_JWT_ISSUER=ISSUER).test_client()


@pytest.fixture
def with_secret(make_app: MakeApp) -> FlaskClient:
    return make_app(AUTH_JWT_SECRET=SECRET).test_client()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Move the monotonic clock of the JWKS forward by setting the list's element, in seconds."""
    moved = [0.0]
    monotonic = time.monotonic
    monkeypatch.setattr(jwks, "time", type("Clock", (), {"monotonic": lambda: monotonic() + moved[0]}))
    return moved


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def issue(client: FlaskClient, token: str, **options: Any) -> Any:
    return client.post(ENDPOINT, headers=bearer(token), **options)


def user_of(fake_openai: FakeOpenAI) -> str:
    user: str = fake_openai.received[-1].body["user"]
    return user


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


@pytest.mark.parametrize(("length", "good"), [(255, True), (256, False)])
def test_length_of_a_subject(with_secret: FlaskClient, length: int, good: bool) -> None:
    assert (issue(with_secret, shared(sub="a" * length)).status_code == 200) is good


def test_encrypted_token_is_refused(with_secret: FlaskClient) -> None:
    """By default Auth.js encrypts its session token, which only Auth.js can read."""
    header = jwt.utils.base64url_encode(b'{"alg":"dir","enc":"A256CBC-HS512"}').decode()
    assert error_of(issue(with_secret, f"{header}..aXY.Y2lwaGVydGV4dA.dGFn")) == INVALID


def test_supabase_anon_key_is_refused(make_app: MakeApp) -> None:
    """A valid token that is public in the frontend and names no user."""
    client = make_app(AUTH_JWT_SECRET=SECRET).test_client()
    anon = {"iss": "supabase", "ref": "abcdefghij", "role": "anon", "iat": 1640991600, "exp": 1956567600}
    assert error_of(issue(client, shared(anon))) == INVALID


# The caller


def test_visitor_and_signed_in_user(with_secret: FlaskClient, fake_openai: FakeOpenAI) -> None:
    assert with_secret.post(ENDPOINT).status_code == 200
    visitor = user_of(fake_openai)
    assert visitor.startswith("anonymous:")
    assert issue(with_secret, shared()).status_code == 200
    assert user_of(fake_openai) == "user:ada"
    assert with_secret.post(ENDPOINT).status_code == 200
    assert user_of(fake_openai) == visitor


def test_subject_that_looks_like_a_visitor_is_a_user(with_secret: FlaskClient, fake_openai: FakeOpenAI) -> None:
    with_secret.post(ENDPOINT)
    visitor = user_of(fake_openai)
    issue(with_secret, shared(sub=visitor))
    issue(with_secret, shared(sub=visitor.partition(":")[2]))
    assert len({received.body["user"] for received in fake_openai.received}) == 3


def test_user_id_must_match_the_token(with_secret: FlaskClient, fake_openai: FakeOpenAI) -> None:
    me, other = "6f1b3c1e-6a0f-4f43-9d53-0a1b2c3d4e5f", "6f1b3c1e-6a0f-4f43-9d53-0a1b2c3d4e50"
    token = shared(sub=me.upper())
    assert issue(with_secret, token, json={"user_id": me}).status_code == 200
    refused = issue(with_secret, token, json={"user_id": other})
    assert error_of(refused) == (403, "user_mismatch", "user_id is not the user who is asking")
    assert len(fake_openai.received) == 1


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


def test_without_auth_settings_tokens_are_refused_and_basic_auth_is_ignored(
    client: FlaskClient, fake_openai: FakeOpenAI, recorder: Recorder
) -> None:
    for value in (f"Bearer {shared()}", "bearer x", "Bearer"):
        assert error_of(client.post(ENDPOINT, headers={"Authorization": value})) == INVALID
    assert fake_openai.received == []
    assert client.post(ENDPOINT, headers={"Authorization": "Basic c3RhZ2luZzpwYXNzd29yZA=="}).status_code == 200
    assert "neither AUTH_JWT_SECRET nor AUTH_JWKS_URL" in "\n".join(recorder.lines[-30:])


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({"exp": 30}, True),
        ({"exp": -25}, True),
        ({"exp": -31}, False),
        ({"exp": None}, False),
        ({"nbf": 25}, True),
        ({"nbf": 35}, False),
        ({"iat": 25}, True),
        ({"iat": 35}, False),
        ({"iat": None}, True),
    ],
)
def test_time_claims(with_secret: FlaskClient, changes: dict[str, int | None], good: bool) -> None:
    now = time.time()
    moved = {name: None if seconds is None else int(now + seconds) for name, seconds in changes.items()}
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


# JWKS


def test_concurrent_requests_fetch_the_keys_once(with_keys: FlaskClient, provider: IdentityProvider) -> None:
    token = provider.token(iss=ISSUER)

    def ask(_: int) -> int:
        status: int = with_keys.application.test_client().post(ENDPOINT, headers=bearer(token)).status_code
        return status

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(64))) == {200}
    assert provider.fetches == 1


def test_fetches_for_unknown_key_ids_are_limited(
    with_keys: FlaskClient, provider: IdentityProvider, clock: list[float]
) -> None:
    for number in range(50):
        assert error_of(issue(with_keys, provider.token(headers={"kid": f"made-up-{number}"}))) == INVALID
    assert provider.fetches == 3
    assert issue(with_keys, provider.token(iss=ISSUER)).status_code == 200
    provider.rotate()
    assert issue(with_keys, provider.token(iss=ISSUER)).status_code == 401
    clock[0] = 61
    assert issue(with_keys, provider.token(iss=ISSUER)).status_code == 200, "after a minute at the latest"


def test_withdrawn_key_is_refused_after_a_few_minutes(
    with_keys: FlaskClient, provider: IdentityProvider, clock: list[float]
) -> None:
    old = provider.token(iss=ISSUER)
    assert issue(with_keys, old).status_code == 200
    provider.rotate()
    assert issue(with_keys, old).status_code == 200
    clock[0] = 290
    assert issue(with_keys, old).status_code == 200
    clock[0] = 301
    assert error_of(issue(with_keys, old)) == INVALID


def test_key_server_outage_and_recovery(
    with_keys: FlaskClient, provider: IdentityProvider, clock: list[float], recorder: Recorder
) -> None:
    token = provider.token(iss=ISSUER)
    assert issue(with_keys, token).status_code == 200
    provider.server.behaviour = Handler.hang_up
    before = len(recorder.lines)
    for clock[0] in (301, 400, 3590):
        assert issue(with_keys, token).status_code == 200, "the keys of before are good for a while"
    unknown = issue(with_keys, provider.token(headers={"kid": "perhaps-new"}))
    assert error_of(unknown) == UNAVAILABLE, "nobody can tell"
    assert unknown.headers["Retry-After"] == "5"
    clock[0] = 3601
    assert error_of(issue(with_keys, token)) == UNAVAILABLE
    assert with_keys.post(ENDPOINT).status_code == 200, "visitors need no key"
    provider.publish(*provider.published)
    clock[0] = 3720
    assert issue(with_keys, token).status_code == 200
    lines = [line for line in recorder.lines[before:] if "the keys can" in line and '"chatkit.identity.jwks"' in line]
    assert len(lines) == 2, "once when it goes and once when it comes back"


@pytest.mark.parametrize(
    "behaviour",
    [
        responding(500),
        responding(302, Location="http://127.0.0.1:9/keys"),
        responding(200, b"<html>", Content_Type="text/html"),
        responding(200, b"[]"),
        responding(200, {"keys": {"kid": "x"}}),
        responding(200, {"keys": []}),
        responding(200, b'{"keys":' + b"[" * 100_000),
        responding(200, b'{"keys": [' + b" " * 300_000 + b"]}"),
        Handler.hang_up,
        endless,
        silent(10),
        dripping(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"),
    ],
    ids=[
        "500",
        "redirect",
        "html",
        "array",
        "object",
        "no keys",
        "nested",
        "huge",
        "connection closed",
        "endless",
        "silent",
        "slow",
    ],
)
def test_failing_key_server(with_keys: FlaskClient, provider: IdentityProvider, behaviour: Callable[[Any], None]) -> None:
    provider.server.behaviour = behaviour
    started = time.monotonic()
    assert error_of(issue(with_keys, provider.token(iss=ISSUER))) == UNAVAILABLE
    assert time.monotonic() - started < 7, "two fetches of three seconds"


@pytest.mark.parametrize(("size", "good"), [(256 * 1024, True), (256 * 1024 + 1, False)])
def test_size_of_a_jwks(with_keys: FlaskClient, provider: IdentityProvider, size: int, good: bool) -> None:
    document = json.dumps({"keys": provider.published}).encode()
    provider.server.behaviour = responding(200, document.ljust(size))
    assert issue(with_keys, provider.token(iss=ISSUER)).status_code == (200 if good else 503)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_private_key_in_a_jwks_is_not_used(with_keys: FlaskClient, provider: IdentityProvider, algorithm: str) -> None:
    """Everybody has it, so anybody can sign with it."""
    provider.rotate(algorithm)
    kinds: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
    private = json.loads(kinds[algorithm].to_jwk(provider.key))
    private.pop("key_ops", None)
    assert "d" in private
    good = {**public_jwk(private_key("EdDSA", 99)), "kid": "another"}
    provider.publish({**private, "kid": provider.key_id}, good)
    assert error_of(issue(with_keys, provider.token(iss=ISSUER))) == INVALID


@pytest.mark.parametrize(("algorithm", "good"), [("RS256", True), ("RS512", False), ("PS256", False)])
def test_other_algorithms_are_not_used(with_keys: FlaskClient, provider: IdentityProvider, algorithm: str, good: bool) -> None:
    provider.publish({**provider.published[-1], "alg": algorithm}, {**public_jwk(private_key("EdDSA", 99)), "kid": "another"})
    token = jwt.encode(claims(iss=ISSUER), provider.key, algorithm, {"kid": provider.key_id})
    assert (issue(with_keys, token).status_code == 200) is good


def test_known_keys_are_used_while_they_are_fetched_again(
    with_keys: FlaskClient, provider: IdentityProvider, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_SECONDS", 30)
    token = provider.token(iss=ISSUER)
    assert issue(with_keys, token).status_code == 200
    asked, go_on = threading.Event(), threading.Event()
    published = provider.server.behaviour

    def late(handler: Handler) -> None:
        asked.set()
        go_on.wait(20)
        published(handler)

    provider.server.behaviour = late
    clock[0] = 301
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: issue(with_keys.application.test_client(), token).status_code)
        assert asked.wait(5)
        assert issue(with_keys.application.test_client(), token).status_code == 200
        assert not first.done(), "only one caller waits"
        go_on.set()
        assert first.result() == 200
    assert provider.fetches == 2


@pytest.mark.parametrize(
    ("reason", "algorithm", "changes"),
    [
        ("use is encryption", "RS256", {"use": "enc"}),
        ("key_ops is encryption", "RS256", {"key_ops": ["encrypt"]}),
        ("key_ops is empty", "RS256", {"key_ops": []}),
        ("key_ops is not a list", "RS256", {"key_ops": "verify"}),
        ("alg is none", "RS256", {"alg": "none"}),
        ("alg is not a string", "RS256", {"alg": ["RS256"]}),
        ("kty is not a string", "RS256", {"kty": {}}),
        ("the exponent is too large", "RS256", {"e": "_" * 4000}),
        ("alg is not a signature algorithm", "RS256", {"alg": "RSA-OAEP"}),
        ("alg is not one of the three accepted ones", "RS256", {"alg": "PS256"}),
        ("alg does not match kty", "ES256", {"alg": "RS256"}),
        ("an RSA key with an HMAC algorithm", "RS256", {"alg": "HS256"}),
        ("a published shared secret", "RS256", {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}),
        ("a private key", "RS256", {"d": "AQAB"}),
        ("kid is not a string", "RS256", {"kid": 1}),
        ("truncated coordinate", "ES256", {"x": "AA"}),
        ("another curve", "ES256", {"crv": "P-384"}),
        ("the modulus is not a string", "RS256", {"n": 5}),
    ],
)
def test_unusable_keys_are_ignored(
    make_app: MakeApp, provider: IdentityProvider, reason: str, algorithm: str, changes: dict[str, Any]
) -> None:
    client = make_app(AUTH_JWKS_URL=provider.url, AUTH_JWT_ISSUER=ISSUER).test_client()
    provider.rotate(algorithm)
    token = provider.token(iss=ISSUER)
    good = {**public_jwk(private_key("EdDSA", 99)), "kid": "another"}
    provider.publish({**provider.published[-1], **changes}, "not even an object", good)
    assert error_of(issue(client, token)) == INVALID, reason
    by_good = jwt.encode(claims(iss=ISSUER), private_key("EdDSA", 99), "EdDSA", {"kid": "another"})
    assert issue(client, by_good).status_code == 200, "the other keys are still used"


def test_short_rsa_key_is_refused(with_keys: FlaskClient, provider: IdentityProvider) -> None:
    key = private_key("RS256", 7, 1024)
    provider.publish({**public_jwk(key), "kid": "short"})
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        token = jwt.encode(claims(iss=ISSUER), key, "RS256", {"kid": "short"})
    assert error_of(issue(with_keys, token)) == INVALID


def test_key_without_an_id(with_keys: FlaskClient, provider: IdentityProvider) -> None:
    published = dict(provider.published[0])
    del published["kid"]
    provider.publish(published)
    token = jwt.encode(claims(iss=ISSUER), provider.key, "RS256")
    assert issue(with_keys, token).status_code == 200


def test_token_without_a_key_id(with_keys: FlaskClient, provider: IdentityProvider) -> None:
    assert issue(with_keys, jwt.encode(claims(iss=ISSUER), provider.key, "RS256")).status_code == 200


def test_token_without_key_id_is_refused_if_there_are_two_keys(with_keys: FlaskClient, provider: IdentityProvider) -> None:
    first = provider.key
    provider.rotate(keep=True)
    for key in (first, provider.key):
        assert error_of(issue(with_keys, jwt.encode(claims(iss=ISSUER), key, "RS256"))) == INVALID


def test_key_without_an_algorithm(with_keys: FlaskClient, provider: IdentityProvider) -> None:
    for algorithm in ("RS256", "ES256", "EdDSA"):
        provider.rotate(algorithm)
        published = {name: value for name, value in provider.published[-1].items() if name not in ("alg", "use")}
        provider.publish(published)
        assert issue(with_keys, provider.token(iss=ISSUER)).status_code == 200, algorithm


def test_keys_are_not_fetched_before_the_first_token(make_app: MakeApp, provider: IdentityProvider) -> None:
    client = make_app(AUTH_JWKS_URL=provider.url, AUTH_JWT_ISSUER=ISSUER).test_client()
    assert client.post(ENDPOINT).status_code == 200
    assert provider.fetches == 0


def test_log_has_the_reason_and_no_token(with_secret: FlaskClient, recorder: Recorder) -> None:
    before = len(recorder.lines)
    token = shared(claims(sub="ada\r\nINFO forged", exp=1))
    issue(with_secret, token)
    issue(with_secret, shared(claims(sub="ada\r\nINFO forged")))
    lines = recorder.lines[before:]
    assert any("(ExpiredSignatureError)" in json.loads(line)["message"] for line in lines)
    assert any("AUTH_USER_CLAIM" in json.loads(line)["message"] for line in lines)
    assert not any("forged" in line or token in line for line in lines)

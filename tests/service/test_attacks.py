"""Attacks over HTTP: each is refused in the error envelope, and no session is issued."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import itertools
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import itsdangerous
import jwt
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatkit import create_app
from chatkit.settings import Settings
from tests.support.endpoint import ENDPOINT
from tests.support.fake_openai import API_KEY, FakeOpenAI
from tests.support.hosted import COMPLETE
from tests.support.identity_provider import (
    SECRET,
    IdentityProvider,
    claims,
    encoded,
    private_key,
    public_jwk,
    shared,
    signed_with,
)
from tests.support.leaks import Recorder
from tests.support.service import SECRET_KEY, Service

NESTED = b"{" + b'"a":{' * 800
ISSUER, AUDIENCE = "https://login.example.com/", "chat"
PAGE = "http://localhost:3000"
Forgery = Callable[[IdentityProvider, IdentityProvider], str]


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as running:
        yield running


@pytest.fixture(scope="module")
def attacker() -> Iterator[IdentityProvider]:
    """A key server of the attacker, which the service never contacts."""
    with IdentityProvider() as running:
        running.publish({**public_jwk(attackers_key()), "kid": "attacker"})
        yield running


@pytest.fixture(scope="module")
def with_keys(shared_openai: FakeOpenAI, provider: IdentityProvider) -> Iterator[Service]:
    variables = {"AUTH_JWKS_URL": provider.url, "AUTH_JWT_ISSUER": ISSUER, "AUTH_JWT_AUDIENCE": AUDIENCE}
    with Service(**COMPLETE, CHATKIT_API_BASE=shared_openai.url, **variables) as running:
        yield running


@pytest.fixture(scope="module")
def with_secret(shared_openai: FakeOpenAI) -> Iterator[Service]:
    with Service(**COMPLETE, CHATKIT_API_BASE=shared_openai.url, AUTH_JWT_SECRET=SECRET) as running:
        yield running


def good() -> dict[str, Any]:
    return claims(iss=ISSUER, aud=AUDIENCE)


PUBLIC_FORMS = ("pem", "pem stripped", "pkcs1", "der", "jwk", "modulus")


def public_bytes(key: Any, form: str) -> bytes:
    """The public key in the forms in which it has been mistaken for an HMAC secret."""
    public, kinds = key.public_key(), serialization
    if form == "jwk":
        return json.dumps(public_jwk(key)).encode()
    if form == "modulus":
        modulus: int = public.public_numbers().n
        return modulus.to_bytes(256, "big")
    encoding = kinds.Encoding.DER if form == "der" else kinds.Encoding.PEM
    kind = kinds.PublicFormat.PKCS1 if form == "pkcs1" else kinds.PublicFormat.SubjectPublicKeyInfo
    pem: bytes = public.public_bytes(encoding, kind)
    return pem.strip() if form == "pem stripped" else pem


def header(provider: IdentityProvider, **changes: Any) -> dict[str, Any]:
    return {"typ": "JWT", "kid": provider.key_id, **changes}


def resigned(provider: IdentityProvider, token: str, **changes: Any) -> str:
    """``token`` with changed claims and its original signature."""
    head, payload, signature = token.split(".")
    whole = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return f"{head}.{encoded({**whole, **changes})}.{signature}"


def by_attacker(provider: IdentityProvider, **changes: Any) -> str:
    """A token signed with the attacker's key, with the right ``kid`` unless ``changes`` say otherwise."""
    return jwt.encode(good(), attackers_key(), "RS256", header(provider, **changes))


def attackers_key() -> Any:
    return private_key("RS256", 66)


def as_hmac_secret(form: str) -> Forgery:
    return lambda p, e: signed_with(public_bytes(p.key, form), header(p, alg="HS256"), good())


FORGERIES: dict[str, Forgery] = {
    # no signature
    "alg none": lambda p, e: f"{encoded(header(p, alg='none'))}.{encoded(good())}.",
    "alg None": lambda p, e: f"{encoded(header(p, alg='None'))}.{encoded(good())}.",
    "alg nOnE and a signature": lambda p, e: f"{encoded(header(p, alg='nOnE'))}.{encoded(good())}.e30",
    "alg empty": lambda p, e: f"{encoded(header(p, alg=''))}.{encoded(good())}.e30",
    "alg missing": lambda p, e: f"{encoded(header(p))}.{encoded(good())}.e30",
    "alg null": lambda p, e: f"{encoded(header(p, alg=None))}.{encoded(good())}.e30",
    "alg is a list": lambda p, e: f"{encoded(header(p, alg=['none', 'RS256']))}.{encoded(good())}.e30",
    "signature removed": lambda p, e: p.token(good()).rpartition(".")[0] + ".",
    "signature truncated": lambda p, e: p.token(good())[:-171],
    "signature all zeroes": lambda p, e: p.token(good()).rpartition(".")[0] + "." + "A" * 342,
    # wrong signature
    "attacker's key": lambda p, e: by_attacker(p),
    "attacker's key, jku": lambda p, e: by_attacker(p, jku=e.url),
    "attacker's key, jku, its own kid": lambda p, e: by_attacker(p, jku=e.url, kid="attacker"),
    "attacker's key, x5u": lambda p, e: by_attacker(p, x5u=e.url, kid="attacker"),
    "attacker's key, jwk": lambda p, e: by_attacker(p, jwk=public_jwk(attackers_key()), kid="attacker"),
    "attacker's key, x5c": lambda p, e: by_attacker(p, x5c=["MIIB"], kid="attacker"),
    "attacker's key, kid is a URL": lambda p, e: by_attacker(p, kid=e.url),
    "claims changed": lambda p, e: resigned(p, p.token(good()), sub="admin"),
    "claims changed, expiry": lambda p, e: resigned(p, p.token(good()), exp=9_999_999_999),
    # the public key as an HMAC secret
    **{f"RSA key as HMAC secret, {form}": as_hmac_secret(form) for form in PUBLIC_FORMS},
    "empty HMAC secret": lambda p, e: signed_with(b"", header(p, alg="HS256"), good()),
    "HMAC declared as RS256": lambda p, e: signed_with(public_bytes(p.key, "pem"), header(p, alg="RS256"), good()),
    "PS256 with the right key": lambda p, e: jwt.encode(good(), p.key, "PS256", header(p)),
    "RS512 with the right key": lambda p, e: jwt.encode(good(), p.key, "RS512", header(p)),
    # key ids
    "kid unknown": lambda p, e: p.token(good(), {"kid": "unknown"}),
    "kid is a path": lambda p, e: p.token(good(), {"kid": "../../../../dev/null"}),
    "kid is an SQL injection": lambda p, e: p.token(good(), {"kid": "x' UNION SELECT 'secret"}),
    "kid with a line break": lambda p, e: p.token(good(), {"kid": "x\r\nX-Forged: 1"}),
    "kid is an object": lambda p, e: f"{encoded({'alg': 'RS256', 'kid': {'$ne': ''}})}.{encoded(good())}.e30",
    "kid is a number": lambda p, e: f"{encoded({'alg': 'RS256', 'kid': 0})}.{encoded(good())}.e30",
    "kid of 6 KiB": lambda p, e: f"{encoded({'alg': 'RS256', 'kid': 'k' * 5000})}.{encoded(good())}.e30",
    # times, issuer, audience, subject
    "expired": lambda p, e: p.token({**good(), "exp": int(time.time()) - 60}),
    "no expiry": lambda p, e: p.token({name: value for name, value in good().items() if name != "exp"}),
    "expiry null": lambda p, e: p.token({**good(), "exp": None}),
    "expiry is a string": lambda p, e: p.token({**good(), "exp": "never"}),
    "expiry is infinite": lambda p, e: p.token({**good(), "exp": float("inf")}),
    "expiry is NaN": lambda p, e: p.token({**good(), "exp": float("nan")}),
    "expiry is a list": lambda p, e: p.token({**good(), "exp": [9_999_999_999]}),
    "not yet valid": lambda p, e: p.token({**good(), "nbf": int(time.time()) + 600}),
    "issued in the future": lambda p, e: p.token({**good(), "iat": int(time.time()) + 600}),
    "another issuer": lambda p, e: p.token({**good(), "iss": "https://evil.test/"}),
    "issuer without its slash": lambda p, e: p.token({**good(), "iss": ISSUER.rstrip("/")}),
    "issuer with a suffix": lambda p, e: p.token({**good(), "iss": ISSUER + ".evil.test"}),
    "no issuer": lambda p, e: p.token(claims(aud=AUDIENCE)),
    "another audience": lambda p, e: p.token({**good(), "aud": "other"}),
    "audience with a suffix": lambda p, e: p.token({**good(), "aud": "chat2"}),
    "no audience": lambda p, e: p.token(claims(iss=ISSUER)),
    "another audience, right client": lambda p, e: p.token({**good(), "aud": "other", "client_id": AUDIENCE, "azp": AUDIENCE}),
    "no subject": lambda p, e: p.token({name: value for name, value in good().items() if name != "sub"}),
    "subject empty": lambda p, e: p.token({**good(), "sub": ""}),
    "subject null": lambda p, e: p.token({**good(), "sub": None}),
    "subject too long": lambda p, e: p.token({**good(), "sub": "x" * 256}),
    "subject with a line break": lambda p, e: p.token({**good(), "sub": "ada\r\nX-Forged: 1"}),
    "subject with a null character": lambda p, e: p.token({**good(), "sub": "ada\x00"}),
    "subject with a Cyrillic letter": lambda p, e: p.token({**good(), "sub": "\u0430da"}),  # a Cyrillic a
    # malformed
    "claims not an object": lambda p, e: jwt.api_jws.encode(b"[]", p.key, "RS256", header(p)),
    "claims not JSON": lambda p, e: jwt.api_jws.encode(b"{", p.key, "RS256", header(p)),
    "claims deeply nested": lambda p, e: jwt.api_jws.encode(b"[" * 3000, p.key, "RS256", header(p)),
    "claims compressed": lambda p, e: p.token(good(), {"zip": "DEF", "crit": ["zip"]}),
    "an unsupported critical extension": lambda p, e: p.token(good(), {"crit": ["exp"], "exp": 1}),
    "header not an object": lambda p, e: f"{encoded(b'[]')}.{encoded(good())}.e30",
    "header deeply nested": lambda p, e: f"{encoded(NESTED)}.{encoded(good())}.e30",
    "one part": lambda p, e: "e30",
    "two parts": lambda p, e: "e30.e30",
    "four parts": lambda p, e: p.token(good()) + ".e30",
    "encrypted": lambda p, e: f"{encoded({'alg': 'dir', 'enc': 'A256GCM'})}..e30.e30.e30",
    "only dots": lambda p, e: "..",
    "padded": lambda p, e: p.token(good()) + "==",
    "a client secret": lambda p, e: "cs_" + "a" * 43,
    "the API key": lambda p, e: API_KEY,
    "7 KiB": lambda p, e: p.token({**good(), "aud": "other", "more": "x" * 4500}),
}


def refused(response: requests.Response, status: int, code: str) -> bool:
    body = response.json()
    assert body.keys() == {"status", "message", "code"}
    assert (response.status_code, body["status"], body["code"]) == (status, "error", code), response.text
    assert response.headers["Cache-Control"] == "no-store"
    assert "X-Request-ID" in response.headers
    assert "X-Forged" not in response.headers
    assert "Set-Cookie" not in response.headers
    return True


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_tokens(
    with_keys: Service, provider: IdentityProvider, attacker: IdentityProvider, shared_openai: FakeOpenAI, forgery: str
) -> None:
    before = len(shared_openai.received)
    token = FORGERIES[forgery](provider, attacker)
    response = with_keys.create_session(headers={"Authorization": f"Bearer {token}", "Origin": PAGE})
    assert refused(response, 401, "invalid_token")
    assert response.json()["message"] == "Invalid or expired token"
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert response.headers["Access-Control-Allow-Origin"] == PAGE
    assert len(shared_openai.received) == before
    assert attacker.fetches == 0


def test_unforged_token_is_accepted(with_keys: Service, provider: IdentityProvider, shared_openai: FakeOpenAI) -> None:
    assert with_keys.create_session(headers={"Authorization": f"Bearer {provider.token(good())}"}).status_code == 200
    assert shared_openai.received[-1].body["user"] == "user:ada"


@pytest.mark.parametrize(
    "token",
    [
        shared(secret=SECRET + "x"),
        shared(secret=SECRET_KEY),
        f"{encoded({'alg': 'none'})}.{encoded(claims())}.",
        jwt.encode(claims(), SECRET, "HS384"),
        jwt.encode(claims(), private_key("RS256"), "RS256"),
        jwt.encode(claims(), private_key("EdDSA"), "EdDSA"),
        shared(aud="somebody"),
        shared()[:-1],
        shared(exp=1),
    ],
    ids=["another-secret", "cookie-key", "none", "HS384", "RS256", "EdDSA", "audience", "cut-off", "expired"],
)
def test_forged_tokens_with_a_shared_secret(with_secret: Service, shared_openai: FakeOpenAI, token: str) -> None:
    before = len(shared_openai.received)
    assert refused(with_secret.create_session(headers={"Authorization": f"Bearer {token}"}), 401, "invalid_token")
    assert len(shared_openai.received) == before


@pytest.fixture(scope="module")
def local() -> Any:
    app = create_app(Settings.load({"SECRET_KEY": SECRET_KEY, "AUTH_JWT_SECRET": SECRET, "RATE_LIMIT": "1000000"}))
    return app.test_client(use_cookies=False)


PASSED = "openai_api_key_missing"
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    payload=st.dictionaries(st.sampled_from(["sub", "exp", "nbf", "iat", "iss", "aud", "azp", "client_id", "jti"]), anything),
    head=st.dictionaries(st.sampled_from(["typ", "kid", "crit", "b64", "jku", "cty", "zip"]), anything),
)
@pytest.mark.slow
def test_any_signed_claims_and_any_header(local: Any, payload: dict[str, Any], head: dict[str, Any]) -> None:
    """Signed with the right secret, so that only the claims and the header decide."""
    token = signed_with(SECRET.encode(), {**head, "alg": "HS256"}, payload)
    response = local.post(ENDPOINT, headers={"Authorization": f"Bearer {token}"})
    assert response.get_json()["code"] in ("invalid_token", PASSED)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60), scheme=st.sampled_from(["Bearer ", ""]))
def test_any_authorization(local: Any, value: str, scheme: str) -> None:
    assert local.post(ENDPOINT, headers={"Authorization": scheme + value}).get_json()["code"] == "invalid_token"


# The header and its size


def raw(service: Service, *lines: str, method: str = "POST", path: str = ENDPOINT) -> tuple[int, str]:
    """Return the status and the whole response to a request with exactly these header lines."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=15) as sock:
        head = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", "Content-Length: 0", *lines]
        received = b""
        with contextlib.suppress(OSError):  # the service may close the connection before everything is sent
            sock.sendall("\r\n".join([*head, "", ""]).encode("latin-1"))
        with contextlib.suppress(OSError):
            while part := sock.recv(65536):
                received += part
    match = re.match(rb"HTTP/1.1 (\d{3})", received)
    assert match, received[:200]
    return int(match[1]), received.decode("latin-1")


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Authorization: Bearer {good}", "Authorization: Bearer {good}"], 401),
        (["Authorization: Bearer {good}", "authorization: Bearer {bad}"], 401),
        (["Authorization: Bearer {bad}", "Authorization: Bearer {good}"], 401),
        (["Authorization: Bearer {good}", "Authorization:"], 401),
        (["Authorization:", "Authorization: Bearer {good}"], 401),
        (["Authorization: Basic YTpi", "Authorization: Bearer {good}"], 401),
        (["Authorization: Bearer {good},Bearer {good}"], 401),
        (["Authorization: Bearer {good} {good}"], 401),
        (["Authorization: Bearer"], 401),
        (["Authorization: Bearer "], 401),
        (["Authorization:"], 401),
        (["Authorization: {good}"], 401),
        (["Authorization: Basic {good}"], 401),
        (["Authorization: Token {good}"], 401),
        (["Authorization: Bearer{good}"], 401),
        (["Authorization: Bearer\t{good}"], 401),
        (["Authorization: Bearer={good}"], 401),
        (['Authorization: Bearer "{good}"'], 401),
        (["Authorization: Bearer {good}\x01"], 400),
        (["Authorization: Bearer {good}\x00"], 400),
        (["Authorization : Bearer {good}"], 400),
        (["Authorization: Bearer {good}", " {good}"], 400),
        (["Authorization: Bearer " + "x" * 8100], 401),
        (["Authorization: Bearer " + "x" * 9000], 431),
        (["Authorization: Bearer " + "x" * 3_000_000], 431),
        (["Proxy-Authorization: Bearer {good}", "X-Authorization: Bearer {good}", "Authorization_: Bearer {good}"], "visitor"),
        (["Authorization: bearer {good}"], "ada"),
        (["AUTHORIZATION: BEARER  {good}  "], "ada"),
    ],
    ids=lambda value: value[0][:60] if isinstance(value, list) else str(value),
)
def test_authorization_header(with_secret: Service, shared_openai: FakeOpenAI, lines: list[str], status: Any) -> None:
    before = len(shared_openai.received)
    request = [line.replace("{good}", shared()).replace("{bad}", "e30.e30.x") for line in lines]
    returned, text = raw(with_secret, *request)
    if isinstance(status, int):
        assert returned == status, text
        assert '"status":' in text
        assert len(shared_openai.received) == before
        assert "Set-Cookie" not in text
    else:
        assert returned == 200
        assert shared_openai.received[-1].body["user"].startswith("user:ada" if status == "ada" else "anonymous:")


# Cookies


def visitor_cookie(
    payload: dict[str, Any], key: str = SECRET_KEY, salt: str = "chatkit.visitor", digest: Any = hashlib.sha256
) -> str:
    signer = {"key_derivation": "hmac", "digest_method": digest}
    return str(itsdangerous.URLSafeTimedSerializer(key, salt=salt, signer_kwargs=signer).dumps(payload))


VICTIM = {"visitor": "6f1b3c1e-6a0f-4f43-9d53-0a1b2c3d4e5f", "_permanent": True}


def test_unforged_cookie_is_accepted(with_secret: Service, shared_openai: FakeOpenAI) -> None:
    with_secret.create_session(headers={"Cookie": f"chatkit_visitor={visitor_cookie(VICTIM)}"})
    assert shared_openai.received[-1].body["user"] == f"anonymous:{VICTIM['visitor']}"


@pytest.mark.parametrize(
    "cookie",
    [
        f"chatkit_visitor={visitor_cookie(VICTIM, key='another key than ours')}",
        f"chatkit_visitor={visitor_cookie(VICTIM, salt='cookie-session')}",
        f"chatkit_visitor={visitor_cookie(VICTIM, digest=hashlib.sha1)}",
        f"chatkit_visitor={visitor_cookie(VICTIM)[:-1]}",
        f"chatkit_visitor={visitor_cookie(VICTIM)}x",
        f"chatkit_visitor={visitor_cookie({})}.{visitor_cookie(VICTIM)}",
        f"chatkit_visitor=.{visitor_cookie(VICTIM)}",
        f"chatkit_visitor={encoded(VICTIM)}",
        f"chatkit_visitor={encoded(VICTIM)}..",
        f"__Host-chatkit_visitor={visitor_cookie(VICTIM)}",  # the name used over HTTPS
        f"chatkit_visitor2={visitor_cookie(VICTIM)}",
        f"session={visitor_cookie(VICTIM)}",
        f"chatkit_visitor={shared(sub=VICTIM['visitor'])}",  # a token as the cookie
        "chatkit_visitor=" + "." * 4000,
        "chatkit_visitor=\xff\xfe",
        "chatkit_visitor",
        "=",
        ";" * 4000,
    ],
)
def test_forged_cookies(with_secret: Service, shared_openai: FakeOpenAI, cookie: str) -> None:
    status, _ = raw(with_secret, f"Cookie: {cookie}")
    assert status == 200
    user = shared_openai.received[-1].body["user"]
    assert user.startswith("anonymous:")
    assert VICTIM["visitor"] not in user


def test_cookie_is_refused_as_a_token(with_secret: Service, shared_openai: FakeOpenAI) -> None:
    before = len(shared_openai.received)
    response = with_secret.create_session(headers={"Authorization": f"Bearer {visitor_cookie(VICTIM)}"})
    assert refused(response, 401, "invalid_token")
    assert len(shared_openai.received) == before


def test_token_takes_precedence_over_a_planted_cookie(with_secret: Service, shared_openai: FakeOpenAI) -> None:
    headers = {"Cookie": f"chatkit_visitor={visitor_cookie(VICTIM)}", "Authorization": f"Bearer {shared()}"}
    assert with_secret.create_session(headers=headers).status_code == 200
    assert shared_openai.received[-1].body["user"] == "user:ada"


# Other sites, other hosts


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.test",
        "http://localhost:3000.evil.test",
        "http://localhost:3000@evil.test",
        "http://localhost:30000",
        "http://localhost:3000 ",
        "http://localhost:3000/",
        "http://localhost:3000#",
        "http://localhost:3000\\.evil.test",
        "http://localhost.:3000",
        "http://LOCALHOST:3000",
        "HTTP://localhost:3000",
        "https://localhost:3000",
        "http://127.0.0.1:3000",
        "http://[::1]:3000",
        "http://localhost",
        "http://localhost:3000,http://localhost:3000",
        "http://localhost:3000 http://evil.test",
        "null",
        "file://",
        "*",
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", ENDPOINT), ("DELETE", f"{ENDPOINT}/cksess_1"), ("OPTIONS", ENDPOINT)])
def test_cross_site_requests(with_secret: Service, shared_openai: FakeOpenAI, origin: str, method: str, path: str) -> None:
    before = len(shared_openai.received)
    lines = [f"Origin: {origin}", f"Cookie: chatkit_visitor={visitor_cookie(VICTIM)}", "Access-Control-Request-Method: POST"]
    status, text = raw(with_secret, *lines, method=method, path=path)
    if origin.strip() == PAGE:  # whitespace around a value is not part of it (RFC 9110)
        return
    assert status == 403
    assert '"code":"origin_not_allowed"' in text
    assert "Access-Control-Allow-Origin" not in text
    assert len(shared_openai.received) == before


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_form_of_another_site(with_secret: Service, shared_openai: FakeOpenAI, content_type: str) -> None:
    """Content types that a page can send without a preflight, even from a browser that omits ``Origin``."""
    before = len(shared_openai.received)
    response = with_secret.create_session(headers={"Content-Type": content_type}, data=b'{"user_id": "x"}')
    assert refused(response, 415, "unsupported_media_type")
    assert len(shared_openai.received) == before


@pytest.mark.parametrize(
    "lines",
    [
        ["X-Forwarded-Host: localhost:3000", "Origin: https://evil.test"],
        ["X-Forwarded-Host: a.test, evil.test", "Origin: https://a.test"],
        ["X-Forwarded-Host: evil.test\x0b", "Origin: http://evil.test"],
        ["X-HTTP-Method-Override: DELETE", "Origin: https://evil.test"],
    ],
)
def test_misleading_host_headers(with_secret: Service, shared_openai: FakeOpenAI, lines: list[str]) -> None:
    before = len(shared_openai.received)
    assert raw(with_secret, *lines)[0] in (400, 403)
    assert len(shared_openai.received) == before


# Injection


INJECTION = "x%0d%0aX-Forged:%201%0d%0a\x1b[31m{FORGED}"
FIELDS: dict[str, tuple[str, str, list[str]]] = {
    "path": ("POST", f"{ENDPOINT}/{INJECTION}", []),
    "session id": ("DELETE", f"{ENDPOINT}/{INJECTION}", []),
    "query": ("POST", f"{ENDPOINT}?token={INJECTION}", []),
    "method": ("FORGED", ENDPOINT, []),
    "X-Request-ID": ("POST", ENDPOINT, [f"X-Request-ID: {INJECTION}"]),
    "Origin": ("POST", ENDPOINT, [f"Origin: {INJECTION}"]),
    "Host": ("POST", ENDPOINT, [f"X-Forwarded-Host: {INJECTION}", "Origin: http://x"]),
    "X-Forwarded-For": ("POST", ENDPOINT, [f"X-Forwarded-For: {INJECTION}"]),
    "X-Forwarded-Proto": ("POST", ENDPOINT, [f"X-Forwarded-Proto: {INJECTION}"]),
    "Authorization": ("POST", ENDPOINT, [f"Authorization: Bearer {INJECTION}"]),
    "Cookie": ("POST", ENDPOINT, [f"Cookie: chatkit_visitor={INJECTION}"]),
    "Content-Type": ("POST", ENDPOINT, [f"Content-Type: {INJECTION}"]),
    "Access-Control-Request-Headers": (
        "OPTIONS",
        ENDPOINT,
        [f"Access-Control-Request-Headers: {INJECTION}", f"Origin: {PAGE}", "Access-Control-Request-Method: POST"],
    ),
    "User-Agent": ("POST", ENDPOINT, [f"User-Agent: {INJECTION}"]),
}


def test_header_and_log_injection(shared_openai: FakeOpenAI) -> None:
    with Service(**COMPLETE, CHATKIT_API_BASE=shared_openai.url, AUTH_JWT_SECRET=SECRET) as service:
        for (field, (method, path, lines)), escape in itertools.product(FIELDS.items(), ("\x1b", "%1b")):
            sent = [line.replace("\x1b", escape) for line in lines]
            status, text = raw(service, *sent, method=method, path=path.replace("\x1b", escape))
            head = text.partition("\r\n\r\n")[0]
            assert status < 500, field
            assert "\r\nX-Forged" not in head, field
        for token in (shared(sub="a\r\nFORGED"), shared(sub="a", aud="\r\nFORGED"), shared(iss="\nFORGED", exp=1)):
            service.create_session(headers={"Authorization": f"Bearer {token}"})
    for line in service.log.splitlines():
        assert isinstance(json.loads(line), dict), line
        assert "\x1b" not in line
    assert "\nFORGED" not in service.log


# Secrets are compared in constant time


def test_signatures_are_compared_in_constant_time(local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By PyJWT and itsdangerous. Client secrets are looked up by hash and never compared."""
    compared: list[tuple[Any, Any]] = []
    compare = hmac.compare_digest

    def spy(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    local.post(ENDPOINT, headers={"Authorization": f"Bearer {shared(secret=SECRET + 'x')}"})
    assert len(compared) == 1
    local.post(ENDPOINT, headers={"Cookie": f"chatkit_visitor={visitor_cookie(VICTIM, key='another key')}"})
    assert len(compared) == 2


def test_tokens_are_not_logged(local: Any, recorder: Recorder) -> None:
    before = len(recorder.lines)
    for token in (shared(), shared(exp=1), shared(sub="very-personal\n"), "very-personal.token.x"):
        local.post(ENDPOINT, headers={"Authorization": f"Bearer {token}"})
    logged = "\n".join(recorder.lines[before:])
    assert "very-personal" not in logged
    assert not re.search(r"eyJ|\bada\b", logged)

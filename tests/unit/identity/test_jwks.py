"""The keys of an identity provider: fetched, kept, rotated and withdrawn, and failing key servers."""

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

from chatkit.identity import jwks
from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT, error_of
from tests.support.fake_server import Handler, dripping, endless, responding, silent
from tests.support.identity_provider import IdentityProvider, claims, private_key, public_jwk
from tests.support.leaks import Recorder
from tests.support.sign_in import INVALID, ISSUER, bearer, issue

UNAVAILABLE = (503, "sign_in_unavailable", "Sign-in temporarily unavailable")


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as running:
        yield running


@pytest.fixture
def with_keys(make_app: MakeApp, provider: IdentityProvider) -> FlaskClient:
    """A client of a service that trusts the provider's JWKS."""
    return make_app(AUTH_JWKS_URL=provider.url, AUTH_JWT_ISSUER=ISSUER).test_client()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Move the monotonic clock of the JWKS forward by setting the list's element, in seconds."""
    moved = [0.0]
    monotonic = time.monotonic
    monkeypatch.setattr(jwks, "time", type("Clock", (), {"monotonic": lambda: monotonic() + moved[0]}))
    return moved


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Set the monotonic clock of the JWKS by setting the list's element, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(jwks, "time", type("Clock", (), {"monotonic": lambda: now[0]}))
    return now


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
    for number in range(50):
        assert error_of(issue(with_keys, provider.token(headers={"kid": f"made-up-again-{number}"}))) == INVALID
    assert provider.fetches == 6


def test_three_fetches_in_any_minute(with_keys: FlaskClient, provider: IdentityProvider, stopped_clock: list[float]) -> None:
    assert issue(with_keys, provider.token(iss=ISSUER)).status_code == 200
    fetches = []
    for stopped_clock[0] in (1010.0, 1020.0, 1059.5, 1060.0, 1069.5, 1070.0):
        issue(with_keys, provider.token(headers={"kid": f"made-up-{stopped_clock[0]}"}))
        fetches.append(provider.fetches)
    assert fetches == [2, 3, 3, 4, 4, 5]


def test_age_at_which_keys_are_fetched_again_and_no_longer_used(
    with_keys: FlaskClient, provider: IdentityProvider, stopped_clock: list[float]
) -> None:
    token = provider.token(iss=ISSUER)
    for stopped_clock[0], fetches in ((1000.0, 1), (1300.0, 1), (1300.5, 2)):
        assert issue(with_keys, token).status_code == 200
        assert provider.fetches == fetches
    provider.server.behaviour = Handler.hang_up
    stopped_clock[0] += 3600
    assert issue(with_keys, token).status_code == 200
    stopped_clock[0] += 0.5
    assert error_of(issue(with_keys, token)) == UNAVAILABLE


def messages_of(recorder: Recorder, before: int) -> list[str]:
    return [json.loads(line)["message"] for line in recorder.lines[before:] if '"chatkit.identity.jwks"' in line]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (responding(500), "status 500"),
        (responding(200, b"<html>"), "not a JWK Set"),
        (responding(200, {"keys": []}), "no key for ES256, EdDSA, RS256"),
        (responding(200, b" " * 300_000), "more than 262144 bytes"),
        (Handler.hang_up, "ConnectionError"),  # not its message, which may quote anything
    ],
)
def test_log_of_an_outage(
    with_keys: FlaskClient,
    provider: IdentityProvider,
    stopped_clock: list[float],
    recorder: Recorder,
    behaviour: Callable[[Any], None],
    reason: str,
) -> None:
    published, provider.server.behaviour = provider.server.behaviour, behaviour
    token, before = provider.token(iss=ISSUER), len(recorder.lines)
    assert error_of(issue(with_keys, token)) == UNAVAILABLE
    stopped_clock[0] += 60
    provider.server.behaviour = published
    assert issue(with_keys, token).status_code == 200
    stopped_clock[0] += 301
    assert issue(with_keys, token).status_code == 200
    stopped_clock[0] += 301
    provider.server.behaviour = behaviour
    assert issue(with_keys, token).status_code == 200
    assert messages_of(recorder, before) == [
        f"AUTH_JWKS_URL: the keys can't be fetched ({reason})",
        "AUTH_JWKS_URL: the keys can be fetched again",
        f"AUTH_JWKS_URL: the keys can't be fetched ({reason}); using those fetched 301 s ago",
    ]


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
        responding(200, {}),
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
        "no set",
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
    assert time.monotonic() - started < 12, "two fetches of three seconds"


def test_keys_of_an_error_response_are_not_used(with_keys: FlaskClient, provider: IdentityProvider) -> None:
    provider.server.behaviour = responding(500, {"keys": provider.published})
    assert error_of(issue(with_keys, provider.token(iss=ISSUER))) == UNAVAILABLE


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
    in_time: list[bool] = []
    published = provider.server.behaviour

    def late(handler: Handler) -> None:
        asked.set()
        in_time.append(go_on.wait(20))
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
    assert in_time == [True], "the other did not wait"


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
        ("kid is a list", "RS256", {"kid": ["key-1"]}),
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

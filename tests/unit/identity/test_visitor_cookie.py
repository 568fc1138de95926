"""The visitor cookie: kept, accepted only with a valid signature, and with attributes that suit the request."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest
from flask.testing import FlaskClient
from itsdangerous import URLSafeTimedSerializer
from werkzeug.test import TestResponse

from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT, create_session, restarted
from tests.support.fake_openai import FakeOpenAI, users
from tests.support.identity_provider import SECRET, shared
from tests.support.service import SECRET_KEY

HTTPS = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "chat.example.com"}


def cookie_of(response: TestResponse) -> str:
    (header,) = response.headers.getlist("Set-Cookie")
    return header


def test_visitor_is_kept(client: FlaskClient, fake_openai: FakeOpenAI) -> None:
    client.post(ENDPOINT)
    client.post(ENDPOINT)
    first, second = users(fake_openai)
    assert first == second
    assert re.fullmatch(r"anonymous:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", first)


@pytest.mark.parametrize(("backend", "token"), [("hosted", ""), ("hosted", shared()), ("selfhosted", "")])
def test_cookie_is_kept_for_a_year(make_app: MakeApp, backend: str, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    client = make_app(CHATKIT_BACKEND=backend, AUTH_JWT_SECRET=SECRET).test_client()
    cookie = cookie_of(client.post(ENDPOINT, headers=headers))
    expires = parsedate_to_datetime(re.findall("Expires=([^;]+)", cookie)[0])
    assert expires - datetime.now(UTC) == pytest.approx(timedelta(days=365), abs=timedelta(minutes=5))


@pytest.mark.parametrize(
    ("ahead", "kept"),
    [
        (timedelta(hours=2), True),
        (timedelta(seconds=2), True),
        (-timedelta(days=364, hours=23), True),
        (-timedelta(days=365, hours=1), False),
    ],
)
def test_cookie_that_was_signed_by_another_clock(
    client: FlaskClient, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, ahead: timedelta, kept: bool
) -> None:
    signed = int(time.time() + ahead.total_seconds())
    with monkeypatch.context() as patched:
        patched.setattr("itsdangerous.TimestampSigner.get_timestamp", lambda _: signed)
        value = cookie_of(client.post(ENDPOINT)).split(";")[0]
    client.application.test_client(use_cookies=False).post(ENDPOINT, headers={"Cookie": value})
    first, second = users(fake_openai)
    assert (first == second) is kept


def test_visitor_is_new_without_a_cookie(make_app: MakeApp, fake_openai: FakeOpenAI) -> None:
    app = make_app()
    app.test_client().post(ENDPOINT)
    app.test_client().post(ENDPOINT)
    first, second = users(fake_openai)
    assert first != second


def test_visitor_is_kept_over_a_restart_with_the_same_key(make_app: MakeApp, fake_openai: FakeOpenAI) -> None:
    value = cookie_of(make_app().test_client().post(ENDPOINT)).split(";")[0]
    for app in (make_app(), make_app(SECRET_KEY="another key than before, of the tests")):
        client = app.test_client(use_cookies=False)
        assert client.post(ENDPOINT, headers={"Cookie": value}).status_code == 200
    first, restarted, other_key = users(fake_openai)
    assert first == restarted
    assert first != other_key


def test_edited_cookie_is_ignored(make_app: MakeApp, fake_openai: FakeOpenAI) -> None:
    app = make_app()
    name, _, value = cookie_of(app.test_client().post(ENDPOINT)).split(";")[0].partition("=")
    victim = "6f1b3c1e-6a0f-4f43-9d53-0a1b2c3d4e5f"
    payload, timestamp, signature = value.rsplit(".", 2)
    other_payload = URLSafeTimedSerializer("guess", salt="chatkit.visitor").dumps({"visitor": victim}).split(".")[0]
    client = app.test_client(use_cookies=False)
    forged = [
        f"{other_payload}.{timestamp}.{signature}",
        f"{payload}.{timestamp}.{signature[:-2]}xx",
        f"{payload}.{timestamp}.",
        payload,
        victim,
        "",
        "." * 1000,
        URLSafeTimedSerializer("a-key-of-the-tests-and-nobody-else", salt="cookie-session").dumps({"visitor": victim}),
    ]
    for value in forged:
        assert client.post(ENDPOINT, headers={"Cookie": f"{name}={value}"}).status_code == 200
    visitors = users(fake_openai)
    assert len(set(visitors)) == len(forged) + 1
    assert f"anonymous:{victim}" not in visitors


@pytest.mark.parametrize(
    ("situation", "headers", "name", "attributes"),
    [
        ("curl in development", {}, "chatkit_visitor", {"SameSite=Lax"}),
        (
            "frontend and service on localhost",
            {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
            "chatkit_visitor",
            {"SameSite=Lax"},
        ),
        (
            "the same, in a browser without Sec-Fetch-Site",
            {"Origin": "http://localhost:3000"},
            "chatkit_visitor",
            {"SameSite=Lax"},
        ),
        (
            "own page over HTTPS",
            {**HTTPS, "Sec-Fetch-Site": "same-origin"},
            "__Host-chatkit_visitor",
            {"SameSite=Lax", "Secure"},
        ),
        (
            "the same, in a browser without Sec-Fetch-Site",
            {**HTTPS, "Origin": "https://chat.example.com"},
            "__Host-chatkit_visitor",
            {"SameSite=Lax", "Secure"},
        ),
        ("curl over HTTPS", HTTPS, "__Host-chatkit_visitor", {"SameSite=Lax", "Secure"}),
        (
            "frontend on another site",
            {**HTTPS, "Origin": "https://app.example.org", "Sec-Fetch-Site": "cross-site"},
            "__Host-chatkit_visitor",
            {"SameSite=None", "Secure", "Partitioned"},
        ),
        (
            "the same, in a browser without Sec-Fetch-Site",
            {**HTTPS, "Origin": "https://app.example.org"},
            "__Host-chatkit_visitor",
            {"SameSite=None", "Secure", "Partitioned"},
        ),
        (
            "frontend on another host over HTTP, in a browser without Sec-Fetch-Site, which would reject Secure",
            {"Origin": "https://app.example.org"},
            "chatkit_visitor",
            {"SameSite=Lax"},
        ),
        (
            "localhost to 127.0.0.1, where browsers accept Secure",
            {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "cross-site"},
            "chatkit_visitor",
            {"SameSite=None", "Secure", "Partitioned"},
        ),
    ],
)
def test_attributes(make_app: MakeApp, situation: str, headers: dict[str, str], name: str, attributes: set[str]) -> None:
    app = make_app(CHATKIT_ALLOWED_ORIGINS="http://localhost:3000,https://app.example.org,https://chat.example.com")
    cookie, *rest = cookie_of(app.test_client().post(ENDPOINT, headers=headers)).split("; ")
    assert cookie.split("=")[0] == name
    expires = next(part for part in rest if part.startswith("Expires="))
    assert set(rest) - {expires} == {"HttpOnly", "Path=/", *attributes}


def test_cookie_is_kept_over_https(client: FlaskClient, fake_openai: FakeOpenAI) -> None:
    for _ in range(2):
        client.post(ENDPOINT, headers=HTTPS, base_url="https://chat.example.com")
    first, second = users(fake_openai)
    assert first == second


# Rotation of ``SECRET_KEY``, with and without the former key in ``SECRET_KEY_FALLBACKS``

NEW = f"{SECRET_KEY}-2"


NEWER = f"{SECRET_KEY}-3"


def test_fallback_key_keeps_the_visitor(make_app: MakeApp, fake_openai: FakeOpenAI) -> None:
    client = make_app().test_client()
    create_session(client)
    create_session(restarted(client, make_app, SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=SECRET_KEY))
    create_session(restarted(client, make_app, SECRET_KEY=NEWER, SECRET_KEY_FALLBACKS=f"{NEW}, {SECRET_KEY}"))
    first, *later = users(fake_openai)
    assert later == [first, first]


def test_visitor_is_new_without_the_fallback_key(make_app: MakeApp, fake_openai: FakeOpenAI) -> None:
    client = make_app().test_client()
    create_session(client)
    create_session(restarted(client, make_app, SECRET_KEY=NEWER))
    create_session(restarted(client, make_app, SECRET_KEY=NEWER, SECRET_KEY_FALLBACKS=NEW))
    assert len(set(users(fake_openai))) == 3


def test_cookie_is_signed_again_with_the_new_key(make_app: MakeApp, fake_openai: FakeOpenAI) -> None:
    client = make_app().test_client()
    create_session(client)
    second = restarted(client, make_app, SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=SECRET_KEY)
    create_session(second)
    create_session(restarted(second, make_app, SECRET_KEY=NEW))
    first, *later = users(fake_openai)
    assert later == [first, first]

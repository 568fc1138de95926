"""Rotation of ``SECRET_KEY``, with and without the former key in ``SECRET_KEY_FALLBACKS``."""

from __future__ import annotations

from copy import copy

from flask.testing import FlaskClient

from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT, create_session
from tests.support.fake_openai import FakeOpenAI, users
from tests.support.service import SECRET_KEY

NEW = f"{SECRET_KEY}-2"
NEWER = f"{SECRET_KEY}-3"


def restarted(client: FlaskClient, make_app: MakeApp, **variables: str) -> FlaskClient:
    """The same browser, after a restart of the service with other variables."""
    later = make_app(**variables).test_client()
    later._cookies = copy(client._cookies)
    return later


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


def test_fallback_key_keeps_the_sessions_of_a_browser(make_app: MakeApp) -> None:
    client = make_app().test_client()
    url = f"{ENDPOINT}/{create_session(client)}"
    assert restarted(client, make_app, SECRET_KEY=NEW).delete(url).status_code == 404
    assert restarted(client, make_app, SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=SECRET_KEY).delete(url).status_code == 200

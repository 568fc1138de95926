"""A new ``SECRET_KEY``, with and without the former one in ``SECRET_KEY_FALLBACKS``."""

from __future__ import annotations

from copy import copy

from flask.testing import FlaskClient

from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT, mint
from tests.support.service import SECRET_KEY
from tests.support.upstream import Upstream, users

NEW = f"{SECRET_KEY}-2"
NEWER = f"{SECRET_KEY}-3"


def after(client: FlaskClient, make_app: MakeApp, **variables: str) -> FlaskClient:
    """The same browser, once the service runs with other variables."""
    later = make_app(**variables).test_client()
    later._cookies = copy(client._cookies)
    return later


def test_a_former_key_keeps_the_visitor(make_app: MakeApp, upstream: Upstream) -> None:
    client = make_app().test_client()
    mint(client)
    mint(after(client, make_app, SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=SECRET_KEY))
    mint(after(client, make_app, SECRET_KEY=NEWER, SECRET_KEY_FALLBACKS=f"{NEW}, {SECRET_KEY}"))
    first, *later = users(upstream)
    assert later == [first, first]


def test_without_it_the_visitor_is_new(make_app: MakeApp, upstream: Upstream) -> None:
    client = make_app().test_client()
    mint(client)
    mint(after(client, make_app, SECRET_KEY=NEWER))
    mint(after(client, make_app, SECRET_KEY=NEWER, SECRET_KEY_FALLBACKS=NEW))
    assert len(set(users(upstream))) == 3


def test_a_visit_signs_the_cookie_with_the_new_key(make_app: MakeApp, upstream: Upstream) -> None:
    client = make_app().test_client()
    mint(client)
    rotated = after(client, make_app, SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=SECRET_KEY)
    mint(rotated)
    mint(after(rotated, make_app, SECRET_KEY=NEW))
    first, *later = users(upstream)
    assert later == [first, first]


def test_a_former_key_keeps_the_sessions_of_a_browser(make_app: MakeApp) -> None:
    client = make_app().test_client()
    url = f"{ENDPOINT}/{mint(client)}"
    assert after(client, make_app, SECRET_KEY=NEW).delete(url).status_code == 404
    assert after(client, make_app, SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=SECRET_KEY).delete(url).status_code == 200

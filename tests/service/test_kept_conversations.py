"""``AUTH_KEEP_CONVERSATIONS``: a visitor's conversations move to the user who signs in with the same browser."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask.testing import FlaskClient
from sqlalchemy import create_engine, text

from tests.support.applications import MakeApp
from tests.support.chat import Caller
from tests.support.endpoint import ENDPOINT, error_of
from tests.support.identity_provider import SECRET, shared
from tests.support.service import Service


@pytest.fixture(scope="module")
def service(shared_database: str) -> Iterator[Service]:
    variables = {"AUTH_JWT_SECRET": SECRET, "AUTH_KEEP_CONVERSATIONS": "true"}
    with Service(CHATKIT_BACKEND="selfhosted", DATABASE_URL=shared_database, WEB_CONCURRENCY="2", **variables) as running:
        yield running


def threads(caller: Caller) -> list[str]:
    return [thread["id"] for thread in caller.post("threads.list").json()["data"]]


def test_conversations_move_to_the_user(service: Service) -> None:
    user = f"ada-{id(service)}"
    before = Caller(service.url, shared(sub=user))
    on_another_device, _ = before.create("progress")

    browser = Caller(service.url)
    first, _ = browser.create("progress")
    second, _ = browser.create("widget")
    items = browser.items(first, order="asc")
    secret_of_visitor = browser.secret

    browser.token = shared(sub=user)
    browser.refresh()
    assert threads(browser) == [second, first, on_another_device]
    assert browser.items(first, order="asc") == items
    assert browser.say(first, "progress")[-1].type == "thread.item.done"

    signed_in, browser.secret = browser.secret, secret_of_visitor
    refused = browser.post("threads.list")
    assert (refused.status_code, refused.json()["code"]) == (401, "client_secret_expired")
    browser.secret = signed_in

    # The next person at this computer, first as a visitor, then signed in.
    browser.token = None
    browser.refresh()
    assert threads(browser) == []
    third, _ = browser.create("progress")
    browser.token = shared(sub=f"bob-{id(service)}")
    browser.refresh()
    assert threads(browser) == [third]
    assert threads(before) == [second, first, on_another_device]


def test_copied_visitor_cookie_is_useless_afterwards(service: Service) -> None:
    browser, thief = Caller(service.url), Caller(service.url)
    browser.create("progress")
    thief.http.cookies = browser.http.cookies.copy()
    browser.token = shared(sub=f"carol-{id(service)}")
    browser.refresh()
    for thief.token in (None, shared(sub=f"mallory-{id(service)}")):
        thief.refresh()
        assert threads(thief) == []
    assert len(threads(browser)) == 1


def test_several_tabs_sign_in_at_once(service: Service) -> None:
    browser = Caller(service.url)
    thread, _ = browser.create("progress")
    cookie = browser.http.cookies.copy()
    token = shared(sub=f"dora-{id(service)}")

    def tab(_: int) -> list[str]:
        caller = Caller(service.url, token)
        caller.http.cookies = cookie.copy()
        caller.refresh()
        return threads(caller)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(tab, range(6))) == [[thread]] * 6


@pytest.mark.parametrize("value", ["", "false"])
def test_conversations_stay_the_visitors_by_default(make_app: MakeApp, tmp_path: object, value: str) -> None:
    app = make_app(CHATKIT_BACKEND="selfhosted", AUTH_JWT_SECRET=SECRET, AUTH_KEEP_CONVERSATIONS=value)
    client = app.test_client()
    client.post(ENDPOINT)
    client.post(ENDPOINT, headers={"Authorization": f"Bearer {shared()}"})
    with create_engine(f"sqlite:///{tmp_path}/chatkit.db").connect() as connection:
        users = connection.execute(text("SELECT user_id FROM chat_sessions WHERE expires_at > strftime('%s', 'now')")).scalars()
        assert sorted(user.partition(":")[0] for user in users) == ["anonymous", "user"]


def sign_in(client: FlaskClient, token: str) -> tuple[int, str, str]:
    return error_of(client.post(ENDPOINT, headers={"Authorization": f"Bearer {token}"}))


def test_invalid_token_moves_nothing(make_app: MakeApp) -> None:
    app = make_app(CHATKIT_BACKEND="selfhosted", AUTH_JWT_SECRET=SECRET, AUTH_KEEP_CONVERSATIONS="true")
    client = app.test_client()
    client.post(ENDPOINT)
    with client.session_transaction() as cookie:
        visitor = cookie["visitor"]
    assert sign_in(client, shared(exp=1))[0] == 401
    assert sign_in(client, shared(secret="x" * 32))[0] == 401
    with client.session_transaction() as cookie:
        assert cookie["visitor"] == visitor


def test_failure_moves_nothing(make_app: MakeApp, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatkit.backends.selfhosted.database.engine.WAIT_SECONDS", 0.2)
    app = make_app(CHATKIT_BACKEND="selfhosted", AUTH_JWT_SECRET=SECRET, AUTH_KEEP_CONVERSATIONS="true")
    client = app.test_client()
    client.post(ENDPOINT)
    with client.session_transaction() as cookie:
        visitor = cookie["visitor"]
    with create_engine(f"sqlite:///{tmp_path}/chatkit.db", isolation_level="AUTOCOMMIT").connect() as other:
        other.execute(text("BEGIN EXCLUSIVE"))
        assert sign_in(client, shared()) == (503, "database_unavailable", "Service temporarily unavailable")
        other.execute(text("ROLLBACK"))
    with client.session_transaction() as cookie:
        assert cookie["visitor"] == visitor, "so that the next attempt moves them"

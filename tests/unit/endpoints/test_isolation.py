"""No user reaches what is another's, by any field of any request: one table over all endpoints, and over the whole protocol.

The attacker knows every identifier of the victim's and none of the secrets. Whatever they send, no answer holds a word of the
victim's, and nothing of the victim's is changed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine, text

from chatkit.backends.selfhosted.chat import demo
from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT
from tests.support.people import CHAT, Person, begin_conversation, chat, person
from tests.support.protocol import PROTOCOL, REQUEST_TYPES, leaves, replaced
from tests.support.provider import SECRET, shared
from tests.support.upstream import Upstream

MARK = "words-of-the-victim"
KINDS = ["anonymous", "user"]


# The protocol: each type with the attacker's own identifiers, each of which is then replaced by each of the victim's


def with_ids(template: dict[str, Any], someone: Person) -> dict[str, Any]:
    whole = json.dumps(template).replace('"T"', f'"{someone.thread}"').replace('"I"', f'"{someone.item}"')
    named: dict[str, Any] = json.loads(whole)
    return named


def attempts_of(type_: str, own: dict[str, Any], victim: Person) -> Iterator[dict[str, Any]]:
    yield {"type": type_, "params": with_ids(PROTOCOL[type_], victim)}
    for path, theirs in itertools.product(list(leaves(own)), victim.ids()):
        yield {"type": type_, "params": replaced(own, path, theirs)}
    for name, theirs in itertools.product(("user", "user_id", "session_id", "thread_id"), victim.ids()):
        yield {"type": type_, "params": {**own, name: theirs}, name: theirs, "metadata": {name: theirs}}


def protocol_attempts(me: Person, victim: Person) -> Iterator[dict[str, Any]]:
    for type_ in sorted(PROTOCOL, key=lambda name: name == "threads.delete"):  # it ends with the attacker's own thread gone
        yield from attempts_of(type_, with_ids(PROTOCOL[type_], me), victim)


# The endpoints


def around(method: str, path: str, me: Person, victim: Person, **request: Any) -> Iterator[dict[str, Any]]:
    """The request itself, and the victim's identifiers everywhere beside what it is made of."""
    headers = request.pop("headers", me.headers)
    yield {"method": method, "path": path, "headers": headers, **request}
    for theirs in victim.ids():
        for name in ("user", "user_id", "sub", "session_id", "thread_id"):
            yield {"method": method, "path": f"{path}?{name}={theirs}", "headers": headers, **request}
        for name in ("X-User-Id", "X-User", "X-Forwarded-User", "Remote-User", "X-Session-Id", "X-Request-ID", "OpenAI-User"):
            yield {"method": method, "path": path, "headers": {**headers, name: theirs}, **request}
        for authorization in (f"Bearer {theirs}", f"Basic {theirs}", theirs):
            yield {"method": method, "path": path, "headers": {**headers, "Authorization": authorization}, **request}
        for name in ("chatkit_visitor", "__Host-chatkit_visitor", "visitor", "session", "user"):
            yield {"method": method, "path": path, "headers": {**headers, "Cookie": f"{name}={theirs}"}, **request}


def minting(me: Person, victim: Person) -> Iterator[dict[str, Any]]:
    yield from around("POST", ENDPOINT, me, victim)
    for theirs in victim.ids():
        for name in ("user_id", "user", "sub", "session_id", "visitor", "thread_id"):
            yield {"method": "POST", "path": ENDPOINT, "headers": me.headers, "json": {name: theirs}}
        yield {"method": "POST", "path": ENDPOINT, "headers": {"Authorization": f"Bearer {shared(sub=theirs + 'x')}"}}
    # A subject is the provider's to give; one that looks like a visitor of ours is not that visitor.
    yield {"method": "POST", "path": ENDPOINT, "headers": {"Authorization": f"Bearer {shared(sub=victim.user)}"}}


def ending(me: Person, victim: Person) -> Iterator[dict[str, Any]]:
    for theirs in victim.ids():
        yield from around("DELETE", f"{ENDPOINT}/{theirs}", me, victim)


def chatting(me: Person, victim: Person) -> Iterator[dict[str, Any]]:
    bearer = {"Authorization": f"Bearer {me.secret}"}
    for body in protocol_attempts(me, victim):
        yield {"method": "POST", "path": CHAT, "headers": bearer, "json": body}
    listing = {"type": "threads.list", "params": {}}
    yield from around("POST", CHAT, me, victim, headers=bearer, json=listing)


def checking(path: str) -> Callable[[Person, Person], Iterator[dict[str, Any]]]:
    return lambda me, victim: around("GET", path, me, victim)


TABLE: dict[tuple[str, str], Callable[[Person, Person], Iterator[dict[str, Any]]]] = {
    ("POST", ENDPOINT): minting,
    ("DELETE", f"{ENDPOINT}/<session_id>"): ending,
    ("POST", CHAT): chatting,
    ("GET", "/"): checking("/"),
    ("GET", "/static/<path:filename>"): checking("/static/host.js"),
    ("GET", "/healthz"): checking("/healthz"),
    ("GET", "/readyz"): checking("/readyz"),
}


def routes(app: Flask) -> set[tuple[str, str]]:
    rules = app.url_map.iter_rules()
    return {(method, rule.rule) for rule in rules for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}}


def test_the_table_has_every_endpoint_and_every_type_of_the_protocol(make_app: MakeApp) -> None:
    assert TABLE.keys() == routes(make_app(CHATKIT_BACKEND="selfhosted")) | routes(make_app())
    assert PROTOCOL.keys() == REQUEST_TYPES


@pytest.mark.parametrize("attacker_is", KINDS)
@pytest.mark.parametrize("victim_is", KINDS)
def test_nobody_reaches_what_is_anothers(
    make_app: MakeApp, database: str, victim_is: str, attacker_is: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SECONDS_PER_WORD", 0)
    often = {"CHATKIT_MAX_REQUESTS_PER_MINUTE": "1000000", "AUTH_JWT_SECRET": SECRET}
    app = make_app(CHATKIT_BACKEND="selfhosted", DATABASE_URL=database, OPENAI_API_KEY="", **often)
    victim, me = person(app, victim_is, "victim"), person(app, attacker_is, "attacker")
    begin_conversation(victim, MARK)
    begin_conversation(me, "of the attacker")

    def belongings() -> Any:
        tables = ("chat_threads", "chat_items", "chat_attachments", "chat_sessions")
        with create_engine(database).connect() as connection:
            query = "SELECT * FROM {} WHERE user_id = :user ORDER BY 1"
            return [connection.execute(text(query.format(table)), {"user": victim.user}).all() for table in tables]

    before = belongings()
    assert MARK in repr(before)
    seen = set()
    for endpoint in TABLE.values():
        for request in endpoint(me, victim):
            path = request.pop("path")
            client = app.test_client() if "Cookie" in request["headers"] else me.client
            response = client.open(path, buffered=True, **request)
            assert MARK not in response.text, request
            assert victim.secret not in response.text
            seen.add(response.status_code)
            if path.startswith(ENDPOINT) and request["method"] == "POST" and response.status_code == 200:
                minted = Person(me.client, {}, secret=response.get_json()["data"]["client_secret"])
                assert MARK not in chat(minted, {"type": "threads.list", "params": {}}).text, request
    assert seen <= {200, 400, 401, 403, 404, 500, 503}
    assert belongings() == before
    mine = chat(victim, {"type": "threads.get_by_id", "params": {"thread_id": victim.thread}})
    assert MARK in mine.text, "the search would have found it"


@pytest.mark.parametrize("attacker_is", KINDS)
@pytest.mark.parametrize("victim_is", KINDS)
def test_nobody_gets_a_hosted_session_of_another_or_ends_it(
    make_app: MakeApp, upstream: Upstream, victim_is: str, attacker_is: str
) -> None:
    """Whoever holds a ``user`` value holds that user's threads at OpenAI."""
    app = make_app(AUTH_JWT_SECRET=SECRET)
    victim, me = person(app, victim_is, "victim"), person(app, attacker_is, "attacker")
    assert upstream.received[0].body["user"] == victim.user
    upstream.received.clear()
    for endpoint in (minting, ending):
        for request in endpoint(me, victim):
            client = app.test_client() if "Cookie" in request["headers"] else me.client
            response = client.open(request.pop("path"), **request)
            assert victim.secret not in response.text
    users = {received.body["user"] for received in upstream.received if isinstance(received.body, dict)}
    assert me.user in users
    assert victim.user not in users
    assert not [received.path for received in upstream.received if received.path.endswith("/cancel")]
    assert victim.client.delete(f"{ENDPOINT}/{victim.session_id}", headers=victim.headers).status_code == 200

"""Tenant isolation on every endpoint and every request type of the protocol.

The attacker knows all identifiers of the victim and none of the secrets. Whatever they send, no response contains the victim's
text, and none of the victim's rows change.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine, insert, text

from chatkit.backends.selfhosted.chat import demo
from chatkit.backends.selfhosted.chat.attachments import upload_urls
from chatkit.backends.selfhosted.chat.images import image_urls
from chatkit.backends.selfhosted.database.tables import AttachmentContentRow, AttachmentRow, ImageRow
from tests.support.applications import MakeApp
from tests.support.attachments import OFFERED
from tests.support.chat import user_input
from tests.support.chat_users import CHAT, ChatUser, begin_conversation, chat, chat_user
from tests.support.endpoint import ENDPOINT
from tests.support.fake_openai import FakeOpenAI
from tests.support.identity_provider import SECRET, shared
from tests.support.protocol import PROTOCOL, REQUEST_TYPES, leaves, replaced
from tests.support.service import SECRET_KEY

MARK = "words-of-the-victim"
IMAGE_ID = "img_of_the_victim"
ATTACHMENT_ID = "atc_of_the_victim"
KINDS = ["anonymous", "user"]


# The protocol: each type with the attacker's own identifiers, replaced one by one with each of the victim's


def with_ids(template: dict[str, Any], user: ChatUser) -> dict[str, Any]:
    whole = json.dumps(template).replace('"T"', f'"{user.thread}"').replace('"I"', f'"{user.item}"')
    named: dict[str, Any] = json.loads(whole)
    return named


def attempts_of(type_: str, own: dict[str, Any], victim: ChatUser) -> Iterator[dict[str, Any]]:
    yield {"type": type_, "params": with_ids(PROTOCOL[type_], victim)}
    for path, theirs in itertools.product(list(leaves(own)), victim.ids()):
        yield {"type": type_, "params": replaced(own, path, theirs)}
    for name, theirs in itertools.product(("user", "user_id", "session_id", "thread_id"), victim.ids()):
        yield {"type": type_, "params": {**own, name: theirs}, name: theirs, "metadata": {name: theirs}}


def protocol_attempts(me: ChatUser, victim: ChatUser) -> Iterator[dict[str, Any]]:
    for type_ in sorted(
        PROTOCOL, key=lambda name: name == "threads.delete"
    ):  # last, because it deletes the attacker's own thread
        yield from attempts_of(type_, with_ids(PROTOCOL[type_], me), victim)


# The endpoints


def variations(method: str, path: str, me: ChatUser, victim: ChatUser, **request: Any) -> Iterator[dict[str, Any]]:
    """Yield the request itself, and with the victim's identifiers in the query, the headers and the cookies."""
    headers = request.pop("headers", me.headers)
    yield {"method": method, "path": path, "headers": headers, **request}
    names = ("X-User-Id", "X-User", "X-Forwarded-User", "Remote-User", "X-Session-Id", "X-Request-ID", "OpenAI-User")
    for theirs in victim.ids():
        query = "&".join(f"{name}={theirs}" for name in ("user", "user_id", "sub", "session_id", "thread_id"))
        yield {"method": method, "path": f"{path}?{query}", "headers": headers, **request}
        yield {"method": method, "path": path, "headers": {**headers, **dict.fromkeys(names, theirs)}, **request}
        for authorization in (f"Bearer {theirs}", f"Basic {theirs}", theirs):
            yield {"method": method, "path": path, "headers": {**headers, "Authorization": authorization}, **request}
        cookies = ("chatkit_visitor", "__Host-chatkit_visitor", "visitor", "session", "user")
        cookie = "; ".join(f"{name}={theirs}" for name in cookies)
        yield {"method": method, "path": path, "headers": {**headers, "Cookie": cookie}, **request}


def issuing(me: ChatUser, victim: ChatUser) -> Iterator[dict[str, Any]]:
    yield from variations("POST", ENDPOINT, me, victim)
    for theirs in victim.ids():
        for name in ("user_id", "user", "sub", "session_id", "visitor", "thread_id"):
            yield {"method": "POST", "path": ENDPOINT, "headers": me.headers, "json": {name: theirs}}
        yield {"method": "POST", "path": ENDPOINT, "headers": {"Authorization": f"Bearer {shared(sub=theirs + 'x')}"}}
    # The identity provider decides about subjects. One that looks like a visitor's id is not that visitor.
    yield {"method": "POST", "path": ENDPOINT, "headers": {"Authorization": f"Bearer {shared(sub=victim.user)}"}}


def ending(me: ChatUser, victim: ChatUser) -> Iterator[dict[str, Any]]:
    for theirs in victim.ids():
        yield from variations("DELETE", f"{ENDPOINT}/{theirs}", me, victim)


def chatting(me: ChatUser, victim: ChatUser) -> Iterator[dict[str, Any]]:
    message = {"type": "threads.create", "params": {"input": user_input("Show me", [ATTACHMENT_ID])}}
    deletion = {"type": "attachments.delete", "params": {"attachment_id": ATTACHMENT_ID}}
    for body in (message, deletion, *protocol_attempts(me, victim)):
        yield {"method": "POST", "path": CHAT, "headers": bearer(me), "json": body}
    listing = {"type": "threads.list", "params": {}}
    yield from variations("POST", CHAT, me, victim, headers=bearer(me), json=listing)


def viewing(me: ChatUser, victim: ChatUser) -> Iterator[dict[str, Any]]:
    yield from variations("GET", f"{CHAT}/images/{IMAGE_ID}", me, victim)
    urls = image_urls(SECRET_KEY)
    for image_id, user in ((IMAGE_ID, me.user), ("img_of_the_attacker", me.user), ("img_of_the_attacker", victim.user)):
        token = urls.make("", image_id, user).partition("?")[2]
        yield {"method": "GET", "path": f"{CHAT}/images/{IMAGE_ID}?{token}", "headers": me.headers}


def uploading(me: ChatUser, victim: ChatUser) -> Iterator[dict[str, Any]]:
    path = f"{CHAT}/attachments/{ATTACHMENT_ID}"
    yield from variations("PUT", path, me, victim, data=b"mine")
    urls = upload_urls(SECRET_KEY)
    for attachment_id, user in ((ATTACHMENT_ID, me.user), ("atc_of_the_attacker", victim.user)):
        token = urls.make("", attachment_id, user).partition("?")[2]
        yield {"method": "PUT", "path": f"{path}?{token}", "headers": me.headers, "data": b"mine"}
    for others in (image_urls(SECRET_KEY), upload_urls("k" * 32)):
        token = others.make("", ATTACHMENT_ID, victim.user).partition("?")[2]
        yield {"method": "PUT", "path": f"{path}?{token}", "headers": me.headers, "data": b"mine"}
    for user in (me.user, victim.user):  # an attachment is shown like an image
        token = image_urls(SECRET_KEY).make("", "atc_of_the_attacker", user).partition("?")[2]
        yield {"method": "GET", "path": f"{CHAT}/images/{ATTACHMENT_ID}?{token}", "headers": me.headers}


def finding_runs(me: ChatUser, victim: ChatUser) -> Iterator[dict[str, Any]]:
    yield from with_any_id("GET", f"{CHAT}/threads/{{}}/run", me, victim)
    yield from variations("GET", f"{CHAT}/threads/{victim.thread}/run", me, victim, headers=bearer(me))


def stopping_runs(me: ChatUser, victim: ChatUser) -> Iterator[dict[str, Any]]:
    yield from with_any_id("DELETE", f"{CHAT}/runs/{{}}", me, victim)
    yield from variations("DELETE", f"{CHAT}/runs/{victim.run}", me, victim, headers=bearer(me))


def with_any_id(method: str, path: str, me: ChatUser, victim: ChatUser) -> Iterator[dict[str, Any]]:
    for theirs in (*victim.ids(), victim.run):
        yield {"method": method, "path": path.format(theirs), "headers": bearer(me)}


def bearer(user: ChatUser) -> dict[str, str]:
    return {"Authorization": f"Bearer {user.secret}"}


def checking(path: str) -> Callable[[ChatUser, ChatUser], Iterator[dict[str, Any]]]:
    return lambda me, victim: variations("GET", path, me, victim)


TABLE: dict[tuple[str, str], Callable[[ChatUser, ChatUser], Iterator[dict[str, Any]]]] = {
    ("POST", ENDPOINT): issuing,
    ("DELETE", f"{ENDPOINT}/<session_id>"): ending,
    ("POST", CHAT): chatting,
    ("GET", f"{CHAT}/images/<image_id>"): viewing,
    ("PUT", f"{CHAT}/attachments/<attachment_id>"): uploading,
    ("GET", f"{CHAT}/composer"): checking(f"{CHAT}/composer"),
    ("GET", f"{CHAT}/threads/<thread_id>/run"): finding_runs,
    ("DELETE", f"{CHAT}/runs/<run_id>"): stopping_runs,
    ("GET", "/"): checking("/"),
    ("GET", "/static/<path:filename>"): checking("/static/host.js"),
    ("GET", "/healthz"): checking("/healthz"),
    ("GET", "/readyz"): checking("/readyz"),
}


def routes(app: Flask) -> set[tuple[str, str]]:
    rules = app.url_map.iter_rules()
    return {(method, rule.rule) for rule in rules for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}}


def test_table_covers_every_endpoint_and_request_type(make_app: MakeApp) -> None:
    assert TABLE.keys() == routes(make_app(CHATKIT_BACKEND="selfhosted")) | routes(make_app())
    assert PROTOCOL.keys() == REQUEST_TYPES


@pytest.mark.parametrize(
    ("database", "victim_is", "attacker_is"),  # each pair of values once: a run sends 1,000 requests
    [
        ("sqlite", "anonymous", "anonymous"),
        ("sqlite", "user", "user"),
        pytest.param("postgresql", "anonymous", "user", marks=pytest.mark.slow),
        pytest.param("postgresql", "user", "anonymous", marks=pytest.mark.slow),
    ],
    indirect=["database"],
)
def test_tenant_isolation(
    make_app: MakeApp, database: str, victim_is: str, attacker_is: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SECONDS_PER_WORD", 0)
    often = {"CHATKIT_MAX_REQUESTS_PER_MINUTE": "1000000", "AUTH_JWT_SECRET": SECRET, **OFFERED}
    app = make_app(CHATKIT_BACKEND="selfhosted", DATABASE_URL=database, OPENAI_API_KEY="", **often)
    victim, me = chat_user(app, victim_is, "victim"), chat_user(app, attacker_is, "attacker")
    begin_conversation(victim, MARK)
    begin_conversation(me, "of the attacker")
    image = {"id": IMAGE_ID, "user_id": victim.user, "thread_id": victim.thread, "item_id": victim.item}
    with create_engine(database).begin() as connection:
        connection.execute(insert(ImageRow), {**image, "media_type": "image/png", "data": MARK.encode()})
        attachment = {"id": ATTACHMENT_ID, "user_id": victim.user, "thread_id": None}
        file = {"type": "file", "id": ATTACHMENT_ID, "name": MARK, "mime_type": "text/plain", "metadata": {"chatkit.size": 4}}
        connection.execute(insert(AttachmentRow), {**attachment, "data": json.dumps(file)})
        content = {"attachment_id": ATTACHMENT_ID, "data": MARK.encode()}
        connection.execute(insert(AttachmentContentRow), content)
        row = {"thread": victim.thread, "user": victim.user, "run": victim.run, "now": int(time.time()) + 3600}
        columns = "thread_id, user_id, id, started_at, heartbeat, stop_requested"
        values = ":thread, :user, :run, :now, :now, false"
        connection.execute(text(f"INSERT INTO chat_active_runs ({columns}) VALUES ({values})"), row)

    def belongings() -> Any:
        contents = "chat_attachments JOIN chat_attachment_contents ON id = attachment_id"
        tables = (
            "chat_threads",
            "chat_items",
            "chat_images",
            "chat_attachments",
            contents,
            "chat_sessions",
            "chat_active_runs",
        )
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
                issued = ChatUser(me.client, {}, secret=response.get_json()["data"]["client_secret"])
                assert MARK not in chat(issued, {"type": "threads.list", "params": {}}).text, request
    assert seen <= {200, 400, 401, 403, 404, 500, 503}
    assert belongings() == before
    mine = chat(victim, {"type": "threads.get_by_id", "params": {"thread_id": victim.thread}})
    assert MARK in mine.text, "the check would find it"
    assert MARK in me.client.get(image_urls(SECRET_KEY).make("", IMAGE_ID, victim.user)).text, "the URL is sufficient"
    upload = upload_urls(SECRET_KEY).make("", ATTACHMENT_ID, victim.user)
    assert me.client.put(upload, data=b"mine").status_code == 204, "so is that of an upload"


@pytest.mark.parametrize("attacker_is", KINDS)
@pytest.mark.parametrize("victim_is", KINDS)
def test_tenant_isolation_of_hosted_sessions(
    make_app: MakeApp, fake_openai: FakeOpenAI, victim_is: str, attacker_is: str
) -> None:
    """Knowing a ``user`` value is enough to read that user's threads at OpenAI."""
    app = make_app(AUTH_JWT_SECRET=SECRET)
    victim, me = chat_user(app, victim_is, "victim"), chat_user(app, attacker_is, "attacker")
    assert fake_openai.received[0].body["user"] == victim.user
    fake_openai.received.clear()
    for endpoint in (issuing, ending):
        for request in endpoint(me, victim):
            client = app.test_client() if "Cookie" in request["headers"] else me.client
            response = client.open(request.pop("path"), **request)
            assert victim.secret not in response.text
    users = {received.body["user"] for received in fake_openai.received if isinstance(received.body, dict)}
    assert me.user in users
    assert victim.user not in users
    assert not [received.path for received in fake_openai.received if received.path.endswith("/cancel")]
    assert victim.client.delete(f"{ENDPOINT}/{victim.session_id}", headers=victim.headers).status_code == 200

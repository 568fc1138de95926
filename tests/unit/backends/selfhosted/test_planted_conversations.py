"""Conversations that an attacker has planted in somebody's browser come along without what their new owner can't see."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine, insert, text

from chatkit.backends.selfhosted import sessions
from chatkit.backends.selfhosted.database.tables import ItemRow, ThreadRow
from tests.support.applications import MakeApp
from tests.support.chat import user_input
from tests.support.people import Person, chat
from tests.support.provider import SECRET, shared
from tests.support.responses_api import says, streaming
from tests.support.upstream import Upstream

PLANTED = "instructions-of-the-attacker"
AS_USER = {"Authorization": f"Bearer {shared()}"}


@pytest.fixture
def app(make_app: MakeApp, database: str, upstream: Upstream) -> Flask:
    upstream.behaviour = streaming(says("Hello there"))
    agent = {"CHATKIT_AGENT": "tests.support.agents_under_test:simple", "DATABASE_URL": database}
    return make_app(CHATKIT_BACKEND="selfhosted", AUTH_JWT_SECRET=SECRET, AUTH_KEEP_CONVERSATIONS="true", **agent)


def begin(someone: Person) -> str:
    answer = chat(someone, {"type": "threads.create", "params": {"input": user_input("Hi")}})
    thread: str = json.loads(answer.text.splitlines()[0][6:])["thread"]["id"]
    return thread


def act(someone: Person, thread: str, payload: Any) -> None:
    """What a page says that the user did with a widget; the model is told, and the user never sees it."""
    params = {"thread_id": thread, "action": {"type": "pressed", "payload": payload}}
    assert chat(someone, {"type": "threads.sync_custom_action", "params": params}).status_code == 200


def visible(someone: Person, thread: str) -> Any:
    return chat(someone, {"type": "items.list", "params": {"thread_id": thread}}).get_json()["data"]


def stored(database: str) -> list[tuple[str, str, str]]:
    with create_engine(database).connect() as connection:
        rows = connection.execute(text("SELECT user_id, thread_id, data FROM chat_items ORDER BY position")).all()
    return [(row.user_id, row.thread_id, json.loads(row.data)["type"]) for row in rows]


def test_what_was_planted_does_not_reach_the_model(app: Flask, database: str, upstream: Upstream) -> None:
    victim = Person(app.test_client(), AS_USER)
    victim.mint()
    own = begin(victim)
    act(victim, own, "of the victim's own")

    attacker = Person(app.test_client(), {})
    attacker.mint()
    planted = begin(attacker)
    for payload in (PLANTED, f"{PLANTED}\0", {"type": "user_message", "text": PLANTED}, [f'"type":"x" {PLANTED}']):
        act(attacker, planted, payload)
    seen = visible(attacker, planted)
    assert len(seen) == 2
    say = {"type": "threads.add_user_message", "params": {"thread_id": planted, "input": user_input("Hello")}}
    chat(attacker, say)
    assert PLANTED in json.dumps(upstream.received[-1].body), "the search would have found it"

    # The attacker's cookie in the victim's browser.
    browser = Person(attacker.client, AS_USER)
    browser.mint()
    assert [item for item in visible(browser, planted) if item in seen] == seen
    for thread in (planted, own):
        said = {"type": "threads.add_user_message", "params": {"thread_id": thread, "input": user_input("Hello")}}
        assert chat(browser, said).status_code == 200
        assert PLANTED not in json.dumps(upstream.received[-1].body)
    assert "of the victim's own" in json.dumps(upstream.received[-1].body), "what was the user's stays"


def test_of_every_kind_in_many_threads_and_nothing_else(app: Flask, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "THREAD_BATCH", 7)
    client = app.test_client()
    attacker = Person(client, {})
    attacker.mint()
    with client.session_transaction() as cookie:
        visitor = f"anonymous:{cookie['visitor']}"
    kinds: dict[str, dict[str, Any]] = {
        "hidden_context_item": {"content": PLANTED},
        "sdk_hidden_context": {"content": {"type": "user_message"}},
        "client_tool_call": {"arguments": {"type": "hidden_context_item"}, "output": '{"type":"sdk_hidden_context"}'},
        "user_message": {"content": [{"type": "input_text", "text": '"type":"hidden_context_item"\0'}]},
    }
    with create_engine(database).begin() as connection:
        for user in (visitor, "user:ada"):
            threads = [f"thr_{user}_{number}" for number in range(20)]
            rows = [{"id": thread, "user_id": user, "used_at": 1, "data": "{}"} for thread in threads]
            connection.execute(insert(ThreadRow), rows)
            for kind, more in kinds.items():
                data = json.dumps({"id": kind, "type": kind, **more}, separators=(",", ":"))
                item = {"user_id": user, "id": kind, "data": data}
                connection.execute(insert(ItemRow), [{**item, "thread_id": thread} for thread in threads])
    before = stored(database)
    Person(client, AS_USER).mint()
    kept = [("user:ada", thread, kind) for user, thread, kind in before if user != visitor or "hidden" not in kind]
    assert stored(database) == kept
    assert len(kept) == 20 * 2 + 20 * 4

"""An attacker's hidden items are dropped when a victim takes over the conversations of a planted visitor cookie."""

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
from tests.support.chat_users import ChatUser, chat
from tests.support.fake_openai import FakeOpenAI
from tests.support.identity_provider import SECRET, shared
from tests.support.responses_api import calls, says, streaming

PLANTED = "instructions-of-the-attacker"
AS_USER = {"Authorization": f"Bearer {shared()}"}


@pytest.fixture
def app(make_app: MakeApp, database: str, fake_openai: FakeOpenAI) -> Flask:
    fake_openai.behaviour = streaming(says("Hello there"))
    agent = {"CHATKIT_AGENT": "tests.support.agents_under_test:simple", "DATABASE_URL": database}
    return make_app(CHATKIT_BACKEND="selfhosted", AUTH_JWT_SECRET=SECRET, AUTH_KEEP_CONVERSATIONS="true", **agent)


def create_thread(user: ChatUser) -> str:
    response = chat(user, {"type": "threads.create", "params": {"input": user_input("Hi")}})
    thread: str = json.loads(response.text.splitlines()[0][6:])["thread"]["id"]
    return thread


def report_action(user: ChatUser, thread: str, payload: Any) -> None:
    """Report a widget action. The model is told about it; the user never sees it."""
    params = {"thread_id": thread, "action": {"type": "pressed", "payload": payload}}
    assert chat(user, {"type": "threads.sync_custom_action", "params": params}).status_code == 200


def visible(user: ChatUser, thread: str) -> Any:
    return chat(user, {"type": "items.list", "params": {"thread_id": thread}}).get_json()["data"]


def stored(database: str) -> list[tuple[str, str, str]]:
    with create_engine(database).connect() as connection:
        rows = connection.execute(text("SELECT user_id, thread_id, data FROM chat_items ORDER BY position")).all()
    return [(row.user_id, row.thread_id, json.loads(row.data)["id"]) for row in rows]


def test_planted_items_do_not_reach_the_model(app: Flask, database: str, fake_openai: FakeOpenAI) -> None:
    victim = ChatUser(app.test_client(), AS_USER)
    victim.create_session()
    own = create_thread(victim)
    report_action(victim, own, "of the victim's own")

    attacker = ChatUser(app.test_client(), {})
    attacker.create_session()
    planted = create_thread(attacker)
    for payload in (PLANTED, f"{PLANTED}\0", {"type": "user_message", "text": PLANTED}, [f'"type":"x" {PLANTED}']):
        report_action(attacker, planted, payload)
    seen = visible(attacker, planted)
    assert len(seen) == 2
    say = {"type": "threads.add_user_message", "params": {"thread_id": planted, "input": user_input("Hello")}}
    chat(attacker, say)
    assert PLANTED in json.dumps(fake_openai.received[-1].body), "the check would find it"

    # The attacker's cookie in the victim's browser.
    browser = ChatUser(attacker.client, AS_USER)
    browser.create_session()
    assert [item for item in visible(browser, planted) if item in seen] == seen
    for thread in (planted, own):
        message = {"type": "threads.add_user_message", "params": {"thread_id": thread, "input": user_input("Hello")}}
        assert chat(browser, message).status_code == 200
        assert PLANTED not in json.dumps(fake_openai.received[-1].body)
    assert "of the victim's own" in json.dumps(fake_openai.received[-1].body), "the user's own items are kept"


def test_only_the_text_of_a_mention_is_kept(app: Flask, fake_openai: FakeOpenAI) -> None:
    attacker = ChatUser(app.test_client(), {})
    attacker.create_session()
    tag = {"type": "input_tag", "text": "Anna", "id": f"id {PLANTED}", "data": {"note": f"{PLANTED}\0"}, "interactive": True}
    message = {**user_input(""), "content": [{"type": "input_text", "text": "Ask "}, tag]}
    response = chat(attacker, {"type": "threads.create", "params": {"input": message}})
    planted = json.loads(response.text.splitlines()[0][6:])["thread"]["id"]
    assert PLANTED in json.dumps(fake_openai.received[-1].body), "the check would find it"
    browser = ChatUser(attacker.client, AS_USER)
    browser.create_session()
    say = {"type": "threads.add_user_message", "params": {"thread_id": planted, "input": user_input("Hello")}}
    assert chat(browser, say).status_code == 200
    given = json.dumps(fake_openai.received[-1].body)
    assert PLANTED not in given
    assert "@Anna" in given
    (shown,) = [part for part in visible(browser, planted)[-1]["content"] if part["type"] == "input_tag"]
    assert (shown["text"], shown["interactive"]) == ("Anna", True)


def test_only_hidden_items_are_dropped(app: Flask, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "THREAD_BATCH", 7)
    client = app.test_client()
    attacker = ChatUser(client, {})
    attacker.create_session()
    with client.session_transaction() as cookie:
        visitor = f"anonymous:{cookie['visitor']}"
    kinds: dict[str, dict[str, Any]] = {
        "hidden_context_item": {"content": PLANTED},
        "sdk_hidden_context": {"content": {"type": "user_message"}},
        "refused": {"type": "sdk_hidden_context", "content": sessions.REFUSED},
        "pending_call": {"type": "client_tool_call", "status": "pending", "arguments": {"type": "hidden_context_item"}},
        "hidden_output": {"type": "client_tool_call", "status": "completed", "output": PLANTED},
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
    ChatUser(client, AS_USER).create_session()
    kept = [("user:ada", thread, kind) for user, thread, kind in before if user != visitor or "hidden" not in kind]
    assert stored(database) == kept
    assert len(kept) == 20 * 3 + 20 * 6


def test_planted_run_can_not_be_resumed(make_app: MakeApp, database: str, fake_openai: FakeOpenAI) -> None:
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("Never said"))
    agent = {"CHATKIT_AGENT": "tests.support.approving_agents:careful", "DATABASE_URL": database}
    app = make_app(CHATKIT_BACKEND="selfhosted", AUTH_JWT_SECRET=SECRET, AUTH_KEEP_CONVERSATIONS="true", **agent)
    attacker = ChatUser(app.test_client(), {})
    attacker.create_session()
    planted = create_thread(attacker)
    (widget,) = [item for item in visible(attacker, planted) if item["type"] == "widget"]
    browser = ChatUser(attacker.client, AS_USER)
    browser.create_session()
    with create_engine(database).connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM chat_paused_runs")).scalar_one() == 0
    action = {"type": "chatkit.approval", "payload": {"approved": True}}
    params = {"thread_id": planted, "item_id": widget["id"], "action": action}
    answer = chat(browser, {"type": "threads.custom_action", "params": params})
    assert "This can no longer be decided." in answer.text
    assert len(fake_openai.received) == 1

"""The server's own limits, and errors outside of the assistant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agents.models.openai_responses import ResponsesWebSocketError
from agents.run import DEFAULT_MAX_TURNS
from chatkit.types import ThreadItem
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from chatkit.backends.selfhosted.chat import demo
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.chat.transactions import ThreadGone
from tests.support import agents_elsewhere
from tests.support.active_runs import state
from tests.support.applications import Start
from tests.support.chat import deltas, user_input
from tests.support.chat import errors as errors_of
from tests.support.fake_openai import FakeOpenAI
from tests.support.leaks import Recorder
from tests.support.responses_api import calls, says, streaming
from tests.support.usage import used
from tests.support.waiting import wait_for


@pytest.mark.parametrize(
    ("words", "title"),
    [
        ("a" * 60, "a" * 60),
        ("a" * 61, "a" * 59 + "…"),
        ("a" * 30 + " " + "b" * 30, "a" * 30 + "…"),
        ("a" * 30 + " \n " + "b" * 29, "a" * 30 + " " + "b" * 29),
    ],
)
def test_title_has_sixty_characters_of_the_first_message(start: Start, fake_openai: FakeOpenAI, words: str, title: str) -> None:
    fake_openai.behaviour = streaming(says("Hello"))
    caller = start("simple")
    thread_id, _ = caller.create(words)
    assert caller.thread(thread_id).title == title


QUOTED = "Incorrect key: sk-quoted"
STREAM_ERROR = "stream.error", None


def websocket_error(**payload: Any) -> ResponsesWebSocketError:
    return ResponsesWebSocketError({"type": "error", "error": {"message": QUOTED, "code": "a_code"}, **payload})


@pytest.mark.parametrize(
    ("error", "shown", "logged"),
    [
        (websocket_error(status=401), (*STREAM_ERROR, False), "responded with 401 (a_code)"),
        (
            websocket_error(status=429, request_id="req_7"),
            ("custom", "The assistant is busy. Please try again in a moment.", True),
            "responded with 429 (request req_7, a_code)",
        ),
        (websocket_error(status=500), (*STREAM_ERROR, True), "responded with 500 (a_code)"),
        (websocket_error(), (*STREAM_ERROR, True), "no usable response from the model's service (ResponsesWebSocketError)"),
        (ConnectionRefusedError(111, "refused"), (*STREAM_ERROR, True), "the assistant failed"),
    ],
    ids=["401", "429", "500", "without a status", "no connection"],
)
def test_error_of_a_websocket(
    start: Start, tmp_path: Path, recorder: Recorder, error: Exception, shown: Any, logged: str
) -> None:
    """It is logged without its text, and a call without output is not counted as usage."""
    agents_elsewhere.scripted.enqueue(error)
    before = len(recorder.lines)
    caller = start("tests.support.agents_elsewhere:unknown")
    thread_id, events = caller.create("Hello " * 1000)
    assert errors_of(events) == [shown]
    lines = "\n".join(recorder.lines[before:])
    assert logged in lines
    assert QUOTED not in lines
    # A call that times out is counted: the service of the model goes on, and bills it. Python's timeouts are errors of the
    # system, as those of connections.
    agents_elsewhere.scripted.enqueue(TimeoutError("a timeout of the operator's"))
    caller.say(thread_id, "Hello")
    wait_for(lambda: [row[:2] for row in used(f"sqlite:///{tmp_path}/chatkit.db")] == [("Unknown", 1)])


@pytest.mark.parametrize("reason", ["the model fails", "the time limit"])
def test_text_that_was_shown_before_an_error_is_stored(start: Start, fake_openai: FakeOpenAI, reason: str) -> None:
    failure = {"type": "error", "code": "server_error", "message": "failed", "param": None}
    fake_openai.behaviour = streaming([*says("word " * 50)[:50], failure if reason == "the model fails" else 3.0])
    caller = start("simple", CHATKIT_TURN_SECONDS="2")
    thread_id, events = caller.create("Hello")
    assert errors_of(events)[0][2], "a retry is offered"
    (_, reply) = caller.items(thread_id, order="asc").data
    assert reply.content[0].text == "".join(deltas(events))
    assert len(deltas(events)) > 20


@pytest.mark.parametrize(
    ("type_", "error", "retry"),
    [
        ("user_message", OperationalError("", None, Exception("away")), False),  # a retry would find no message
        ("assistant_message", OperationalError("", None, Exception("away")), True),
        ("assistant_message", OSError("the disk is gone"), True),
        ("assistant_message", ThreadGone(), False),
    ],
)
def test_item_that_can_not_be_stored(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, type_: str, error: Exception, retry: bool
) -> None:
    add = SqlStore.add_thread_item

    async def fail(self: SqlStore, thread_id: str, item: ThreadItem, context: ChatContext) -> None:
        if item.type == type_:
            raise error
        await add(self, thread_id, item, context)

    caller = start(OPENAI_API_KEY="")
    monkeypatch.setattr(SqlStore, "add_thread_item", fail)
    monkeypatch.setattr(demo, "SECONDS_PER_WORD", 0)
    thread_id, events = caller.create("Hello")
    assert errors_of(events) == [("stream.error", None, retry)]
    assert state(caller, thread_id) == ("interrupted" if retry else None)
    tracebacks = [bool(record.exc_info) for record in caplog.records if "a stream failed" in record.message]
    assert tracebacks == ([False] if type_ == "user_message" else []), "the SDK logs the others"


def test_database_that_fails_before_the_answer_begins(start: Start, tmp_path: object) -> None:
    caller = start(OPENAI_API_KEY="")
    with create_engine(f"sqlite:///{tmp_path}/chatkit.db").begin() as connection:
        connection.execute(text("DROP TABLE chat_threads"))
    for type_, params in (("threads.list", {}), ("threads.create", {"input": user_input("Hello")})):
        answer = caller.post(type_, **params)
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable"), type_
        assert answer.headers["Retry-After"] == "5"


@pytest.mark.parametrize(
    ("table", "type_"),
    [
        ("chat_items", "items.list"),
        ("chat_items", "threads.get_by_id"),
        ("chat_items", "threads.retry_after_item"),
        ("chat_threads", "threads.list"),
        ("chat_threads", "threads.update"),
        ("chat_threads", "threads.add_user_message"),
    ],
)
def test_row_that_cannot_be_read(start: Start, database: str, recorder: Recorder, table: str, type_: str) -> None:
    """A newer version may have stored it. The request is not at fault."""
    caller, before = start(OPENAI_API_KEY="", DATABASE_URL=database), len(recorder.lines)
    thread_id, _ = caller.create("Hello")
    item_id = caller.items(thread_id, order="asc").data[0].id
    with create_engine(database).begin() as connection:
        data = '{"type": "newer", "id": "thr_1", "title": "What only the user may read"}'
        connection.execute(text(f"UPDATE {table} SET data = :data"), {"data": data})
    answer = caller.post(type_, thread_id=thread_id, item_id=item_id, title="Title", input=user_input("Hello"))
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_server_error")
    logged = "".join(recorder.lines[before:])
    assert "UnreadableRowError" in logged
    assert "What only the user may read" not in logged


def test_result_that_is_no_json(start: Start) -> None:
    caller = start("tests.support.servers_under_test:Unserializable", OPENAI_API_KEY="")
    thread_id, _ = caller.create("Hello")
    answer = caller.post("threads.sync_custom_action", thread_id=thread_id, action={"type": "press", "payload": {}})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_server_error")


@pytest.mark.parametrize(
    ("type_", "params"),
    [
        ("input.transcribe", {"audio_base64": "AAA", "mime_type": "audio/webm"}),
        ("input.transcribe", {"audio_base64": "é", "mime_type": "audio/webm"}),
        ("threads.add_client_tool_output", {"result": "no call is pending"}),
    ],
)
def test_request_that_does_not_fit(start: Start, type_: str, params: dict[str, object]) -> None:
    caller = start(OPENAI_API_KEY="")
    thread_id, _ = caller.create("Hello")
    answer = caller.post(type_, thread_id=thread_id, **params)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request_body")


@pytest.mark.parametrize(
    ("type_", "params"),
    [
        ("threads.get_by_id", {"thread_id": "thr\0"}),
        ("items.list", {"thread_id": "thr", "after": "msg\0"}),
        ("threads.retry_after_item", {"thread_id": "thr", "item_id": "msg\0"}),
        ("items.feedback", {"thread_id": "thr", "item_ids": ["msg", "msg\0"], "kind": "positive"}),
        ("attachments.delete", {"attachment_id": "atc\0"}),
    ],
)
def test_id_with_nul_is_not_found(start: Start, type_: str, params: dict[str, object]) -> None:
    answer = start(OPENAI_API_KEY="").post(type_, **params)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("agent", ["with_tool", "with_tool_for_user", "tool_workflow"])
def test_too_many_turns_of_an_agent(start: Start, fake_openai: FakeOpenAI, recorder: Recorder, agent: str) -> None:
    """A retry would call the tools again."""
    caller, before = start(agent), len(recorder.lines)
    fake_openai.behaviour = streaming(calls("weather", city="Paris"))
    _, events = caller.create("Weather?")
    assert errors_of(events) == [("custom", "The assistant could not finish this. Please ask for less at a time.", False)]
    assert len(fake_openai.received) == DEFAULT_MAX_TURNS
    assert any("the agent did not finish within its max_turns" in line for line in recorder.lines[before:])
